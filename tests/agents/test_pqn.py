"""PQN against known answers: targets by hand, probes, and what must not happen."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn

from agents.pqn import PQN, Settings, make_agent, q_lambda_targets
from contract import Acted, EnvSpec, Mode, Streams, Task, Transition
from envs.make import make_env
from envs.settings import GymnasiumSettings
from faults import ConfigError, NonFiniteError
from memory.rollout import Rollout
from tests.probes import KNOWN, PROBES, host, task, train
from training.evaluation import evaluate
from training.loop import Interaction
from training.on_device import RolloutInteraction

FAST = Settings(
    gamma=0.9,
    learning_rate=3e-3,
    rollout_steps=8,
    epochs=4,
    minibatch_size=32,
    epsilon_end=0.5,
    epsilon_decay_env_steps=1,
    hidden_sizes=[32],
)


class Table(nn.Module):
    """Action values read from a table: observation k has those of row k."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows, dtype=torch.float32))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.rows[obs.long().squeeze(1)]


def transition(obs, reward, next_obs, terminal, episode_end, valid=None) -> Transition:
    n = len(reward)
    column = lambda values: torch.tensor(values, dtype=torch.float32)[:, None]  # noqa: E731
    return Transition(
        obs=column(obs),
        action=torch.zeros(n, dtype=torch.int64),
        reward=torch.tensor(reward),
        next_obs=column(next_obs),
        terminal=torch.tensor(terminal),
        episode_end=torch.tensor(episode_end),
        valid=torch.tensor(valid or [True] * n),
    )


def test_targets_by_hand() -> None:
    """Three steps of three environments: one goes on, one ends after the first step, one meets a time limit there.

    max_a Q of observation 0, 1, 2, 3 and 9 is 1, 2, 3, 4 and 100; gamma is 1/2, lambda is 1/4.
    """
    q_net = Table([[1, 0], [2, 0], [0, 3], [4, -1], *[[0, 0]] * 5, [7, 100]])
    rollout = Rollout(3)
    for obs, next_obs, terminal, end, value in (
        ([0, 0, 0], [1, 9, 2], [False, True, False], [False, True, True], [1, 1, 1]),
        ([1, 1, 1], [2, 2, 2], [False] * 3, [False] * 3, [2, 2, 2]),
        ([2, 2, 2], [3, 3, 3], [False] * 3, [False] * 3, [3, 3, 3]),
    ):
        step = transition(obs, [8.0, 8.0, 8.0], next_obs, terminal, end)
        rollout.add(step, step.reward, {"value": torch.tensor(value, dtype=torch.float32)})
    # last step: 8 + 1/2 * 4; the one before: 8 + 1/2 * (3/4 * 3 + 1/4 * 10) = 10.375
    # first step: 8 + 1/2 * (3/4 * 2 + 1/4 * 10.375); the reward alone; 8 + 1/2 * 3 from the true last observation
    expected = [[10.046875, 8.0, 9.5], [10.375] * 3, [10.0] * 3]
    torch.testing.assert_close(q_lambda_targets(rollout, q_net, 0.5, 0.25), torch.tensor(expected))


@pytest.mark.parametrize(("probe", "obs", "expected"), KNOWN)
def test_learns_the_values_of_a_probe(probe: str, obs: list[float], expected: list[list[float]]) -> None:
    env = host(PROBES[probe], 16)
    agent = make_agent(replace(FAST, learning_rate=1e-2, learning_rate_end=0.0, minibatch_size=128), task(env, 8_000))
    train(agent, env, 8_000)
    with torch.no_grad():
        q = agent.q_net(torch.tensor(obs)[:, None]).numpy()
    np.testing.assert_allclose(q, expected, atol=0.3 if probe == "time limit" else 0.05)


NUMBER = Box(-10, 10, (1,), np.float32)


def small_agent(settings: Settings, num_envs: int = 2, space: gym.Space = NUMBER) -> PQN:
    spec = EnvSpec("test", space, Discrete(2), num_envs)
    return make_agent(settings, Task(spec, 1_000, torch.device("cpu"), Streams(0)))


def fill(agent: PQN, reward: list[float], valid: list[bool] | None = None) -> None:
    for t in range(agent.rollout.length):
        step = transition([t, -t], reward, [t + 1, -t - 1], [False, False], [False, False], valid)
        agent.observe(step, Acted(step.action, {"value": torch.zeros(2)}))


def weights(agent: PQN) -> list[torch.Tensor]:
    return [p.detach().clone() for p in agent.q_net.parameters()]


def test_learns_when_the_rollout_is_full_and_not_before() -> None:
    agent = small_agent(replace(FAST, rollout_steps=3))
    before = weights(agent)
    step = transition([0, 0], [1.0, 1.0], [1, 1], [False, False], [False, False])
    for _ in range(2):
        agent.observe(step, Acted(step.action, {"value": torch.zeros(2)}))
        assert agent.update() == {}
    assert all(map(torch.equal, before, weights(agent)))
    agent.observe(step, Acted(step.action, {"value": torch.zeros(2)}))
    assert agent.update()["train/n_updates"] == 4  # one minibatch, four epochs
    assert not all(map(torch.equal, before, weights(agent)))


