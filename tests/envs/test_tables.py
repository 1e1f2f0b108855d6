"""The dynamics as arrays, and stepping through them."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit

from contract import Streams
from envs.make import make_env
from envs.settings import GymnasiumSettings
from envs.tables import TableVecEnv, TabularModel, tabular_model
from rules.planning import evaluate_policy, policy_dynamics

TWO_STATES = {
    0: {0: [(0.5, 1, 1.0, False), (0.25, 1, 3.0, False), (0.25, 0, -1.0, True)], 1: [(1.0, 0, 0.0, False)]},
    1: {0: [(1.0, 0, 2.0, True)], 1: [(1.0, 1, 0.0, False)]},
}


def two_states(limit: int | None = None) -> TabularModel:
    return TabularModel.from_outcomes(TWO_STATES, np.array([1.0, 0.0]), limit)


def test_arrays_hold_every_outcome_and_padding_has_no_weight() -> None:
    model = two_states()
    assert (model.num_states, model.num_actions, model.next_state.shape) == (2, 2, (2, 2, 3))
    assert model.probability[0, 0].tolist() == [0.5, 0.25, 0.25]
    assert model.cumulative[0, 0].tolist() == [0.5, 0.75, 1.0]
    assert model.probability[0, 1].tolist() == [1.0, 0.0, 0.0]
    assert model.cumulative[0, 1].tolist() == [1.0, 1.0, 1.0]
    assert model.terminal[0, 0].tolist() == [False, False, True]


def test_the_same_next_state_is_accumulated_and_terminal_outcomes_leave_the_chain() -> None:
    chain, reward = policy_dynamics(two_states(), np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert chain.tolist() == [[0.0, 0.75], [0.0, 0.0]]
    assert reward.tolist() == [0.5 + 0.75 - 0.25, 2.0]
    assert evaluate_policy(two_states(), np.array([[1.0, 0.0], [1.0, 0.0]]), 0.5).tolist() == [1 + 0.5 * 0.75 * 2, 2]


def test_probabilities_must_sum_to_one() -> None:
    with pytest.raises(ValueError, match="must sum to 1"):
        TabularModel.from_outcomes({0: {0: [(0.5, 0, 0.0, True)]}}, np.ones(1))


@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "Taxi-v4"])
def test_gymnasiums_tables(env_id: str) -> None:
    env = gym.make(env_id)
    model = tabular_model(env, 7)
    assert model is not None
    assert model.probability.sum(axis=2) == pytest.approx(np.ones((model.num_states, model.num_actions)))
    assert model.max_episode_steps == 7
    grid = {"FrozenLake-v1": (4, 4), "FrozenLake8x8-v1": (8, 8), "CliffWalking-v1": (4, 12), "Taxi-v4": None}
    assert model.shape == grid[env_id]
    for s in (0, model.num_states // 2):
        for a in range(model.num_actions):
            assert model.probability[s, a] @ model.reward[s, a] == pytest.approx(
                sum(p * r for p, _, r, _ in env.unwrapped.P[s][a])
            )


def test_no_table_where_the_dynamics_are_not_told() -> None:
    assert tabular_model(gym.make("Blackjack-v1"), None) is None
    assert tabular_model(gym.make("CartPole-v1"), None) is None
    assert tabular_model(gym.make("Taxi-v4", fickle_passenger=True), None) is None


def test_the_host_environment_passes_the_model_and_its_time_limit_on() -> None:
    env = make_env(GymnasiumSettings("CliffWalking-v1", max_episode_steps=30), 2, Streams(0), "train")
    assert isinstance(env.spec.model, TabularModel)
    assert env.spec.model.max_episode_steps == 30
    env.close()


def test_table_env_follows_the_dynamics() -> None:
    env = TableVecEnv(two_states(), 20_000, np.random.default_rng(0))
    env.reset()
    step = env.step(torch.zeros(20_000, dtype=torch.int64))
    reward = step.transition.reward
    assert [float((reward == r).float().mean()) for r in (1.0, 3.0, -1.0)] == pytest.approx([0.5, 0.25, 0.25], abs=0.01)
    assert torch.equal(step.transition.terminal, reward == -1.0)
    assert torch.equal(step.transition.terminal, step.transition.episode_end)
    assert len(step.episodes) == int(step.transition.terminal.sum())


def test_table_env_ends_an_episode_at_the_limit_without_calling_it_terminal() -> None:
    env = TableVecEnv(two_states(limit=3), 1, np.random.default_rng(0))
    env.reset()
    steps = [env.step(torch.tensor([1])) for _ in range(3)]
    assert [bool(s.transition.episode_end) for s in steps] == [False, False, True]
    assert not steps[-1].transition.terminal.any()
    assert steps[-1].episodes[0].length_env_steps == 3


def test_table_env_shows_observations_instead_of_states() -> None:
    env = TableVecEnv(two_states(), 1, np.random.default_rng(0), observation=np.array([1, 0]))
    assert env.reset().tolist() == [1]
    assert env.spec.model is None


def test_table_env_continues_from_its_state() -> None:
    env = TableVecEnv(two_states(limit=5), 8, np.random.default_rng(1))
    env.reset()
    actions = [torch.from_numpy(np.random.default_rng(t).integers(2, size=8)) for t in range(12)]
    for action in actions[:5]:
        env.step(action)
    state = env.state_dict()
    expected = [env.step(action) for action in actions[5:]]
    other = TableVecEnv(two_states(limit=5), 8, np.random.default_rng(99))
    other.load_state_dict(state)
    for action, step in zip(actions[5:], expected, strict=True):
        again = other.step(action)
        assert all(torch.equal(a, b) for a, b in zip(again.transition, step.transition, strict=True))
        assert again.episodes == step.episodes


def test_table_env_and_gymnasium_agree_on_the_distribution_of_returns() -> None:
    env = TimeLimit(gym.make("FrozenLake-v1").unwrapped, 20)
    model = tabular_model(env, 20)
    assert model is not None
    table = TableVecEnv(model, 4000, np.random.default_rng(0))
    table.reset()
    actions = [1, 2]  # alternately down and right
    ends = [table.step(torch.full((4000,), actions[t % 2])).transition for t in range(6)]
    reached = float(sum((e.terminal & (e.reward == 1)).sum() for e in ends)) / 4000
    wins = 0
    env.reset(seed=0)
    for _ in range(2000):
        env.reset()
        for t in range(6):
            _, reward, terminated, _, _ = env.step(actions[t % 2])
            wins += int(reward)
            if terminated:
                break
    assert reached == pytest.approx(wins / 2000, abs=0.02)
