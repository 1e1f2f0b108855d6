"""The textbook's environments, and Blackjack's dynamics."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs.settings import family, settings_class
from envs.tables import tabular_model
from envs.textbook import IDS, register
from envs.textbook.blackjack import HIT, NATURAL, STICK, blackjack_model
from rules.planning import evaluate_policy, value_iteration

register()


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.filterwarnings("ignore")
def test_gymnasiums_checks(env_id: str) -> None:
    check_env(gym.make(env_id).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("env_id", IDS)
def test_the_family_has_defaults_of_its_own(env_id: str) -> None:
    assert family(env_id) == "textbook"
    assert settings_class(env_id).__name__ == "GymnasiumSettings"


@pytest.mark.parametrize("env_id", [i for i in IDS if "Bias" not in i])
def test_steps_follow_the_table(env_id: str) -> None:
    env = gym.make(env_id, render_mode="rgb_array").unwrapped
    model = tabular_model(env, None)
    assert model is not None
    state, _ = env.reset(seed=0)
    for t in range(200):
        action = t % model.num_actions
        next_state, reward, terminated, truncated, _ = env.step(action)
        outcome = (model.next_state[state, action] == next_state) & (model.reward[state, action] == reward)
        outcome &= (model.terminal[state, action] == terminated) & (model.probability[state, action] > 0)
        assert outcome.any()
        assert not truncated
        state = env.reset()[0] if terminated else next_state
    rows, columns = model.shape
    assert env.render().shape == (32 * rows, 32 * columns, 3)


def test_wind_lifts_by_the_column_that_is_left() -> None:
    env = gym.make("Textbook/WindyGridworld-v0").unwrapped

    def move(row: int, column: int, action: int) -> tuple[int, int]:
        ((_, cell, reward, _),) = env.P[row * 10 + column][action]
        assert reward == -1
        return divmod(cell, 10)

    up, right, down, left = range(4)
    assert move(3, 0, right) == (3, 1)  # no wind
    assert move(3, 3, right) == (2, 4)  # one up
    assert move(3, 6, right) == (1, 7)  # two up
    assert move(3, 6, down) == (2, 6)
    assert move(0, 6, up) == (0, 6)  # the edge holds
    assert move(3, 9, right) == (3, 9)
    assert move(4, 8, left) == (3, 7)  # the goal
    assert env.P[4 * 10 + 8][left][0][3] is True


def test_stochastic_wind_varies_by_one_where_there_is_wind() -> None:
    env = gym.make("Textbook/WindyGridworld-v0", stochastic_wind=True, king_moves=True).unwrapped
    rows = [divmod(cell, 10)[0] for _, cell, _, _ in env.P[3 * 10 + 6][1]]
    assert rows == [2, 1, 0]
    assert len(env.P[3 * 10 + 0][1]) == 1


def test_walls_and_edges_of_the_dyna_maze_hold() -> None:
    env = gym.make("Textbook/DynaMaze-v0").unwrapped
    start = 2 * 9
    assert env.P[start][3] == [(1.0, start, 0.0, False)]  # left, over the edge
    assert env.P[start + 1][1] == [(1.0, start + 1, 0.0, False)]  # right, into the wall
    assert env.P[1 * 9 + 8][0] == [(1.0, 8, 1.0, True)]  # up, to the goal


def test_random_walk_arguments() -> None:
    env = gym.make("Textbook/RandomWalk-v0", num_states=19, left_reward=-1.0).unwrapped
    assert env.reset(seed=0)[0] == 10
    assert env.P[1][0] == [(0.5, 0, -1.0, True), (0.5, 2, 0.0, False)]
    with pytest.raises(ValueError, match="odd and positive, got 4"):
        gym.make("Textbook/RandomWalk-v0", num_states=4)


def test_maximization_bias() -> None:
    env = gym.make("Textbook/MaximizationBias-v0").unwrapped
    env.reset(seed=0)
    assert env.step(1)[:3] == (2, 0.0, True)
    rewards = []
    for action in range(2000):
        env.reset()
        assert env.step(2 * (action % 5))[:3] == (1, 0.0, False)
        state, reward, terminated, _, _ = env.step(action % 10)
        assert (state, terminated) == (2, True)
        rewards.append(reward)
    assert np.mean(rewards) == pytest.approx(-0.1, abs=0.07)
    assert np.std(rewards) == pytest.approx(1.0, abs=0.05)
    with pytest.raises(ValueError, match="even and at least 2, got 3"):
        gym.make("Textbook/MaximizationBias-v0", num_actions=3)


def test_blackjack_example_5_4() -> None:
    model, observation = blackjack_model()
    sticks = observation // 22 >= 20
    value = evaluate_policy(model, np.stack([sticks, ~sticks], axis=1).astype(float), 1.0)
    assert value[(13 * 11 + 2) * 2 + 1] == pytest.approx(-0.27726, abs=3e-4)  # the book's estimate


def test_blackjack_optimal_policy_is_basic_strategy() -> None:
    q, _ = value_iteration(blackjack_model()[0], 1.0)

    def sticks_from(dealer: int, ace: int) -> int:
        return min(t for t in range(12, 22) if np.diff(q[(t * 11 + dealer) * 2 + ace]) < 0)

    assert [sticks_from(d, 0) for d in range(1, 11)] == [17, 13, 13, 12, 12, 12, 17, 17, 17, 17]
    assert [sticks_from(d, 1) for d in range(2, 11)] == [18, 18, 18, 18, 18, 18, 18, 19, 19]
    assert q[NATURAL + 5, STICK] == 1.0


def test_blackjack_table_agrees_with_gymnasium() -> None:
    model, observation = blackjack_model()
    policy = np.where(observation // 22 >= 17, STICK, HIT)
    exact = float(model.start @ evaluate_policy(model, np.eye(2)[policy], 1.0))
    env = gym.make("Blackjack-v1").unwrapped
    env.reset(seed=0)
    returns = []
    for _ in range(20_000):
        (total, _, _), _ = env.reset()
        terminated = False
        while not terminated:
            (total, _, _), reward, terminated, _, _ = env.step(STICK if total >= 17 else HIT)
        returns.append(reward)
    assert np.mean(returns) == pytest.approx(exact, abs=4 * 0.95 / np.sqrt(20_000))