def test_invalid_rows_teach_nothing() -> None:
    taught = []
    for reward in (3.0, 1e6):
        agent = small_agent(FAST)
        fill(agent, [1.0, reward], [True, False])
        agent.update()
        taught.append(weights(agent))
    assert all(map(torch.equal, *taught))


def test_a_bad_step_is_never_taken() -> None:
    agent = small_agent(FAST)
    before = weights(agent)
    fill(agent, [1.0, float("nan")])
    with pytest.raises(NonFiniteError, match="loss nan"):
        agent.update()
    assert all(map(torch.equal, before, weights(agent)))


def test_rewards_are_clipped_then_scaled_for_the_learner_only() -> None:
    agent = small_agent(replace(FAST, clip_reward=True, reward_scale=0.1))
    fill(agent, [7.0, 0.5])
    torch.testing.assert_close(agent.rollout.reward[0], torch.tensor([0.1, 0.05]))


def test_epsilon_and_learning_rate_follow_environment_steps() -> None:
    agent = small_agent(replace(FAST, epsilon_end=0.0, epsilon_decay_env_steps=32, learning_rate_end=0.0))
    policy = agent.policy(Mode("train"), 2, torch.Generator().manual_seed(0))
    assert float(policy._epsilon) == 1.0
    fill(agent, [1.0, 1.0])
    agent.update()
    assert float(policy._epsilon) == 0.5  # 16 of 32 steps
    assert agent.learning_rate == pytest.approx(3e-3 * (1 - 16 / 1000))
    fill(agent, [1.0, 1.0])
    agent.update()
    many = torch.zeros(100, 1)
    assert len(policy.act(many, torch.zeros(100, dtype=torch.bool)).action.unique()) == 1


@pytest.mark.parametrize(
    "space",
    [
        Box(0, 255, (4, 84, 84), np.uint8),
        Box(0, 20, (9, 9), np.uint8),
        gym.spaces.Dict({"camera": Box(0, 255, (3, 84, 84), np.uint8), "radar": Box(-1, 1, (5,), np.float32)}),
    ],
    ids=["images", "class codes", "several senses"],
)
def test_learns_from_every_kind_of_observation(space: gym.Space) -> None:
    agent = small_agent(replace(FAST, rollout_steps=2, epochs=1), 2, space)
    policy = agent.policy(Mode("train"), 2, torch.Generator())
    space.seed(0)

    def draw():
        samples = [space.sample() for _ in range(2)]
        if isinstance(space, gym.spaces.Dict):
            return {k: torch.from_numpy(np.stack([s[k] for s in samples])) for k in space}
        return torch.from_numpy(np.stack(samples))

    before = weights(agent)
    for _ in range(2):
        obs, no = draw(), torch.zeros(2, dtype=torch.bool)
        acted = policy.act(obs, no)
        agent.observe(Transition(obs, acted.action, torch.ones(2), draw(), no, no, ~no), acted)
    assert np.isfinite(float(agent.update()["train/loss"]))
    assert sum(not torch.equal(a, b) for a, b in zip(before, weights(agent), strict=True)) >= 5
    continued = small_agent(replace(FAST, rollout_steps=2, epochs=1), 2, space)
    continued.load_state_dict(agent.state_dict())
    assert all(map(torch.equal, weights(agent), weights(continued)))


def test_what_it_cannot_do_is_one_line() -> None:
    spec = EnvSpec("test", Box(-1, 1, (1,), np.float32), Box(-1, 1, (1,), np.float32), 1)
    with pytest.raises(ConfigError, match="agent=pqn chooses among discrete actions"):
        make_agent(FAST, Task(spec, 1, torch.device("cpu"), Streams(0)))
    with pytest.raises(ConfigError, match="no stochastic policy of its own"):
        small_agent(FAST).policy(Mode("sample"), 1, torch.Generator())
    with pytest.raises(ConfigError, match=r"agent\.lambda_ must be in \[0, 1\]"):
        Settings(lambda_=2.0)


CARTPOLE = Settings(
    lambda_=0.95,
    learning_rate=1e-3,
    learning_rate_end=0.0,
    rollout_steps=64,
    epochs=4,
    minibatch_size=512,
    epsilon_end=0.2,
    epsilon_decay_env_steps=40_000,
    reward_scale=0.1,
    hidden_sizes=[64, 64],
)


@pytest.mark.slow
@pytest.mark.parametrize("vectorization", ["device", "sync"])
def test_solves_cartpole(vectorization: str) -> None:
    solved = 0
    for seed in range(3):
        streams = Streams(seed)
        env = make_env(GymnasiumSettings("CartPole-v1", vectorization=vectorization), 64, streams, "train")
        agent = make_agent(CARTPOLE, Task(env.spec, 200_000, torch.device("cpu"), streams))
        generator = streams.torch("policy")
        policy = agent.policy(Mode("train"), 64, generator)
        if vectorization == "device":
            RolloutInteraction(agent, env, policy, generator)(200_000)
        else:
            Interaction(agent, env, policy)(200_000)
        test_env = make_env(GymnasiumSettings("CartPole-v1", vectorization="device"), 100, streams, "eval")
        episodes = evaluate(agent.policy(Mode("greedy"), 100, generator), test_env, 100)
        solved += np.mean([e.episode_return for e in episodes]) >= 475
    assert solved >= 2
