"""Every deep agent learns from camera, radar and map together, and resumes with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict

from agents import load_algorithm
from contract import EnvSpec, Mode, Streams, Task
from envs import settings as env_settings
from envs.make import make_env
from memory.continuous import ActionBounds, ContinuousPolicy
from tests.agents.test_agent_contract import assert_same_state
from training.config import TrainConfig, compose_config, typed
from training.loop import Interaction

NUM_ENVS = 4
LEARN_SOON = [
    "agent.replay_capacity=64",
    "agent.learning_starts_env_steps=32",
    "agent.samples_per_env_step=0.25",
    "agent.batch_size=4",
]
OPTIONS = {
    "dqn": LEARN_SOON,
    "rainbow": LEARN_SOON,
    "softmax_dqn": LEARN_SOON,
    "r2d2": [*LEARN_SOON, "agent.sequence_length=2", "agent.burn_in=1"],
    "deep_sarsa": ["agent.rollout_steps=8", "agent.minibatch_size=16"],
    "pqn": ["agent.rollout_steps=8", "agent.minibatch_size=16"],
    "ppo": ["agent.rollout_steps=8", "agent.batch_size=16"],
    "a2c": ["agent.rollout_steps=8"],
}


class Session:
    """One agent on the driving grid with all its senses."""

    def __init__(self, name: str) -> None:
        env_settings.register_environments()
        chosen = ["env=Driving/Traffic-v0", "env.obs=fusion", "env.size=12", "env.num_cities=1", f"num_envs={NUM_ENVS}"]
        small = ["agent.backbone=nips_cnn", "agent.hidden_sizes=[8]"]
        plain = compose_config([f"agent={name}", *chosen, *OPTIONS[name], *small], env_settings)
        streams = Streams(0)
        env_config = typed(env_settings.settings_class("Driving/Traffic-v0"), plain["env"], "env")
        env = make_env(env_config, NUM_ENVS, streams, "train")
        algorithm = load_algorithm(plain["agent"]["algorithm"])
        settings = typed(algorithm.Settings, plain["agent"], "agent")
        steps = typed(TrainConfig, plain).total_env_steps
        self.agent: Any = algorithm.make_agent(settings, Task(env.spec, steps, torch.device("cpu"), streams))
        policy = self.agent.policy(Mode("train"), NUM_ENVS, streams.torch("policy"))
        self.interaction = Interaction(self.agent, env, policy)


@pytest.mark.parametrize("name", OPTIONS)
def test_it_learns_and_is_restored_whole(name: str) -> None:
    session, restored = Session(name), Session(name)
    session.interaction(20 * NUM_ENVS)
    assert session.agent.state_dict()["counters"]["updates"] > 0
    restored.agent.load_state_dict(session.agent.state_dict())
    assert_same_state(session.agent.state_dict(), restored.agent.state_dict())


def test_a_continuous_policy_reads_several_senses() -> None:
    spec = EnvSpec("senses", Dict(a=Box(-1, 1, (1,)), b=Box(-1, 1, (1,))), Box(-2.0, 2.0, (1,), np.float32), num_envs=2)
    bounds = ActionBounds(spec, "sac", torch.device("cpu"))
    policy = ContinuousPolicy(
        lambda obs: obs["a"] / 10 + obs["b"],
        lambda obs, _: obs["a"],
        lambda: False,
        bounds,
        torch.device("cpu"),
        Mode("greedy"),
        torch.Generator(),
    )
    obs = {"a": torch.tensor([[1.0], [2.0]]), "b": torch.tensor([[0.0], [0.5]])}
    torch.testing.assert_close(policy.act(obs, torch.ones(2, dtype=torch.bool)).action, torch.tensor([[0.2], [1.4]]))
