"""Tiny environments with a known answer, and the few lines that train an agent on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from contract import Agent, EnvSpec, Mode, Streams, Task
from envs.host import HostVecEnv, agent_view
from training.loop import Interaction


class Probe(gym.Env[Any, Any]):
    """Plays `script(t, obs, action, rng) -> (next obs, reward, terminated, truncated)` from `first(rng)`."""

    def __init__(self, first: Callable[..., float], script: Callable[..., tuple[Any, ...]], actions: int = 1) -> None:
        self.observation_space = Box(-10, 10, (1,), np.float32)
        self.action_space = Discrete(actions)
        self._first, self._script = first, script

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._t, self._value = 0, float(self._first(self.np_random))
        return np.array([self._value], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        value, reward, terminated, truncated = self._script(self._t, self._value, int(action), self.np_random)
        self._t, self._value = self._t + 1, float(value)
        return np.array([value], np.float32), float(reward), terminated, truncated, {}


class Cue(gym.Env[Any, Any]):
    """Shows a sign at the first step, nothing for `delay` steps, then asks for it: +1 for the right answer, -1 else.

    Observation: the sign or 0, and whether the question is asked now. No policy without memory earns more than 0.
    """

    def __init__(self, delay: int) -> None:
        self.observation_space = Box(-1, 1, (2,), np.float32)
        self.action_space = Discrete(2)
        self._delay = delay

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._t, self._sign = 0, sign(self.np_random)
        return np.array([self._sign, 0], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._t += 1
        ends = self._t > self._delay + 1
        reward = (1.0 if (action == 1) == (self._sign > 0) else -1.0) if ends else 0.0
        return np.array([0, self._t == self._delay + 1], np.float32), reward, ends, False, {}


def sign(rng: np.random.Generator) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0


PROBES: dict[str, Callable[[], Probe]] = {
    "value of a constant": lambda: Probe(lambda r: 0, lambda t, o, a, r: (0, 1, True, False)),
    "value of the observation": lambda: Probe(sign, lambda t, o, a, r: (o, o, True, False)),
    "discount": lambda: Probe(lambda r: 0, lambda t, o, a, r: (1, float(t == 1), t == 1, False)),
    "best of two actions": lambda: Probe(lambda r: 0, lambda t, o, a, r: (0, 1 if a == 0 else -1, True, False), 2),
    "action for the observation": lambda: Probe(
        sign, lambda t, o, a, r: (o, 1 if (a == 1) == (o > 0) else -1, True, False), 2
    ),
    "time limit": lambda: Probe(lambda r: 0, lambda t, o, a, r: (0, 1, False, t == 7)),
}
KNOWN: list[tuple[str, list[float], list[list[float]]]] = [
    ("value of a constant", [0.0], [[1.0]]),
    ("value of the observation", [1.0, -1.0], [[1.0], [-1.0]]),
    ("discount", [0.0, 1.0], [[0.9], [1.0]]),
    ("best of two actions", [0.0], [[1.0, -1.0]]),
    ("action for the observation", [1.0, -1.0], [[-1.0, 1.0], [1.0, -1.0]]),
    ("time limit", [0.0], [[10.0]]),
]
"""Probe, observations, the best possible values of their actions under gamma 0.9."""


def host(make: Callable[[], gym.Env[Any, Any]], num_envs: int, seed: int = 0) -> HostVecEnv:
    """An environment of the test behind the contract."""
    vector = SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
    action_space = vector.single_action_space
    spec = EnvSpec("probe", agent_view(vector.single_observation_space, "probe"), action_space, num_envs)
    return HostVecEnv(vector, spec, lambda i, k: Streams(seed).seed("probe", i, k), resets_by_mask=True)


def task(env: HostVecEnv, total_env_steps: int = 10_000, seed: int = 0) -> Task:
    return Task(env.spec, total_env_steps, torch.device("cpu"), Streams(seed))


def train(agent: Agent, env: HostVecEnv, env_steps: int, seed: int = 0) -> list[dict[str, Any]]:
    """Trains by the production interaction; returns the metrics of every update."""
    policy = agent.policy(Mode("train"), env.spec.num_envs, Streams(seed).torch("policy"))
    progress = Interaction(agent, env, policy)(env_steps)
    return [m for m in progress.metrics if m]
