"""Uniformly random actions: the floor that everything else is compared with. Works on any action space.

Sources:
    None.

Deviations from the sources:
    None. Continuous actions are uniform between their bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from contract import Acted, Metrics, Mode, Obs, State, Task, Transition
from faults import ConfigError


@dataclass(frozen=True)
class Settings:
    """The `agent.*` keys."""

    algorithm: str = "random"


def make_agent(settings: Settings, task: Task) -> Random:
    """Builds a random agent for `task`.

    Raises:
        ConfigError: if the actions are neither discrete nor bounded numbers.
    """
    space = task.spec.action_space
    if not isinstance(space, Discrete) and not (isinstance(space, Box) and space.is_bounded()):
        raise ConfigError(f"agent=random needs discrete or bounded actions; {task.spec.env_id} has {space}")
    return Random(space)


class RandomPolicy:
    """Acts uniformly, whatever the mode."""

    def __init__(self, space: Discrete | Box, generator: torch.Generator) -> None:
        self._space = space
        self._generator = generator

    def act(self, obs: Obs, episode_start: Tensor) -> Acted:
        n, device = len(episode_start), self._generator.device
        if isinstance(self._space, Discrete):
            action = torch.randint(int(self._space.n), (n,), generator=self._generator, device=device)
        else:
            low, high = (torch.from_numpy(np.asarray(bound)).to(device) for bound in (self._space.low, self._space.high))
            uniform = torch.rand((n, *low.shape), generator=self._generator, device=device)
            action = low + (high - low) * uniform
        return Acted(action.to(episode_start.device))

    def state_dict(self) -> State:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: State) -> None:
        self._generator.set_state(state["generator"])


class Random:
    """The random agent: it has nothing to learn."""

    memory_bytes = 0

    def __init__(self, space: Discrete | Box) -> None:
        self._space = space

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> RandomPolicy:
        return RandomPolicy(self._space, generator)

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
