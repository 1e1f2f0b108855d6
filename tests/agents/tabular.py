"""Helpers of the tabular tests: scripted steps, and training on a table."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Discrete

from agents import load_algorithm
from contract import Acted, EnvSpec, Mode, Streams, Task, Transition
from envs.tables import TableVecEnv, TabularModel, tabular_model
from training.loop import Interaction

TERMINAL, LIMIT = "terminal", "limit"
LEARNERS = {
    "q_learning": {},
    "double_q_learning": {},
    "sarsa": {},
    "expected_sarsa": {},
    "sarsa_lambda": {},
    "n_step_sarsa": {},
    "monte_carlo": {"truncated_episodes": "bootstrap"},
    "softmax_q": {"backup": "sarsa"},
    "mc_softmax": {"truncated_episodes": "bootstrap"},
    "dyna_q": {"sweeping": "prioritised"},
}
"""Every agent that learns a table, with settings that exercise all of its state."""


def make(name: str, num_states: int | gym.Space = 3, num_actions: int = 2, num_envs: int = 1, **settings: Any) -> Any:
    """An agent for a world that only the test knows; `num_states` may be its space of observations."""
    algorithm = load_algorithm(name)
    space = Discrete(num_states) if isinstance(num_states, int) else num_states
    spec = EnvSpec("test", space, Discrete(num_actions), num_envs)
    return algorithm.make_agent(algorithm.Settings(**settings), Task(spec, 100, torch.device("cpu"), Streams(0)))


def feed(agent: Any, *steps: tuple, probability: float = 1.0) -> list[dict[str, Any]]:
    """Shows an agent (state, action, reward, next state[, TERMINAL or LIMIT]), one environment, learning after each."""
    metrics = []
    for state, action, reward, next_state, *end in steps:
        transition = Transition(
            torch.tensor([state]),
            torch.tensor([action]),
            torch.tensor([float(reward)]),
            torch.tensor([next_state]),
            torch.tensor([end == [TERMINAL]]),
            torch.tensor([bool(end)]),
            torch.tensor([True]),
        )
        agent.observe(transition, Acted(transition.action, {"probability": torch.tensor([probability])}))
        metrics.append(agent.update())
    return metrics


def lake(limit: int | None = 100, slippery: bool = False) -> TabularModel:
    model = tabular_model(gym.make("FrozenLake-v1", is_slippery=slippery), limit)
    assert model is not None
    return model


class Training:
    """An agent, a table environment, and the loop's way to advance."""

    def __init__(
        self, name: str, model: TabularModel, num_envs: int, total: int, seed: int = 0, **settings: Any
    ) -> None:
        streams = Streams(seed)
        algorithm = load_algorithm(name)
        env = TableVecEnv(model, num_envs, streams.numpy("env"))
        task = Task(env.spec, total, torch.device("cpu"), streams)
        self.agent = algorithm.make_agent(algorithm.Settings(**settings), task)
        policy = self.agent.policy(Mode("train"), num_envs, streams.torch("policy"))
        self.advance = Interaction(self.agent, env, policy)


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of a nested state, by path, as plain values."""
    if isinstance(tree, dict):
        return {k: v for key, node in tree.items() for k, v in leaves(node, f"{path}/{key}").items()}
    return {path: np.asarray(tree).tolist() if isinstance(tree, np.ndarray | torch.Tensor) else tree}
