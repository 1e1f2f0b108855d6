"""A2C against Stable-Baselines3, and on probes with a known answer."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
import stable_baselines3
import torch

from agents import a2c
from memory.actor import Experience, actor_critic_loss
from tests.agents import actor_critic as oracle
from tests.probes import PROBES, host, task, train

GAMMA = 0.98


@pytest.mark.parametrize("space", [oracle.DISCRETE, oracle.CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize("normalize", [True, False])
def test_one_update_equals_stable_baselines3(space: gym.Space[Any], normalize: bool) -> None:
    model = oracle.peer(
        stable_baselines3.A2C, space, ent_coef=0.01, vf_coef=0.25, gae_lambda=0.8, normalize_advantage=normalize
    )
    settings = a2c.Settings(
        gamma=oracle.GAMMA,
        gae_lambda=0.8,
        rollout_steps=oracle.T,
        entropy_coef=0.01,
        value_coef=0.25,
        normalize_advantage=normalize,
    )
    agent = a2c.make_agent(settings, oracle.task(space))
    oracle.copy_weights(agent.net, model)
    oracle.play(agent, model)
    model._logger = stable_baselines3.common.logger.Logger(None, [])
    model._current_progress_remaining = 1.0
    model.train()

    experience = Experience.of(agent.rollout, agent.net, oracle.GAMMA, 0.8, torch.device("cpu"))
    loss, figures = actor_critic_loss(
        agent.net,
        agent._distribution,
        experience,
        settings.value_coef,
        settings.entropy_coef,
        settings.normalize_advantage,
    )
    loss.backward()
    theirs = model.logger.name_to_value
    for name in ("policy_loss", "value_loss", "entropy_loss"):
        assert float(figures[f"train/{name}"]) == pytest.approx(theirs[f"train/{name}"], abs=1e-6), name
    wanted = oracle.peer_gradients(agent.net, model)
    for name, gradient in oracle.gradients(agent.net).items():
        assert gradient == pytest.approx(wanted[name], abs=1e-6), name
        assert abs(wanted[name]).max() > 1e-4


def test_one_step_of_the_optimizer_equals_stable_baselines3() -> None:
    model = oracle.peer(stable_baselines3.A2C, oracle.DISCRETE, vf_coef=0.5, gae_lambda=1.0)
    agent = a2c.make_agent(a2c.Settings(gamma=oracle.GAMMA, rollout_steps=oracle.T), oracle.task(oracle.DISCRETE))
    oracle.copy_weights(agent.net, model)
    oracle.play(agent, model)
    model._logger = stable_baselines3.common.logger.Logger(None, [])
    model.lr_schedule, model.max_grad_norm, model._current_progress_remaining = lambda _: 7e-4, 0.5, 1.0
    model.train()
    agent.update()
    theirs = dict(model.policy.named_parameters())
    for name, other in oracle.names(agent.net).items():
        ours = dict(agent.net.named_parameters())[name]
        assert ours.detach().numpy() == pytest.approx(theirs[other].detach().numpy(), abs=1e-6), name


def learned_value(settings: a2c.Settings, cut_bootstrap: bool = False, env_steps: int = 8_000) -> float:
    env = host(PROBES["time limit"], 8)
    agent = a2c.make_agent(settings, task(env, env_steps))
    if cut_bootstrap:
        observe = agent.observe
        agent.observe = lambda t, a: observe(t._replace(terminal=t.terminal | t.episode_end), a)  # type: ignore[method-assign]
    train(agent, env, env_steps)
    net = agent.net
    with torch.no_grad():
        return float(net(torch.zeros(1, 1), net.initial_state(1), torch.ones(1, dtype=torch.bool))[1])


def test_a_constant_reward_under_a_time_limit_has_the_value_of_a_life_without_end() -> None:
    settings = a2c.Settings(gamma=0.9, learning_rate=1e-2, learning_rate_end=0.0, hidden_sizes=[16])
    assert learned_value(settings) == pytest.approx(10.0, abs=0.2)  # 1 / (1 - 0.9)
    cut = learned_value(settings, cut_bootstrap=True)
    assert cut < 5.7  # even eight rewards of a whole episode are worth no more: (1 - 0.9**8) / (1 - 0.9)


@pytest.mark.parametrize("probe", ["best of two actions", "action for the observation"])
def test_probes(probe: str) -> None:
    env = host(PROBES[probe], 16)
    agent = a2c.make_agent(a2c.Settings(learning_rate=3e-3, hidden_sizes=[16]), task(env))
    train(agent, env, 6_000)
    net, obs = agent.net, torch.tensor([[-1.0], [1.0]])
    probability = net(obs, net.initial_state(2), torch.ones(2, dtype=torch.bool))[0].softmax(-1)
    right = [0, 1] if probe == "action for the observation" else [0, 0]
    assert (probability[[0, 1], right] > 0.9).all()
