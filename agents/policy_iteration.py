"""Policy iteration on the known model: evaluate a policy exactly, make it greedy, repeat until it stays.

Sources:
    Howard 1960; Sutton and Barto 2018, section 4.3.

Deviations from the sources:
    1. Values ignore a time limit: what is solved is the task without one.
    2. The first policy is the uniform one (see `rules.planning.policy_iteration`).
"""

from __future__ import annotations

from dataclasses import dataclass

from contract import Metrics, Task
from faults import ConfigError, check_range
from memory.table import PlannedTable, StateIndex, Yardstick, known_model
from rules.planning import policy_iteration
from rules.tabular import epsilon_greedy, greedy_value


@dataclass(frozen=True)
class Settings:
    """The `agent.*` keys."""

    algorithm: str = "policy_iteration"
    gamma: float = 0.99
    """Discount per environment step, in [0, 1]; 1 needs a way to the end from every state."""

    def __post_init__(self) -> None:
        check_range("agent.gamma", self.gamma, 0, 1)


def make_agent(settings: Settings, task: Task) -> PlannedTable:
    """Solves the environment of `task`.

    Raises:
        ConfigError: if its dynamics are unknown, or policies do not settle at this gamma.
    """
    model = known_model(task, settings.algorithm)
    try:
        q, evaluations = policy_iteration(model, settings.gamma)
    except ValueError as error:
        raise ConfigError(f"{error}; agent.gamma below 1 has an answer") from None
    index = StateIndex(task.spec.observation_space, task.spec.env_id)
    planned: Metrics = {
        "train/evaluations": float(evaluations),
        "train/start_value": float(model.start @ greedy_value(q)),
    }
    yardstick = Yardstick(model, settings.gamma)
    return PlannedTable(index, q, lambda states: epsilon_greedy(q[states], 0.0), yardstick, planned)
