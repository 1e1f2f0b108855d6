"""A planner that knows the map: follows the optimal route, stops for lights, cars and pedestrians, learns nothing.

    driving       of the actions that are safe and legal now, take the one from which the goal is fewest steps away;
                  brake if there is none
    a table       value iteration, then the greedy action

Sources:
    Bellman 1957, "Dynamic Programming".

Deviations from the sources:
    1. With other traffic the driving planner is a heuristic: it replans at every step as if nothing else moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contract import Acted, Metrics, Mode, Obs, State, Task, Transition, device_of
from faults import ConfigError, check_range
from rules.planning import value_iteration

BRAKE = 4


@dataclass(frozen=True)
class Settings:
    """The `agent.*` keys."""

    algorithm: str = "planner"
    gamma: float = 0.99
    """Discount of value iteration, in [0, 1)."""

    def __post_init__(self) -> None:
        check_range("agent.gamma", self.gamma, 0, 0.999999)


@runtime_checkable
class Prospects(Protocol):
    """The privileged view of a driving environment."""

    def prospects(self) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
        """(N, 5) steps from there to the goal, and (N, 5) whether the action is safe and legal now."""
        ...


def make_agent(settings: Settings, task: Task) -> Planner:
    """Builds the planner.

    Raises:
        ConfigError: if the environment has no model to plan with.
    """
    if not (is_table(task.spec.model) or isinstance(task.spec.model, Prospects)):
        raise ConfigError(f"agent=planner needs an environment with a model, which {task.spec.env_id} has not")
    return Planner(settings.gamma, task.spec.model)


def is_table(model: Any) -> bool:
    """Whether a model is a table of outcomes (`envs.tables.TabularModel`)."""
    return isinstance(getattr(model, "num_states", None), int)


class PlannerPolicy:
    """Plans anew at every step, or with a table once."""

    def __init__(self, gamma: float, model: Any) -> None:
        self._gamma = gamma
        self.read_model(model)

    def read_model(self, model: Any) -> None:
        self._view = None if is_table(model) else model
        self._best_action: Tensor | None = None
        if is_table(model):
            q, _ = value_iteration(model, self._gamma)  # (S, A)
            self._best_action = torch.from_numpy(q.argmax(axis=1))

    def act(self, obs: Obs, episode_start: Tensor) -> Acted:
        if self._best_action is not None:
            assert isinstance(obs, Tensor)
            return Acted(self._best_action.to(obs.device)[obs])
        assert self._view is not None
        steps, safe = self._view.prospects()
        never = np.iinfo(steps.dtype).max
        cost = np.where(safe, steps, never)
        action = np.where(safe.any(axis=1), cost.argmin(axis=1), BRAKE)
        return Acted(torch.from_numpy(action).to(device_of(obs)))

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        pass


class Planner:
    """See the module docstring."""

    memory_bytes = 0

    def __init__(self, gamma: float, model: Any) -> None:
        self._gamma, self._model = gamma, model

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> PlannerPolicy:
        return PlannerPolicy(self._gamma, self._model)

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
