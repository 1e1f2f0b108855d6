"""Every agent with a backbone can begin with another run's, fine-tune it or leave it alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from agents import load_algorithm
from contract import BringsAdvance, Donor, Mode, Streams, Task
from envs import settings as env_settings
from envs.make import EnvFactory, make_env
from tests.agents.test_agent_contract import NAMES, SMALL
from training.config import compose_config, typed
from training.loop import Interaction
from training.transfer import flat

PLACES = ("q_net.0.", "net.backbone.", "net.value_backbone.", "target_q_net.0.")


def with_backbone(name: str) -> bool:
    plain = compose_config([f"agent={name}", "env=CartPole-v1"], env_settings)["agent"]
    return "backbone_init" in plain


env_settings.register_environments()
AGENTS = [name for name in NAMES if with_backbone(name)]


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
