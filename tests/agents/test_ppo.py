"""PPO against Stable-Baselines3, and on probes with a known answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium.spaces import Box

from agents import ppo
from contract import Mode, Streams
from envs.device.cartpole import make_cartpole
from memory.actor import Experience
from tests.agents import actor_critic as oracle
from tests.probes import PROBES, Cue, host, task, train
from tests.runs import equal_trees
from training import checkpoint
from training.loop import Interaction


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


def learned_value(gae_lambda: float, cut_bootstrap: bool = False, env_steps: int = 6_000) -> float:
    env = host(PROBES["time limit"], 8)
    settings = ppo.Settings(
        gamma=0.9,
        gae_lambda=gae_lambda,
        rollout_steps=20,
        num_epochs=4,
        batch_size=40,
        learning_rate=1e-2,
        learning_rate_end=0.0,
        hidden_sizes=[16],
    )
    agent = ppo.make_agent(settings, task(env, env_steps))
    if cut_bootstrap:
        observe = agent.observe
        agent.observe = lambda t, a: observe(t._replace(terminal=t.terminal | t.episode_end), a)  # type: ignore[method-assign]
    train(agent, env, env_steps)
    with torch.no_grad():
        return float(agent.net(torch.zeros(1, 1), torch.zeros(1, 0), torch.ones(1, dtype=torch.bool))[1])


def test_a_constant_reward_under_a_time_limit_has_the_value_of_a_life_without_end() -> None:
    assert learned_value(0.5) == pytest.approx(10.0, abs=0.2)  # 1 / (1 - 0.9)
    # Even the eight rewards of a whole episode are worth no more than (1 - 0.9**8) / (1 - 0.9).
    assert learned_value(0.5, cut_bootstrap=True) < 5.7


def answers_right(core: str, delay: int = 5, env_steps: int = 10_000) -> float:
    """Share of the questions that the trained, greedy policy answers right."""
    env = host(lambda: Cue(delay), 16)
    settings = ppo.Settings(
        rollout_steps=24,
        num_epochs=4,
        batch_size=96,
        learning_rate=5e-3,
        hidden_sizes=[16],
        core=core,
        core_dim=16,
        entropy_coef=0.01,
    )
    agent = ppo.make_agent(settings, task(env, env_steps))
    train(agent, env, env_steps)
    policy = agent.policy(Mode("greedy"), 16, torch.Generator())
    obs, start, returns = env.reset(), torch.ones(16, dtype=torch.bool), []
    for _ in range(10 * (delay + 2)):
        step = env.step(policy.act(obs, start).action)
        obs, start = step.obs, step.transition.episode_end
        returns += [episode.episode_return for episode in step.episodes]
    return sum(r > 0 for r in returns) / len(returns)


@pytest.mark.parametrize("core", ["lstm", pytest.param("gru", marks=pytest.mark.slow)])
def test_a_recurrent_policy_remembers_a_cue(core: str) -> None:
    assert answers_right(core) == 1.0


def test_without_memory_the_cue_is_forgotten() -> None:
    assert answers_right("none", env_steps=4_000) == pytest.approx(0.5, abs=0.15)


def test_device_environments_write_over_nothing_that_a_rollout_keeps() -> None:
    """Their tensors are theirs to reuse; replaying the rollout still gives the probabilities of acting."""
    env = make_cartpole(8, np.arange(8, dtype=np.uint32))
    settings = ppo.Settings(rollout_steps=64, core="lstm", core_dim=8, hidden_sizes=[8])
    agent = ppo.make_agent(settings, task(env))  # type: ignore[arg-type]
    policy = agent.policy(Mode("train"), 8, torch.Generator().manual_seed(0))
    agent.update = dict  # type: ignore[method-assign, assignment]
    Interaction(agent, env, policy)(8 * 64)
    rollout = agent.rollout
    experience = Experience.of(rollout, agent.net, 0.99, 0.95, torch.device("cpu"))
    parameters, value, _ = agent.net.unroll(experience.obs, experience.state, experience.episode_start)
    log_prob = agent._distribution.log_prob(parameters, experience.raw_action)
    assert torch.equal(experience.episode_start[1:], rollout.episode_end[:-1])
    assert experience.episode_start[1:].sum() > 8
    assert torch.allclose(log_prob, experience.log_prob, atol=1e-6)
    assert torch.allclose(value, experience.value, atol=1e-5)


@pytest.mark.parametrize("core", ["none", "lstm"])
def test_training_resumes_exactly_from_the_middle_of_a_rollout(core: str, tmp_path: Path) -> None:
    def session() -> tuple[ppo.PPO, Interaction]:
        env = host(lambda: Cue(3), 4)
        settings = ppo.Settings(rollout_steps=10, num_epochs=2, batch_size=20, hidden_sizes=[8], core=core, core_dim=8)
        agent = ppo.make_agent(settings, task(env))
        return agent, Interaction(agent, env, agent.policy(Mode("train"), 4, Streams(0).torch("policy")))

    agent, advance = session()
    advance(4 * 27)  # two updates, and seven steps of the third rollout
    checkpoint.save(
        tmp_path, "step_000000001", {"agent": agent.state_dict(), "advance": advance.state_dict()}, {"env_steps": 1}
    )
    advance(4 * 40)

    twin, twin_advance = session()
    state, _ = checkpoint.load(tmp_path / "step_000000001")
    twin.load_state_dict(state["agent"])
    twin_advance.load_state_dict(state["advance"])
    twin_advance(4 * 40)
    assert agent.state_dict()["counters"] == {"env_steps": 4 * 60, "updates": 6}
    assert equal_trees(twin.state_dict(), agent.state_dict())
    assert equal_trees(twin_advance.state_dict()["policy"], advance.state_dict()["policy"])


def test_an_update_ends_once_the_policy_has_moved_too_far() -> None:
    def batches(target_kl: float | None) -> int:
        env = host(PROBES["best of two actions"], 4)
        settings = ppo.Settings(
            rollout_steps=16, num_epochs=8, batch_size=16, learning_rate=0.05, target_kl=target_kl, hidden_sizes=[8]
        )
        agent = ppo.make_agent(settings, task(env))
        train(agent, env, 64)
        return int(next(iter(agent.optimizer.state.values()))["step"])

    assert batches(None) == 8 * 4
    assert 1 <= batches(0.01) < 8


def test_continuous_actions_find_the_best_one() -> None:
    """The reward is highest at action 0.5; both kinds of Gaussian go there."""

    class Target(gym.Env[Any, Any]):
        observation_space = Box(-1, 1, (1,), np.float32)
        action_space = Box(-1, 1, (1,), np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            return np.zeros(1, np.float32), {}

        def step(self, action: Any) -> Any:
            return np.zeros(1, np.float32), -float((action[0] - 0.5) ** 2), True, False, {}

    for gaussian in ("clipped", "tanh"):
        env = host(Target, 32)
        settings = ppo.Settings(rollout_steps=8, batch_size=64, learning_rate=0.01, hidden_sizes=[8], gaussian=gaussian)
        agent = ppo.make_agent(settings, task(env))
        train(agent, env, 6_000)
        action = agent.policy(Mode("greedy"), 1, torch.Generator()).act(torch.zeros(1, 1), torch.ones(1).bool()).action
        assert float(action) == pytest.approx(0.5, abs=0.1), gaussian
