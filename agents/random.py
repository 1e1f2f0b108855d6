"""Uniformly random actions: the baseline that every score stands beside.

Sources:
    none.

Deviations from the sources:
    none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from contract import Acted, EnvSpec, Metrics, Mode, Obs, State, Task, Transition, device_of
from faults import ConfigError


@dataclass(frozen=True)
class Settings:
    """The `agent.*` keys."""

    algorithm: str = "random"


def make_agent(settings: Settings, task: Task) -> Random:
    """Builds the agent.

    Raises:
        ConfigError: if the action space is neither discrete nor bounded.
    """
    return Random(task.spec)


class RandomPolicy:
    """Draws actions uniformly from the action space."""

    def __init__(self, spec: EnvSpec, num_envs: int, generator: torch.Generator) -> None:
        space = spec.action_space
        bounded = isinstance(space, Box) and space.is_bounded()
        if not isinstance(space, Discrete) and not bounded:
            raise ConfigError(f"{spec.env_id} has actions of type {space}, which cannot be drawn uniformly")
        self._space, self._num_envs, self._generator = space, num_envs, generator

    def act(self, obs: Obs, episode_start: Tensor) -> Acted:
        own, home = self._generator.device, device_of(obs)
        if isinstance(self._space, Discrete):
            shape = (self._num_envs,)
            return Acted(torch.randint(int(self._space.n), shape, generator=self._generator, device=own).to(home))
        assert isinstance(self._space, Box)
        low, high = (torch.from_numpy(bound).to(home) for bound in (self._space.low, self._space.high))
        share = torch.rand(self._num_envs, *low.shape, generator=self._generator, device=own).to(home)
        return Acted(low + (high - low) * share)

    def state_dict(self) -> State:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: State) -> None:
        self._generator.set_state(state["generator"])


class Random:
    """Acts at random and learns nothing."""

    memory_bytes = 0

    def __init__(self, spec: EnvSpec) -> None:
        self._spec = spec

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> RandomPolicy:
        return RandomPolicy(self._spec, num_envs, generator)

    def observe(self, transition: Transition, acted: Acted) -> None:
        pass

    def update(self) -> Metrics:
        return {}

    def policy_state_dict(self) -> State:
        return {}

    def load_policy_state_dict(self, state: State) -> None:
        pass

    def state_dict(self) -> State:
        return {"policy": {}}

    def load_state_dict(self, state: State) -> None:
        pass
