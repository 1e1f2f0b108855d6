"""Exact planners against numbers derived by hand, published, or computed independently."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.planning import gridworld
from envs.tables import TabularModel, tabular_model
from envs.textbook import register
from rules.planning import (
    action_values,
    evaluate_policy,
    finite_horizon_value,
    policy_dynamics,
    policy_iteration,
    reachable,
    value_iteration,
)
from rules.tabular import boltzmann_value, epsilon_greedy, epsilon_soft_value, greedy_value, log_sum_exp_value, softmax

SOLVERS = (value_iteration, policy_iteration)


def model_of(env_id: str, **kwargs: object) -> TabularModel:
    register()
    env = gym.make(env_id, **kwargs)
    model = tabular_model(env, env.spec.max_episode_steps)
    env.close()
    assert model is not None
    return model


def random_model(seed: int, num_states: int = 6, num_actions: int = 3, outcomes: int = 3) -> TabularModel:
    generator = np.random.default_rng(seed)
    size = (num_states, num_actions, outcomes)
    probability = generator.dirichlet(np.ones(outcomes), size[:2])
    return TabularModel(
        generator.integers(num_states, size=size).astype(np.int32),
        probability,
        probability.cumsum(axis=2),
        generator.normal(size=size),
        generator.random(size) < 0.1,
        np.full(num_states, 1 / num_states),
    )


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize(
    ("env_id", "kwargs", "gamma", "expected"),
    [
        ("FrozenLake-v1", {}, 1.0, 14 / 17),
        ("FrozenLake-v1", {}, 0.99, 0.5420259320),
        ("FrozenLake-v1", {}, 0.95, 0.1804715784),
        ("FrozenLake-v1", {}, 0.9, 0.0688909049),
        ("FrozenLake-v1", {"is_slippery": False}, 0.99, 0.99**5),
        ("FrozenLake8x8-v1", {}, 1.0, 1.0),
        ("FrozenLake8x8-v1", {}, 0.99, 0.4146403618),
        ("CliffWalking-v1", {}, 1.0, -13.0),
        ("CliffWalking-v1", {}, 0.99, -12.247898),
        ("Taxi-v4", {}, 1.0, 7.93),
        ("Taxi-v4", {}, 0.99, 6.3274643149),
        ("Textbook/WindyGridworld-v0", {}, 1.0, -15.0),
        ("Textbook/WindyGridworld-v0", {"king_moves": True}, 1.0, -7.0),
        ("Textbook/WindyGridworld-v0", {"king_moves": True, "stand_still": True}, 1.0, -7.0),
        ("Textbook/DynaMaze-v0", {}, 0.95, 0.95**13),
    ],
)
def test_optimal_value_at_the_start(solve, env_id: str, kwargs: dict, gamma: float, expected: float) -> None:
    model = model_of(env_id, **kwargs)
    q, _ = solve(model, gamma)
    digits = 1e-8 if f"{expected}" != "-12.247898" else 1e-6
    assert model.start @ greedy_value(q) == pytest.approx(expected, abs=digits)


def test_frozen_lake_without_limit_at_five_more_cells() -> None:
    q, _ = value_iteration(model_of("FrozenLake-v1"), 1.0)
    assert greedy_value(q)[[6, 9, 10, 13, 14]] == pytest.approx(np.array([9, 14, 13, 15, 16]) / 17, abs=1e-8)


@pytest.mark.parametrize(
    ("env_id", "horizon", "expected"), [("FrozenLake-v1", 100, 0.7441902878), ("FrozenLake8x8-v1", 200, 0.9132201502)]
)
def test_a_time_limit_changes_the_optimum(env_id: str, horizon: int, expected: float) -> None:
    assert finite_horizon_value(model_of(env_id), horizon, 1.0)[0] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("env_id", "horizon", "gamma", "expected"),
    [("FrozenLake-v1", 100, 0.999, 0.7401648978), ("FrozenLake8x8-v1", 200, 0.999, 0.8856539193)],
)
def test_a_stationary_policy_under_a_time_limit(env_id: str, horizon: int, gamma: float, expected: float) -> None:
    model = model_of(env_id)
    policy = epsilon_greedy(value_iteration(model, gamma)[0], 0.0)
    assert finite_horizon_value(model, horizon, 1.0, policy=policy)[0] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("env_id", "best", "of_optimal", "digits"),
    [
        ("CliffWalking-v1", -20.7076773987, -50.8000, 1e-4),
        ("Textbook/WindyGridworld-v0", -17.0483228064, -17.0533, 1e-4),
    ],
)
def test_best_epsilon_soft_policy(env_id: str, best: float, of_optimal: float, digits: float) -> None:
    model = model_of(env_id)
    q, _ = value_iteration(model, 1.0, partial(epsilon_soft_value, epsilon=0.1))
    assert model.start @ epsilon_soft_value(q, 0.1) == pytest.approx(best, abs=1e-8)
    assert model.start @ evaluate_policy(model, epsilon_greedy(q, 0.1), 1.0) == pytest.approx(best, abs=1e-8)
    optimal, _ = value_iteration(model, 1.0)
    online = evaluate_policy(model, epsilon_greedy(optimal, 0.1), 1.0)  # uniform ties
    assert model.start @ online == pytest.approx(of_optimal, abs=digits)


def test_figure_4_1_gridworld_under_the_random_policy() -> None:
    model = gridworld(4, {}, -1.0, -1.0, ends=(0, 15))
    value = evaluate_policy(model, np.full((16, 4), 0.25), 1.0)
    expected = [[0, -14, -20, -22], [-14, -18, -20, -20], [-20, -20, -18, -14], [-22, -20, -14, 0]]
    assert value.reshape(4, 4) == pytest.approx(np.array(expected), abs=1e-9)


def test_examples_3_5_and_3_8() -> None:
    model = gridworld(5, {(0, 1): ((4, 1), 10.0), (0, 3): ((2, 3), 5.0)}, -1.0, 0.0)
    value = evaluate_policy(model, np.full((25, 4), 0.25), 0.9)
    assert value[:5] == pytest.approx([3.309, 8.789, 4.428, 5.322, 1.492], abs=5e-4)
    q, _ = value_iteration(model, 0.9)
    assert greedy_value(q)[:5] == pytest.approx([21.977, 24.419, 21.977, 19.419, 17.477], abs=1e-3)


def test_random_walk() -> None:
    value = evaluate_policy(model_of("Textbook/RandomWalk-v0"), np.ones((7, 1)), 1.0)
    assert value[1:-1] == pytest.approx(np.arange(1, 6) / 6, abs=1e-12)


def test_a_policy_that_walks_for_ever_is_worth_minus_infinity_and_a_harmless_loop_nothing() -> None:
    cliff = model_of("CliffWalking-v1")
    always_up = np.eye(4)[np.zeros(48, int)]
    assert evaluate_policy(cliff, always_up, 1.0)[36] == -np.inf
    lake = model_of("FrozenLake-v1", is_slippery=False)
    assert evaluate_policy(lake, np.eye(4)[np.zeros(16, int)], 1.0)[0] == 0.0  # always left, into the wall


def test_value_iteration_says_when_there_is_no_finite_optimum() -> None:
    paid_for_ever = TabularModel.from_outcomes({0: {0: [(1.0, 0, 1.0, False)]}}, np.ones(1))
    with pytest.raises(ValueError, match=r"value iteration at gamma 1 still moves by 1 after 100 sweeps"):
        value_iteration(paid_for_ever, 1.0, max_sweeps=100)
    q, _ = value_iteration(paid_for_ever, 0.98)
    assert q[0, 0] == pytest.approx(50, abs=1e-8)


def test_backup_and_policy_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        finite_horizon_value(random_model(0), 3, 1.0, backup=greedy_value, policy=np.full((6, 3), 1 / 3))


def test_reachable_states() -> None:
    model = model_of("CliffWalking-v1")
    seen = reachable(model, model.start)
    assert seen[:37].all()
    assert not seen[37:].any()  # the cliff is never stood on, and the goal is behind a terminal


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 0.95))
def test_both_solvers_find_the_same_fixed_point(seed: int, gamma: float) -> None:
    model = random_model(seed)
    q, _ = value_iteration(model, gamma)
    assert action_values(model, greedy_value(q), gamma) == pytest.approx(q, abs=1e-9)
    assert policy_iteration(model, gamma)[0] == pytest.approx(q, abs=1e-8)
    greedy = epsilon_greedy(q, 0.0)
    assert evaluate_policy(model, greedy, gamma) == pytest.approx(greedy_value(q), abs=1e-8)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0.1, 5), st.floats(0, 1))
def test_the_bellman_operators_contract_by_gamma(seed: int, gamma: float, temperature: float, epsilon: float) -> None:
    model = random_model(seed)
    generator = np.random.default_rng(seed)
    q, other = generator.normal(size=(2, 6, 3)) * 10
    distance = np.abs(q - other).max()
    for backup in (
        greedy_value,
        partial(epsilon_soft_value, epsilon=epsilon),
        partial(log_sum_exp_value, temperature=temperature),
    ):
        gap = action_values(model, backup(q), gamma) - action_values(model, backup(other), gamma)
        assert np.abs(gap).max() <= gamma * distance + 1e-9


def test_the_soft_fixed_point_is_unique_and_values_its_own_softmax_policy_with_entropy() -> None:
    model, gamma, tau = random_model(3), 0.9, 0.7
    q, _ = value_iteration(model, gamma, partial(log_sum_exp_value, temperature=tau))
    policy = softmax(q, tau)
    entropy = -(policy * np.log(policy)).sum(axis=1)
    chain, reward = policy_dynamics(model, policy)
    with_bonus = np.linalg.solve(np.eye(6) - gamma * chain, reward + tau * entropy)
    assert with_bonus == pytest.approx(log_sum_exp_value(q, tau), abs=1e-8)


def test_a_boltzmann_fixed_point_values_its_own_policy() -> None:
    model = random_model(4)
    q, _ = value_iteration(model, 0.5, partial(boltzmann_value, temperature=1.0))
    assert evaluate_policy(model, softmax(q, 1.0), 0.5) == pytest.approx(boltzmann_value(q, 1.0), abs=1e-8)
