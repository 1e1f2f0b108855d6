"""Every agent with a backbone can begin with another run's, fine-tune it or leave it alone."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor

from agents import load_algorithm
from contract import BringsAdvance, Donor, Mode, Streams, Task
from envs import settings as env_settings
from envs.make import EnvFactory, make_env
from tests.agents.test_agent_contract import NAMES, SMALL
from tests.probes import host, train
from training.config import compose_config, typed
from training.loop import Interaction
from training.transfer import flat

PLACES = ("q_net.0.", "net.backbone.", "net.value_backbone.", "target_q_net.0.")


def with_backbone(name: str) -> bool:
    plain = compose_config([f"agent={name}", "env=CartPole-v1"], env_settings)["agent"]
    return "backbone_init" in plain


env_settings.register_environments()
CONTINUOUS = ("ddpg", "td3", "sac")
AGENTS = [name for name in NAMES if with_backbone(name) and name not in CONTINUOUS]


def build(name: str, seed: int, freeze: bool = False, donor: Donor | None = None) -> tuple[Any, Any]:
    """The agent, and what trains it."""
    overrides = [f"agent={name}", "env=CartPole-v1", *SMALL.get(name, []), f"agent.backbone_freeze={freeze}"]
    plain = compose_config(overrides, env_settings)
    env_config = typed(env_settings.settings_class("CartPole-v1"), plain["env"], "env")
    streams = Streams(seed)
    env = make_env(env_config, 4, streams, "train")
    algorithm = load_algorithm(plain["agent"]["algorithm"])
    settings = typed(algorithm.Settings, plain["agent"], "agent")
    agent = algorithm.make_agent(settings, Task(env.spec, 10_000, torch.device("cpu"), streams, donor))
    if isinstance(agent, BringsAdvance):
        return agent, agent.advance(env, EnvFactory(env_config, streams))
    return agent, Interaction(agent, env, agent.policy(Mode("train"), 4, streams.torch("policy")))


def backbones(agent: Any) -> dict[str, Tensor]:
    """The tensors of all its backbones, targets included, by name."""
    state = agent.state_dict()
    tensors = flat(state["policy"]) | flat({"target_q_net": state.get("target_q_net", {})})
    return {name: tensor.clone() for name, tensor in tensors.items() if name.startswith(PLACES)}


@pytest.mark.parametrize("name", AGENTS)
def test_a_frozen_backbone_stays_what_it_was_given_while_the_rest_learns(name: str) -> None:
    other, _ = build(name, seed=1)
    agent, advance = build(name, 2, True, Donor("x", flat(other.policy_state_dict())))
    given = backbones(other)
    begun = backbones(agent)
    for key, tensor in begun.items():  # the value's own backbone begins as the policy's
        assert torch.equal(tensor, given[key.replace("value_backbone", "backbone")]), key
    before = {key: tensor.clone() for key, tensor in flat(agent.policy_state_dict()).items()}
    try:
        advance(512)
        after = flat(agent.policy_state_dict())
        for key, tensor in backbones(agent).items():
            assert torch.equal(tensor, begun[key]), key
        assert any(not torch.equal(after[key], before[key]) for key in before if not key.startswith(PLACES))
    finally:
        if hasattr(advance, "close"):
            advance.close()


@pytest.mark.parametrize("name", ["dqn", "ppo", "pqn"])
def test_a_backbone_that_may_change_does(name: str) -> None:
    other, _ = build(name, seed=1)
    agent, advance = build(name, 2, False, Donor("x", flat(other.policy_state_dict())))
    begun = backbones(agent)
    advance(512)
    assert all(not torch.equal(backbones(agent)[key], begun[key]) for key in begun if key.endswith("weight"))


class Patches(gym.Env[Any, Any]):
    """Random pictures; the action should be how bright they are."""

    observation_space, action_space = Box(0, 255, (1, 24, 24), np.uint8), Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._picture(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = -float(abs(action[0] - self._brightness))
        return self._picture(), reward, True, False, {}

    def _picture(self) -> np.ndarray:
        self._brightness = float(self.np_random.uniform(-1, 1))
        noise = self.np_random.integers(0, 50, (1, 24, 24))
        return (noise + 100 * (1 + self._brightness)).astype(np.uint8)


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("freeze", [True, False])
def test_continuous_agents_begin_with_a_backbone_for_actor_and_critic(name: str, freeze: bool) -> None:
    env = host(Patches, 4)
    algorithm = load_algorithm(name)
    settings = algorithm.Settings(
        backbone="small_cnn", backbone_freeze=freeze, hidden_sizes=[8], learning_starts_env_steps=16, batch_size=8,
        samples_per_env_step=4, replay_capacity=200,
    )  # fmt: skip

    def make(seed: int, donor: Donor | None) -> Any:
        return algorithm.make_agent(settings, Task(env.spec, 1000, torch.device("cpu"), Streams(seed), donor))

    def encoders(agent: Any) -> list[Tensor]:
        return [agent.actor.body.input_layer.first.weight, agent.critic.encoder.first.weight,
                agent.target_critic.encoder.linear.weight]  # fmt: skip

    other = make(1, None)
    agent = make(2, Donor("x", flat(other.policy_state_dict())))
    assert torch.equal(encoders(agent)[0], encoders(other)[0])
    assert torch.equal(encoders(agent)[1], encoders(other)[0])  # the donor's policy is all there is
    begun, head = [tensor.clone() for tensor in encoders(agent)], agent.actor.head.weight.clone()
    train(agent, env, 64)
    assert [torch.equal(a, b) for a, b in zip(encoders(agent), begun, strict=True)] == [freeze] * 3
    assert not torch.equal(agent.actor.head.weight, head)
