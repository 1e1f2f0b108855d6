"""What all tabular agents have in common: acting, resuming, learning, and refusing what makes no sense."""

from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from agents import load_algorithm
from contract import EnvSpec, Inspectable, Mode, Streams, Task
from envs.tables import tabular_model
from faults import CheckpointError, ConfigError, NonFiniteError
from memory.table import StateIndex
from rules.planning import evaluate_policy, value_iteration
from rules.tabular import epsilon_greedy, epsilon_soft_value, greedy_value, log_sum_exp_value
from tests.agents.tabular import LEARNERS, LIMIT, TERMINAL, Training, feed, lake, leaves, make
from training import checkpoint

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "agent"
PLANNERS = ("value_iteration", "policy_iteration")


@pytest.mark.parametrize("name", [*LEARNERS, *PLANNERS])
def test_the_file_of_defaults_has_every_key_and_no_other(name: str) -> None:
    defaults = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    defaults.pop("by_family", None)
    settings = load_algorithm(name).Settings()
    assert set(defaults) == set(vars(settings))
    assert defaults["algorithm"] == settings.algorithm == name


@pytest.mark.parametrize("name", LEARNERS)
def test_training_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    def training() -> Training:
        schedules = {"step_size": 0.9, "step_size_schedule": "visits", "step_size_power": 0.7}
        return Training(name, lake(limit=7, slippery=True), 3, 900, **schedules, **LEARNERS[name])

    whole, before, after = training(), training(), training()
    whole.advance(900)
    before.advance(451)
    state = {"agent": before.agent.state_dict(), "advance": before.advance.state_dict()}
    checkpoint.save(tmp_path, "step_000000451", state, {})
    loaded, _ = checkpoint.load(tmp_path / "step_000000451")
    after.agent.load_state_dict(loaded["agent"])
    after.advance.load_state_dict(loaded["advance"])
    after.advance(900 - 453)
    expected, resumed = leaves(whole.agent.state_dict()), leaves(after.agent.state_dict())
    assert resumed == expected
    assert any(np.any(value) for path, value in expected.items() if "visits" in path)


@pytest.mark.parametrize("name", LEARNERS)
def test_evaluating_disturbs_nothing(name: str) -> None:
    training = Training(name, lake(limit=20), 2, 200, **LEARNERS[name])
    training.advance(100)
    before = leaves(training.agent.state_dict())
    policy = training.agent.policy(Mode("greedy"), 5, torch.Generator())
    for _ in range(10):
        policy.act(torch.arange(5), torch.zeros(5, dtype=torch.bool))
    assert isinstance(training.agent, Inspectable)
    inspection = training.agent.inspect()
    assert inspection.q.shape == inspection.policy.shape == inspection.visits.shape == (16, 4)
    assert set(inspection.metrics) == {"eval/value_error", "eval/policy_regret"}
    assert leaves(training.agent.state_dict()) == before


@pytest.mark.parametrize("name", LEARNERS)
def test_the_policy_alone_acts_the_same(name: str) -> None:
    trained, fresh = (Training(name, lake(limit=20), 4, 2000, **LEARNERS[name], **falling(name)) for _ in range(2))
    trained.advance(2000)
    fresh.agent.load_policy_state_dict(trained.agent.policy_state_dict())
    for mode in ("greedy", "sample", "epsilon=0.3", "temperature=0.1"):
        actions = [
            t.agent.policy(Mode.parse(mode), 16, torch.Generator().manual_seed(1)).act(torch.arange(16), torch.ones(16))
            for t in (trained, fresh)
        ]
        assert torch.equal(actions[0].action, actions[1].action)
        assert actions[0].action.dtype == torch.int64


def falling(name: str) -> dict[str, float]:
    """Settings with which an agent's own policy is another one at the end of the run."""
    if name == "mc_softmax":
        return {}
    tau = "temperature" if name == "softmax_q" else "epsilon"
    return {f"{tau}_start": 1.0, f"{tau}_end": 0.01, f"{tau}_decay_env_steps": 2000}


