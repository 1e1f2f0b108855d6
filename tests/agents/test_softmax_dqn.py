"""Softmax-over-Q with a network: the exact soft fixed point, both limits of the temperature, its tuning, Munchausen."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from agents import dqn
from agents.softmax_dqn import Settings, SoftmaxDQN, make_agent, softmax_td_loss
from contract import Batch, EnvSpec, Mode, Streams, Task, Transition
from envs.tables import TabularModel, tabular_model
from faults import ConfigError
from rules.planning import value_iteration
from rules.tabular import boltzmann_value, log_sum_exp_value
from tests.probes import PROBES, host, task, train

FAST = Settings(
    gamma=0.9,
    learning_rate=3e-3,
    batch_size=32,
    samples_per_env_step=16,
    replay_capacity=1_000,
    learning_starts_env_steps=64,
    target_sync_every_env_steps=50,
    temperature_end=0.5,
    temperature_decay_env_steps=0,
    hidden_sizes=[32],
)


def some_agent(num_envs: int = 2, **changes: Any) -> SoftmaxDQN:
    spec = EnvSpec("test", Box(-1, 1, (3,), np.float32), Discrete(4), num_envs)
    return make_agent(replace(FAST, **changes), Task(spec, 1_000, torch.device("cpu"), Streams(0)))


def some_batch(seed: int = 0, size: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        obs=torch.randn(size, 3, generator=generator),
        action=torch.randint(4, (size,), generator=generator),
        reward=torch.randn(size, generator=generator),
        next_obs=torch.randn(size, 3, generator=generator),
        discount=torch.where(torch.rand(size, generator=generator) < 0.3, 0.0, 0.9),
    )


# ---------------------------------------------------------------- exact fixed points


def every_outcome(model: TabularModel, gamma: float) -> Batch:
    """All outcomes of all states and actions, three rows of each: on slippery ice every probability is a third or 1."""
    rows = np.rint(3 * model.probability).astype(int)
    assert (rows.sum(axis=2) == 3).all()
    s, a, k = (torch.from_numpy(np.repeat(i, rows[rows > 0])) for i in np.nonzero(rows))
    return Batch(
        obs=s,
        action=a,
        reward=torch.from_numpy(model.reward)[s, a, k].float(),
        next_obs=torch.from_numpy(model.next_state)[s, a, k].long(),
        discount=gamma * (~torch.from_numpy(model.terminal)[s, a, k]).float(),
    )


@pytest.mark.parametrize(("backup", "value"), [("soft", log_sum_exp_value), ("expected_sarsa", boltzmann_value)])
def test_one_hot_features_reach_the_exact_fixed_point(backup: str, value: Any) -> None:
    """A linear network on numbered states is a table; every error stays where Huber's loss is half the square."""
    gamma, temperature = 0.9, 0.1
    env = gym.make("FrozenLake-v1")
    model = tabular_model(env, None)
    assert model is not None
    expected, _ = value_iteration(model, gamma, lambda q: value(q, temperature))
    spec = EnvSpec("FrozenLake-v1", env.observation_space, env.action_space, 1)
    settings = replace(FAST, gamma=gamma, backup=backup, hidden_sizes=[], temperature_end=temperature)
    agent = make_agent(settings, Task(spec, 1_000, torch.device("cpu"), Streams(0)))
    for parameter in agent.q_net.parameters():
        torch.nn.init.zeros_(parameter)
    batch = every_outcome(model, gamma)
    optimizer = torch.optim.SGD([agent.q_net[1].q.weight], lr=len(batch.reward) / 3)  # a full step of each (s, a)
    for _ in range(400):
        agent.target_q_net.load_state_dict(agent.q_net.state_dict())
        loss = softmax_td_loss(agent.q_net, agent.target_q_net, batch, settings, agent.temperature).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        q = agent.q_net(torch.arange(16)).numpy()
    np.testing.assert_allclose(q, expected, atol=1e-5)
    assert np.ptp(expected) > 0.05


# ---------------------------------------------------------------- the limits of the temperature


@pytest.mark.parametrize("backup", ["soft", "expected_sarsa"])
def test_without_temperature_it_is_dqn_step_for_step(backup: str) -> None:
    shared = {k: v for k, v in vars(FAST).items() if k in vars(dqn.Settings()) and k != "algorithm"}
    cold = some_agent(backup=backup, temperature_end=1e-7)
    spec = EnvSpec("test", Box(-1, 1, (3,), np.float32), Discrete(4), 2)
    other = dqn.make_agent(
        dqn.Settings(**shared, epsilon_start=0.0, epsilon_end=0.0), Task(spec, 1_000, torch.device("cpu"), Streams(0))
    )
    policies = [agent.policy(Mode("train"), 2, torch.Generator().manual_seed(0)) for agent in (cold, other)]
    generator = torch.Generator().manual_seed(1)
    flags, start = torch.zeros(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)
    obs = torch.randn(2, 3, generator=generator)
    for step in range(120):
        actions = [policy.act(obs, start).action for policy in policies]
        assert torch.equal(*actions)
        next_obs, reward = torch.randn(2, 3, generator=generator), torch.randn(2, generator=generator)
        end = torch.full((2,), step % 7 == 0)
        for agent in (cold, other):
            agent.observe(Transition(obs, actions[0], reward, next_obs, end, end, ~flags), None)  # type: ignore[arg-type]
            agent.update()
        obs = next_obs
    assert cold.learner.updates == other.learner.updates > 80
    for p, q in zip(cold.q_net.parameters(), other.q_net.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=0)


