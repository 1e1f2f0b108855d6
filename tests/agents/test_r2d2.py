"""Recurrent DQN: what a feed-forward agent cannot learn, stored states, burn-in, equality with DQN."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from agents import dqn
from agents.r2d2 import R2D2, Settings, head_of, make_agent, r2d2_loss, unroll
from contract import Batch, EnvSpec, Mode, Streams, Task
from faults import ConfigError
from memory.sequences import Sequences
from tests.probes import PROBES, Probe, host, sign, task, train
from tests.runs import only_run, run_train

FAST = Settings(
    gamma=0.9,
    learning_rate=5e-3,
    batch_size=128,
    samples_per_env_step=32,
    replay_capacity=2_000,
    learning_starts_env_steps=128,
    target_sync_every_env_steps=50,
    epsilon_end=0.3,
    epsilon_decay_env_steps=1_000,
    hidden_sizes=[],
    core_dim=16,
    burn_in=2,
    sequence_length=8,
    rescale_values=False,
)


def some_agent(num_envs: int = 2, **changes: Any) -> R2D2:
    spec = EnvSpec("test", Box(-1, 1, (3,), np.float32), Discrete(4), num_envs)
    return make_agent(replace(FAST, **changes), Task(spec, 1_000, torch.device("cpu"), Streams(0)))


def some_sequences(agent: R2D2, steps: int, batch: int, seed: int = 0, ends: float = 0.2) -> Sequences:
    generator = torch.Generator().manual_seed(seed)
    width = head_of(agent.q_net).core.state_dim
    terminal = torch.rand(steps, batch, generator=generator) < ends / 2
    episode_end = terminal | (torch.rand(steps, batch, generator=generator) < ends / 2)
    start = torch.cat([torch.zeros(1, batch, dtype=torch.bool), episode_end[:-1]])
    return Sequences(
        obs=torch.randn(steps, batch, 3, generator=generator),
        action=torch.randint(4, (steps, batch), generator=generator),
        reward=torch.randn(steps, batch, generator=generator),
        next_obs=torch.randn(steps, batch, 3, generator=generator),
        terminal=terminal,
        episode_end=episode_end,
        valid=torch.ones(steps, batch, dtype=torch.bool),
        episode_start=start,
        state=torch.randn(batch, width, generator=generator),
    )


# ---------------------------------------------------------------- what memory is for


class Recall(Probe):
    """A cue of +1 or -1, then zeros; the third action earns +1 if it names the cue, else -1."""

    def __init__(self) -> None:
        super().__init__(sign, self._play, actions=2)
        self._cue = 0.0

    def _play(self, t: int, obs: float, action: int, rng: np.random.Generator) -> tuple[Any, ...]:
        self._cue = obs if t == 0 else self._cue
        right = (action == 1) == (self._cue > 0)
        return 0, (1 if right else -1) * (t == 2), t == 2, False


@pytest.mark.parametrize("core", ["lstm", pytest.param("gru", marks=pytest.mark.slow)])
def test_remembers_what_it_saw(core: str) -> None:
    env = host(Recall, 4)
    agent = make_agent(replace(FAST, core=core), task(env))
    train(agent, env, 3_000)
    policy = agent.policy(Mode("greedy"), 2, torch.Generator())
    start = torch.tensor([True, True])
    for obs in ([[1.0], [-1.0]], [[0.0], [0.0]], [[0.0], [0.0]]):
        acted = policy.act(torch.tensor(obs), start)
        start = torch.zeros(2, dtype=torch.bool)
    assert acted.action.tolist() == [1, 0]
    np.testing.assert_allclose(acted.extras["q"], [[-1, 1], [1, -1]], atol=0.25)


@pytest.mark.parametrize("rescale_values", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_time_limit_is_no_end(rescale_values: bool) -> None:
    """Reward 1 for ever, worth 2 at gamma 0.5, in episodes of 8 steps, which an agent with a memory could count."""
    env = host(PROBES["time limit"], 4)
    agent = make_agent(replace(FAST, gamma=0.5, n_step=3, rescale_values=rescale_values), task(env))
    train(agent, env, 1_500)
    policy = agent.policy(Mode("greedy"), 1, torch.Generator())
    values = []
    for t in range(8):
        values.append(float(policy.act(torch.zeros(1, 1), torch.tensor([t == 0])).extras["q"]))
    expected = 3**0.5 - 1 + 0.001 * 2 if rescale_values else 2.0  # taken for an end, the last one would be 1
    np.testing.assert_allclose(values, expected, rtol=0.1)


@pytest.mark.slow
def test_large_returns_do_not_make_the_core_deaf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values learned as they are saturate the core on CartPole: all states alike, episodes of 10 steps after 10,000."""
    monkeypatch.chdir(tmp_path)
    assert run_train("agent=r2d2", "env=CartPole-v1", "total_env_steps=10_000", "eval.every_env_steps=0") == 0
    rows = [json.loads(line) for line in (only_run(tmp_path) / "metrics.jsonl").read_text().splitlines()]
    assert [row["rollout/ep_rew_mean"] for row in rows if "rollout/ep_rew_mean" in row][-1] > 60


# ---------------------------------------------------------------- unrolling