EXPLORES_FIRST = {"epsilon_start": 1.0, "epsilon_end": 0.1, "epsilon_decay_env_steps": 10_000}
FALLING = {"step_size": 1.0, "step_size_schedule": "visits", "step_size_power": 0.6}
OFF_POLICY = {
    "q_learning": EXPLORES_FIRST | FALLING,
    "double_q_learning": EXPLORES_FIRST | FALLING,
    "dyna_q": {"step_size": 1.0, "sweeping": "prioritised"},
    "softmax_q": {"temperature_start": 0.3, "temperature_end": 0.01, "temperature_decay_env_steps": 15_000},
    "mc_softmax": {"temperature": 0.2},
}
ON_POLICY = {
    "sarsa": {},
    "expected_sarsa": {},
    "sarsa_lambda": {"trace_decay": 0.3},
    "n_step_sarsa": {"n_step": 2},
    "monte_carlo": {},
}


@pytest.mark.parametrize("name", OFF_POLICY)
def test_learns_the_way_across_the_frozen_lake(name: str) -> None:
    training = Training(name, lake(), 8, 10_000, **OFF_POLICY[name])
    training.advance(10_000)
    assert training.agent.inspect().metrics["eval/policy_regret"] < 0.02 * 0.951


@pytest.mark.parametrize("name", ON_POLICY)
def test_learns_the_best_way_to_cross_while_exploring(name: str) -> None:
    training = Training(name, lake(), 8, 12_000, **EXPLORES_FIRST, **FALLING, **ON_POLICY[name])
    training.advance(12_000)
    soft, _ = value_iteration(lake(), 0.99, partial(epsilon_soft_value, epsilon=0.1))
    policy = training.agent.behaviour(np.arange(16))
    assert evaluate_policy(lake(), policy, 0.99)[0] > 0.97 * epsilon_soft_value(soft, 0.1)[0]


def test_learned_values_are_the_discounted_ones() -> None:
    training = Training("q_learning", lake(), 8, 20_000, step_size=0.5, epsilon_start=1.0, epsilon_end=1.0)
    training.advance(20_000)
    optimal, _ = value_iteration(lake(), 0.99)
    assert training.agent.table.q == pytest.approx(optimal, abs=1e-3)
    assert training.agent.inspect().metrics["eval/value_error"] < 1e-3


def test_a_reward_for_ever_is_worth_one_over_one_minus_gamma_behind_a_time_limit() -> None:
    """Four states in a circle, reward 1, limit 8: 50 at gamma 0.98, and 7.2 if the limit were taken for a terminal."""
    for name in ("q_learning", "expected_sarsa", "sarsa", "sarsa_lambda", "n_step_sarsa", "softmax_q", "monte_carlo"):
        settings = (
            {"truncated_episodes": "bootstrap", "step_size_schedule": "constant"} if name == "monte_carlo" else {}
        )
        agent = make(name, num_states=4, num_actions=1, gamma=0.98, step_size=0.5, **settings)
        circle = [(t % 4, 0, 1.0, (t + 1) % 4, *([LIMIT] if t == 7 else [])) for t in range(8)]
        feed(agent, *(circle * 250))
        assert agent.table.q[:, 0] == pytest.approx(np.full(4, 50.0), abs=1.0), name


def test_crosstalk_between_environments() -> None:
    """Environment i sees only state i and earns i."""
    from contract import Acted, Transition

    for name in LEARNERS:
        agent = make(name, num_states=4, num_actions=1, num_envs=4, step_size=1.0, **LEARNERS[name])
        state = torch.arange(4)
        ends = torch.ones(4, dtype=torch.bool)
        for _ in range(30):
            step = Transition(state, torch.zeros(4, dtype=torch.int64), state.float(), state, ends, ends, ends)
            agent.observe(step, Acted(step.action, {"probability": torch.ones(4)}))
            agent.update()
        assert agent.inspect().q[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0], name


def test_ties_are_broken_at_random_also_by_the_greedy_policy() -> None:
    agent = make("q_learning", num_states=1, num_actions=4)
    policy = agent.policy(Mode("greedy"), 4000, torch.Generator().manual_seed(0))
    actions = policy.act(torch.zeros(4000, dtype=torch.int64), torch.ones(4000, dtype=torch.bool)).action
    assert torch.bincount(actions, minlength=4).tolist() == pytest.approx([1000] * 4, abs=120)