def test_at_an_infinite_temperature_it_is_uniform_and_values_the_mean() -> None:
    hot = some_agent(temperature_end=1e6)
    obs, start = torch.randn(2, 3), torch.zeros(2, dtype=torch.bool)
    policy = hot.policy(Mode("sample"), 2, torch.Generator().manual_seed(0))
    counts = torch.bincount(torch.cat([policy.act(obs, start).action for _ in range(4_000)]), minlength=4)
    assert (counts / 8_000 - 0.25).abs().max() < 0.02
    batch = some_batch()
    result = softmax_td_loss(hot.q_net, hot.target_q_net, batch, FAST, 1e6)
    q = hot.q_net(batch.obs)[torch.arange(16), batch.action]
    target = batch.reward + batch.discount * hot.target_q_net(batch.next_obs).mean(1)
    torch.testing.assert_close(result.loss, torch.nn.functional.huber_loss(q, target))
    assert result.entropy.item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("backup", ["expected_sarsa", "soft"])
def test_acts_by_the_softmax_of_what_it_has_learned(backup: str) -> None:
    """The probe pays +1 or -1 for two actions, at once, so that both backups have the same values."""
    env = host(PROBES["best of two actions"], 4)
    agent = make_agent(replace(FAST, backup=backup), task(env))
    train(agent, env, 1_000)
    with torch.no_grad():
        q = agent.q_net(torch.zeros(1, 1))
    np.testing.assert_allclose(q, [[1.0, -1.0]], atol=0.05)
    policy = agent.policy(Mode("sample"), 4, torch.Generator().manual_seed(0))
    draws = [policy.act(torch.zeros(4, 1), torch.zeros(4, dtype=torch.bool)).action for _ in range(2_000)]
    # softmax of [1, -1] / 0.5
    assert torch.cat(draws).float().mean().item() == pytest.approx(1 / (1 + math.exp(4)), abs=0.01)


# ---------------------------------------------------------------- the temperature


def test_the_temperature_follows_environment_steps() -> None:
    agent = some_agent(temperature_start=1.0, temperature_end=0.1, temperature_decay_env_steps=100)
    assert agent.temperature == 1.0
    obs, flags = torch.zeros(2, 3), torch.zeros(2, dtype=torch.bool)
    step = Transition(obs, torch.zeros(2).long(), torch.zeros(2), obs, flags, flags, ~flags)
    for _ in range(25):
        agent.observe(step, None)  # type: ignore[arg-type]
    assert agent.temperature == pytest.approx(0.55)


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_the_temperature_is_tuned_to_the_target_entropy(share: float) -> None:
    agent = some_agent(target_entropy=share, temperature_learning_rate=0.1, learning_rate=1e-9)
    batch = some_batch(size=64)
    agent.replay.sample = lambda n: batch  # type: ignore[method-assign]
    for _ in range(600):
        metrics = agent._gradient_step()
    assert float(metrics["train/entropy"]) == pytest.approx(share * math.log(4), abs=1e-3)


def test_evaluation_samples_at_the_temperature_that_was_saved() -> None:
    agent, fresh = some_agent(target_entropy=0.5), some_agent(target_entropy=0.5)
    agent.temperature = 0.123
    fresh.load_policy_state_dict(copy.deepcopy(agent.policy_state_dict()))
    assert fresh.temperature == 0.123


# ---------------------------------------------------------------- Munchausen


def test_the_munchausen_target_by_hand() -> None:
    """Vieillard et al. 2020, equation 1, in their form: an expectation under the policy of the target network."""
    settings = replace(FAST, backup="soft", munchausen=0.9)
    agent, batch, tau = some_agent(backup="soft", munchausen=0.9), some_batch(), 0.3
    agent.target_q_net[1].q.bias.data += torch.tensor([0.3, -0.2, 0.0, 0.1])
    with torch.no_grad():
        log_policy = (agent.target_q_net(batch.obs) / tau).log_softmax(1)[torch.arange(16), batch.action]
        next_q = agent.target_q_net(batch.next_obs)
        next_log_policy = (next_q / tau).log_softmax(1)
        soft_value = (next_log_policy.exp() * (next_q - tau * next_log_policy)).sum(1)
        target = batch.reward + 0.9 * (tau * log_policy).clamp(-1, 0) + batch.discount * soft_value
        q = agent.q_net(batch.obs)[torch.arange(16), batch.action]
    result = softmax_td_loss(agent.q_net, agent.target_q_net, batch, settings, tau)
    torch.testing.assert_close(result.loss.detach(), torch.nn.functional.huber_loss(q, target))


def test_munchausen_needs_one_soft_step() -> None:
    for changes in ({"backup": "expected_sarsa"}, {"backup": "soft", "n_step": 3}):
        with pytest.raises(ConfigError, match=r"agent\.munchausen needs agent\.backup=soft and agent\.n_step=1"):
            replace(FAST, munchausen=0.9, **changes)
