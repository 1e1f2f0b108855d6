"""PPO against Stable-Baselines3, and on probes with a known answer."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
import stable_baselines3
import torch

from agents import ppo
from memory.actor import Experience
from tests.agents import actor_critic as oracle


@pytest.mark.parametrize("space", [oracle.DISCRETE, oracle.CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize("normalize", [True, False])
def test_one_update_equals_stable_baselines3(space: gym.Space[Any], normalize: bool) -> None:
    model = oracle.peer(
        stable_baselines3.PPO,
        space,
        n_epochs=1,
        batch_size=oracle.T * oracle.N,
        ent_coef=0.01,
        vf_coef=0.25,
        gae_lambda=0.8,
        normalize_advantage=normalize,
    )
    settings = ppo.Settings(
        gamma=oracle.GAMMA,
        gae_lambda=0.8,
        rollout_steps=oracle.T,
        entropy_coef=0.01,
        value_coef=0.25,
        normalize_advantage=normalize,
    )
    agent = ppo.make_agent(settings, oracle.task(space))
    oracle.copy_weights(agent.net, model)
    oracle.play(agent, model)
    with torch.no_grad():  # an old policy that differs from the new one, so that some ratios are clipped
        noise = 0.2 * torch.randn(oracle.T, oracle.N, generator=torch.Generator().manual_seed(1))
        agent.rollout.extras["log_prob"] += noise
        model.rollout_buffer.log_probs += noise.numpy()
    model._logger = stable_baselines3.common.logger.Logger(None, [])
    model._current_progress_remaining = 1.0
    model.train()

    experience = Experience.of(agent.rollout, agent.net, oracle.GAMMA, 0.8, torch.device("cpu"))
    (batch,) = experience.minibatches(oracle.T * oracle.N, torch.Generator().manual_seed(0))
    loss, figures = ppo.ppo_loss(agent.net, agent._distribution, batch, settings, 0.2)
    loss.backward()
    theirs = model.logger.name_to_value
    for name in ("loss", "policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction"):
        assert float(figures[f"train/{name}"]) == pytest.approx(theirs[f"train/{name}"], abs=1e-6), name
    assert 0 < theirs["train/clip_fraction"] < 1
    wanted = oracle.peer_gradients(agent.net, model)
    assert wanted.keys() == dict(agent.net.named_parameters()).keys()
    for name, gradient in oracle.gradients(agent.net).items():
        assert gradient == pytest.approx(wanted[name], abs=1e-6), name
        assert abs(wanted[name]).max() > 1e-4