def test_each_environment_tosses_its_own_coin() -> None:
    agent = make("q_learning", num_states=1, num_actions=2, epsilon_start=1.0, epsilon_end=1.0)
    policy = agent.policy(Mode("train"), 64, torch.Generator().manual_seed(0))
    acted = policy.act(torch.zeros(64, dtype=torch.int64), torch.ones(64, dtype=torch.bool))
    assert 0 < acted.action.sum() < 64
    assert acted.extras["probability"].tolist() == [0.5] * 64


def test_exploration_by_visits() -> None:
    agent = make("q_learning", epsilon_start=1.0, epsilon_end=0.1, epsilon_schedule="visits")
    agent.table.visits[:] = [[0, 0], [3, 1], [100, 0]]
    assert agent.behaviour.epsilon(np.array([0, 1, 2])).tolist() == [1.0, 0.25, 0.1]
    double = make("double_q_learning", epsilon_start=1.0, epsilon_end=0.1, epsilon_schedule="visits")
    double.first.visits[1], double.second.visits[1] = [2, 1], [1, 1]
    assert double.behaviour.epsilon(np.array([0, 1])).tolist() == [1.0, 0.2]


def test_linear_step_size_reaches_its_end_with_the_run() -> None:
    agent = make("q_learning", step_size=1.0, step_size_schedule="linear", step_size_end=0.0)  # a run of 100 steps
    agent.table.env_steps = 75
    assert agent.table.step_size(0, 0) == 0.25


@pytest.mark.parametrize(
    ("name", "settings", "backup"),
    [
        ("value_iteration", {}, greedy_value),
        ("policy_iteration", {}, greedy_value),
        ("value_iteration", {"backup": "soft", "temperature": 0.1}, lambda q: log_sum_exp_value(q, 0.1)),
    ],
)
def test_planners_act_out_the_exact_answer(name: str, settings: dict, backup: object) -> None:
    training = Training(name, lake(slippery=True), 2, 100, **settings)
    progress = training.advance(10)
    inspection = training.agent.inspect()
    assert progress.metrics[0]["train/start_value"] == pytest.approx(backup(inspection.q)[0])
    if backup is greedy_value:
        assert inspection.metrics["eval/policy_regret"] == pytest.approx(0, abs=1e-9)
        assert inspection.q.max(axis=1)[0] == pytest.approx(0.5420259320, abs=1e-8)


def test_the_epsilon_soft_planner_knows_what_exploring_costs() -> None:
    model = tabular_model(gym.make("CliffWalking-v1"), None)
    training = Training("value_iteration", model, 1, 10, gamma=1.0, backup="epsilon_soft", epsilon=0.1)
    inspection = training.agent.inspect()
    assert model.start @ evaluate_policy(model, inspection.policy, 1.0) == pytest.approx(-20.7076773987, abs=1e-8)
    assert inspection.metrics["eval/policy_regret"] == pytest.approx(7.7076773987, abs=1e-8)


def test_multi_discrete_observations_are_numbered_digit_by_digit() -> None:
    index = StateIndex(MultiDiscrete([32, 11, 2]), "Blackjack-v1")
    assert index.num_states == 704
    assert index(torch.tensor([[13, 2, 1], [0, 0, 0], [31, 10, 1]])).tolist() == [(13 * 11 + 2) * 2 + 1, 0, 703]