def test_values_do_not_depend_on_what_came_before_an_episode() -> None:
    agent = some_agent()
    one = some_sequences(agent, 6, 2, ends=0.0)
    one.episode_start[3] = True
    other = one._replace(obs=one.obs.clone(), state=torch.randn_like(one.state))
    other.obs[:3] = 7.0
    with torch.no_grad():
        first, second = (unroll(agent.q_net, s, burn_in=0) for s in (one, other))
    assert torch.equal(first.q[3:], second.q[3:])
    assert not torch.allclose(first.q[:3], second.q[:3])
    changed = one._replace(obs=one.obs.clone())
    changed.obs[:, 1] = 7.0
    with torch.no_grad():
        third = unroll(agent.q_net, changed, burn_in=0)
    torch.testing.assert_close(first.q[:, 0], third.q[:, 0])  # rows do not mix


def test_unrolling_repeats_what_the_policy_did() -> None:
    """From the stored states, with the weights that acted, the values are those of the moment of acting."""
    env = host(Recall, 2)
    agent = make_agent(replace(FAST, learning_starts_env_steps=10_000), task(env))
    policy = agent.policy(Mode("train"), 2, torch.Generator().manual_seed(0))
    obs, start, seen = env.reset(), torch.ones(2, dtype=torch.bool), {}
    for _ in range(40):
        acted = policy.act(obs, start)
        step = env.step(acted.action)
        agent.observe(step.transition, acted)
        for i in range(2):
            seen[tuple(acted.extras["state"][i].tolist()), float(obs[i, 0]), bool(start[i])] = acted.extras["q"][i]  # type: ignore[index]
        obs, start = step.obs, step.transition.episode_end
    sequences = agent.replay.sample(30)
    with torch.no_grad():
        q = unroll(agent.q_net, sequences, burn_in=2).q
    for b in range(30):
        key = tuple(sequences.state[b].tolist()), float(sequences.obs[0, b, 0]), bool(sequences.episode_start[0, b])
        torch.testing.assert_close(q[0, b], seen[key])
    ends = sequences.episode_end[:-1]
    assert torch.equal(sequences.episode_start[1:], ends)


def test_no_gradient_crosses_the_burn_in() -> None:
    agent = some_agent()
    sequences = some_sequences(agent, 10, 3, ends=0.0)
    sequences = sequences._replace(obs=sequences.obs.requires_grad_(), state=sequences.state.requires_grad_())
    loss, q = r2d2_loss(agent.q_net, agent.target_q_net, sequences, FAST)
    assert len(q) == 8 * 3
    gradient, to_state = torch.autograd.grad(loss, [sequences.obs, sequences.state], allow_unused=True)
    assert not gradient[:2].any()
    assert gradient[2:].any()
    assert to_state is None or not to_state.any()


def test_one_step_episodes_are_dqn() -> None:
    """A core that forgets at every step is a feed-forward layer: the loss is DQN's, on the same network."""
    agent = some_agent(burn_in=0, batch_size=126, sequence_length=6, double=True)
    sequences = some_sequences(agent, 6, 5, ends=0.0)
    sequences = sequences._replace(
        episode_start=torch.ones(6, 5, dtype=torch.bool), episode_end=torch.ones(6, 5, dtype=torch.bool),
        terminal=torch.rand(6, 5, generator=torch.Generator().manual_seed(3)) < 0.5,
    )  # fmt: skip
    agent.target_q_net = copy.deepcopy(agent.target_q_net)
    for p in agent.target_q_net.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(4))
    loss, _ = r2d2_loss(
        agent.q_net, agent.target_q_net, sequences, replace(FAST, burn_in=0, batch_size=126, sequence_length=6)
    )

    def as_dqn(net: Any) -> Any:
        """Feed-forward values; a next observation brings along the one that led to it."""

        def values(obs: torch.Tensor) -> torch.Tensor:
            backbone, head = net[0], net[1]
            zero = torch.zeros(len(obs), head.core.state_dim)
            q, after = head(backbone(obs[:, :3]), zero)
            if obs.shape[1] == 3:
                return q
            _, after = head(backbone(obs[:, 3:]), zero)  # the state that led to the next observation
            return head(backbone(obs[:, :3]), after)[0]

        return values

    flat = {
        name: getattr(sequences, name).flatten(0, 1) for name in ("obs", "action", "reward", "next_obs", "terminal")
    }
    batch = Batch(
        flat["obs"],
        flat["action"],
        flat["reward"],
        torch.cat([flat["next_obs"], flat["obs"]], dim=1),
        0.9 * (~flat["terminal"]).float(),
    )
    expected = dqn.td_loss(as_dqn(agent.q_net), as_dqn(agent.target_q_net), batch, double=True).loss
    torch.testing.assert_close(loss, expected)


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"agent\.learning_starts_env_steps must be at least 20, got 19"):
        some_agent(learning_starts_env_steps=19)
    with pytest.raises(ConfigError, match=r"agent\.sequence_length must be in \[1, 128\], got 129"):
        replace(FAST, sequence_length=129)
    with pytest.raises(ConfigError, match=r"must be a multiple of agent\.sequence_length \(7\), got 128"):
        replace(FAST, sequence_length=7)
    with pytest.raises(ConfigError, match=r"agent\.core must be one of lstm, gru, got 'none'"):
        replace(FAST, core="none")
