"""Deep SARSA: its targets against the definition, known answers, time limits, and when it learns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from agents.deep_sarsa import DeepSarsa, Settings, make_agent, sarsa_returns
from contract import EnvSpec, Mode, Streams, Task, Transition
from faults import ConfigError
from tests.probes import PROBES, Probe, host, task, train

FAST = Settings(
    gamma=0.9,
    learning_rate=3e-3,
    rollout_steps=8,
    epochs=4,
    minibatch_size=32,
    target_sync_every_env_steps=50,
    epsilon_end=0.5,
    epsilon_decay_env_steps=1,
    hidden_sizes=[32],
)


class Table(nn.Module):
    """Action values of numbered states: obs (N, 1) -> (N, A)."""

    def __init__(self, q: Tensor) -> None:
        super().__init__()
        self.q = nn.Parameter(q)

    def forward(self, obs: Tensor) -> Tensor:
        return self.q[obs[:, 0].long()]


def some_steps(num_steps: int, num_envs: int, num_states: int, seed: int) -> Transition:
    generator = torch.Generator().manual_seed(seed)

    def states() -> Tensor:
        return torch.randint(num_states, (num_steps, num_envs, 1), generator=generator).float()

    terminal = torch.rand(num_steps, num_envs, generator=generator) < 0.15
    return Transition(
        obs=states(),
        action=torch.randint(3, (num_steps, num_envs), generator=generator),
        reward=torch.randn(num_steps, num_envs, generator=generator),
        next_obs=states(),
        terminal=terminal,
        episode_end=terminal | (torch.rand(num_steps, num_envs, generator=generator) < 0.15),
        valid=torch.ones(num_steps, num_envs, dtype=torch.bool),
    )


@pytest.mark.parametrize(
    "settings", [replace(FAST, n_step=n) for n in (1, 3, 8)] + [replace(FAST, lambda_=x) for x in (0.0, 0.7, 1.0)]
)
def test_targets_follow_the_definition(settings: Settings) -> None:
    """Row by row, forwards. At a time limit the policy is greedy here, so that what is drawn is known."""
    online, target = (Table(torch.randn(6, 3, generator=torch.Generator().manual_seed(k))) for k in (0, 1))
    steps = some_steps(8, 5, 6, seed=2)
    action_after = torch.tensor([0, 1, 2, 0, 1])
    found = sarsa_returns(online, target, steps, action_after, 0.0, settings, torch.Generator())

    def bootstrap(t: int, i: int) -> float:
        state = int(steps.next_obs[t, i, 0])  # type: ignore[index]
        if steps.episode_end[t, i]:
            action = int(online.q[state].argmax())
        else:
            action = int(steps.action[t + 1, i] if t < 7 else action_after[i])
        return float(target.q.detach()[state, action])

    def n_step_return(t: int, i: int, n: int) -> float:
        total, power = 0.0, 1.0
        for k in range(t, min(t + n, 8)):
            total += power * float(steps.reward[k, i])
            power *= 0.9
            if steps.terminal[k, i]:
                return total
            if steps.episode_end[k, i] or k == min(t + n, 8) - 1:
                return total + power * bootstrap(k, i)
        raise AssertionError

    def lambda_return(t: int, i: int) -> float:
        """Sutton and Barto 2018, equation 12.3, with the last return taking the remaining weight."""
        last = next(k for k in range(t, 8) if k == 7 or steps.episode_end[k, i]) - t + 1
        lam = settings.lambda_
        parts = [(1 - lam) * lam ** (n - 1) * n_step_return(t, i, n) for n in range(1, last)]
        return sum(parts) + lam ** (last - 1) * n_step_return(t, i, last)

    for t in range(8):
        for i in range(5):
            expected = n_step_return(t, i, settings.n_step) if settings.n_step else lambda_return(t, i)
            assert found[t, i].item() == pytest.approx(expected, abs=1e-5), (t, i)
    assert not found.requires_grad


def test_the_action_behind_a_time_limit_is_drawn_from_the_policy() -> None:
    online = Table(torch.tensor([[0.0, 5.0, 0.0]]))
    target = Table(torch.tensor([[1.0, 2.0, 3.0]]))
    ones, zeros = torch.ones(1, 30_000, dtype=torch.bool), torch.zeros(1, 30_000)
    obs = zeros[..., None]
    steps = Transition(obs, zeros.long(), zeros, obs, ~ones, ones, ones)
    after = torch.zeros(30_000, dtype=torch.int64)
    values = sarsa_returns(online, target, steps, after, 0.3, FAST, torch.Generator().manual_seed(0)) / 0.9
    shares = [(values.round() == v).float().mean().item() for v in (1.0, 2.0, 3.0)]
    np.testing.assert_allclose(shares, [0.1, 0.8, 0.1], atol=0.01)  # epsilon / 3 each, the rest to the greedy one


@pytest.mark.parametrize("form", [{"lambda_": 0.8}, {"n_step": 3}])
@pytest.mark.parametrize(
    ("probe", "obs", "expected"),
    [
        ("discount", [0.0, 1.0], [[0.9], [1.0]]),
        ("action for the observation", [1.0, -1.0], [[-1.0, 1.0], [1.0, -1.0]]),
        ("time limit", [0.0], [[10.0]]),
    ],
)
def test_learns_the_values_of_a_probe(
    form: dict[str, Any], probe: str, obs: list[float], expected: list[list[float]]
) -> None:
    env = host(PROBES[probe], 4)
    agent = make_agent(replace(FAST, **form), task(env))
    train(agent, env, 6_000 if probe == "time limit" else 2_500)
    with torch.no_grad():
        q = agent.q_net(torch.tensor(obs)[:, None]).numpy()
    np.testing.assert_allclose(q, expected, atol=0.3 if probe == "time limit" else 0.1)


def test_learns_the_values_of_its_own_policy_not_of_the_greedy_one() -> None:
    """Two steps: the first leads to state 1, where the actions pay +1 and -1. With epsilon 0.5 that is worth 0.5."""
    env = host(lambda: Probe(lambda r: 0, lambda t, o, a, r: (1, (1 - 2 * a) * (t == 1), t == 1, False), 2), 4)
    agent = make_agent(replace(FAST, lambda_=0.5, learning_rate_end=0.0), task(env, 6_000))
    train(agent, env, 6_000)
    with torch.no_grad():
        q = agent.q_net(torch.tensor([[0.0], [1.0]]))
    np.testing.assert_allclose(q[1], [1.0, -1.0], atol=0.1)
    np.testing.assert_allclose(q[0], [0.45, 0.45], atol=0.15)  # 0.9 * 0.5; Q-learning has 0.9


def some_agent(**changes: Any) -> DeepSarsa:
    spec = EnvSpec("test", Box(-1, 1, (3,), np.float32), Discrete(4), 2)
    return make_agent(replace(FAST, **changes), Task(spec, 1_000, torch.device("cpu"), Streams(0)))


def row(t: int, valid: bool = True) -> Transition:
    flags = torch.zeros(2, dtype=torch.bool)
    obs = torch.full((2, 3), float(t))
    return Transition(obs, torch.tensor([t % 4, 1]), torch.ones(2), obs + 1, flags, flags, torch.tensor([valid, True]))


def test_learns_one_step_late_and_every_step_once() -> None:
    agent = some_agent(rollout_steps=4, epochs=2, minibatch_size=3)
    learned_at = []
    for t in range(1, 15):
        agent.observe(row(t), None)  # type: ignore[arg-type]
        before = agent.learner.updates
        agent.update()
        if agent.learner.updates > before:
            learned_at.append(t)
            assert agent.learner.updates - before == 2 * 3  # 8 steps in minibatches of 3, twice
    assert learned_at == [5, 9, 13]


def test_empty_rows_are_not_learned_from() -> None:
    agent, seen = some_agent(rollout_steps=3, epochs=1, minibatch_size=100), []
    agent.q_net.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    for t in range(4):
        agent.observe(row(t, valid=t != 1), None)  # type: ignore[arg-type]
    agent.update()
    assert sorted(seen[-1][:, 0].tolist()) == [0.0, 0.0, 1.0, 2.0, 2.0]
    assert agent.learner.env_steps == 7


def test_settings_and_modes_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"agent\.n_step must be in \[1, 8\], got 9"):
        replace(FAST, n_step=9)
    with pytest.raises(ConfigError, match="no stochastic policy"):
        some_agent().policy(Mode("sample"), 2, torch.Generator())