@pytest.mark.parametrize("name", [*LEARNERS, *PLANNERS])
def test_numbers_need_bins(name: str) -> None:
    algorithm = load_algorithm(name)
    spec = EnvSpec("CartPole-v1", Box(-1, 1, (4,)), Discrete(2), 1)
    with pytest.raises(ConfigError, match=r"need discrete observations; CartPole-v1 has Box|CartPole-v1 has none"):
        algorithm.make_agent(algorithm.Settings(), Task(spec, 1, torch.device("cpu"), Streams(0)))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("q_learning", {"gamma": 1.5}, r"agent.gamma must be in \[0, 1\], got 1.5"),
        ("q_learning", {"step_size": 0.0}, r"agent.step_size must be in \(0, 1\], got 0"),
        (
            "q_learning",
            {"step_size_schedule": "cosine"},
            "agent.step_size_schedule must be one of constant, linear, visits",
        ),
        ("q_learning", {"epsilon_end": 0.5}, r"agent.epsilon_end must be in \[0, 0.1\], got 0.5"),
        (
            "sarsa_lambda",
            {"trace": "eternal"},
            "agent.trace must be one of accumulating, replacing, dutch, got 'eternal'",
        ),
        ("sarsa_lambda", {"trace_decay": -0.1}, r"agent.trace_decay must be in \[0, 1\], got -0.1"),
        ("n_step_sarsa", {"n_step": 0}, "agent.n_step must be in"),
        ("monte_carlo", {"visit": "last"}, "agent.visit must be one of first, every, got 'last'"),
        ("monte_carlo", {"truncated_episodes": "keep"}, "agent.truncated_episodes must be one of drop, bootstrap"),
        ("softmax_q", {"backup": "mellow"}, "agent.backup must be one of sarsa, expected_sarsa, soft, got 'mellow'"),
        ("softmax_q", {"temperature_end": 0.0}, "agent.temperature_end must be above 0, got 0"),
        ("mc_softmax", {"temperature": float("nan")}, "agent.temperature must be above 0, got nan"),
        ("dyna_q", {"sweeping": "spring"}, "agent.sweeping must be one of uniform, prioritised, got 'spring'"),
        ("dyna_q", {"planning_steps": -1}, "agent.planning_steps must be in"),
        ("value_iteration", {"backup": "best"}, "agent.backup must be one of greedy, epsilon_soft, soft"),
    ],
)
def test_settings_outside_their_range_are_one_line(name: str, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_algorithm(name).Settings(**settings)


def test_continuous_actions_and_huge_tables_are_one_line() -> None:
    algorithm = load_algorithm("q_learning")
    for spec, message in (
        (
            EnvSpec("Car", Discrete(3), Box(-1, 1, (1,)), 1),
            "agent=q_learning chooses among discrete actions; Car has Box",
        ),
        (EnvSpec("Big", MultiDiscrete([10_000] * 3), Discrete(2), 1), "would need a table of 1e.12 states x 2 actions"),
    ):
        with pytest.raises(ConfigError, match=message):
            algorithm.make_agent(algorithm.Settings(), Task(spec, 1, torch.device("cpu"), Streams(0)))


def test_a_table_of_another_environment_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"table has shape \(3, 2\), this environment needs \(4, 2\)"):
        make("q_learning", num_states=4).load_policy_state_dict(make("q_learning").policy_state_dict())


def test_a_diverging_table_ends_the_run() -> None:
    agent = make("q_learning", step_size=1.0, gamma=1.0)
    agent.table.q[:2] = [[-1e308, -1e308], [1e308, 1e308]]
    with pytest.raises(NonFiniteError, match=r"an action value is not finite after 1 updates; lower agent\.step_size"):
        feed(agent, (0, 0, 0.0, 1))


def test_both_tables_of_double_q_learning_are_watched() -> None:
    agent = make("double_q_learning")
    metrics = feed(agent, *[(0, 0, 1.0, 1, TERMINAL)] * 20)
    assert agent.first.visits.sum() not in (0, 20)  # both have learned
    assert [m["train/n_updates"] for m in metrics] == list(range(1, 21))
    agent.first.q[:], agent.second.q[:] = np.nan, 0.0
    with pytest.raises(NonFiniteError):
        feed(agent, *[(0, 0, 0.0, 1, TERMINAL)] * 20)
    agent.first.q[:], agent.second.q[:] = 0.0, np.nan
    with pytest.raises(NonFiniteError):
        feed(agent, *[(0, 0, 0.0, 1, TERMINAL)] * 20)


def test_epsilon_greedy_is_what_the_policy_does() -> None:
    agent = make("q_learning", num_states=2, num_actions=3)
    agent.table.q[0] = [1.0, 1.0, 0.0]
    policy = agent.policy(Mode.parse("epsilon=0.3"), 2, torch.Generator())
    assert np.array_equal(policy.probabilities(np.array([0, 1])), epsilon_greedy(agent.table.q, 0.3))
