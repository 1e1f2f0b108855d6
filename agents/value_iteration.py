"""Value iteration on the known model: the exact answer, acted out.

Sources:
    Bellman 1957; Sutton and Barto 2018, section 4.4.
    Haarnoja et al. 2017, arXiv:1702.08165 (`backup: soft`).

Deviations from the sources:
    1. Values ignore a time limit: what is solved is the task without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from contract import Metrics, Task
from faults import ConfigError, check_choice, check_range
from memory.table import PlannedTable, StateIndex, Yardstick, known_model
from rules.planning import Backup, value_iteration
from rules.tabular import epsilon_greedy, epsilon_soft_value, greedy_value, log_sum_exp_value, softmax


@dataclass(frozen=True)
class Settings:
    """The `agent.*` keys."""

    algorithm: str = "value_iteration"
    gamma: float = 0.99
    """Discount per environment step, in [0, 1]; 1 needs a way to the end from every state."""
    backup: str = "greedy"
    """greedy: the optimum; epsilon_soft: the best policy that explores with epsilon; soft: the log-sum-exp optimum."""
    epsilon: float = 0.1
    """Of the epsilon_soft backup."""
    temperature: float = 1.0
    """Of the soft backup, in the units of Q."""
    tolerance: float = 1e-10
    """Sweeps stop when no value moves by more."""

    def __post_init__(self) -> None:
        check_range("agent.gamma", self.gamma, 0, 1)
        check_choice("agent.backup", self.backup, ("greedy", "epsilon_soft", "soft"))
        check_range("agent.epsilon", self.epsilon, 0, 1)
        check_range("agent.temperature", self.temperature, 0, None, open_low=True)
        check_range("agent.tolerance", self.tolerance, 0, None, open_low=True)


def make_agent(settings: Settings, task: Task) -> PlannedTable:
    """Solves the environment of `task`.

    Raises:
        ConfigError: if its dynamics are unknown, or have no finite values at this gamma.
    """
    model = known_model(task, settings.algorithm)
    backups: dict[str, tuple[Backup, Backup]] = {
        "greedy": (greedy_value, partial(epsilon_greedy, epsilon=0.0)),
        "epsilon_soft": (
            partial(epsilon_soft_value, epsilon=settings.epsilon),
            partial(epsilon_greedy, epsilon=settings.epsilon),
        ),
        "soft": (
            partial(log_sum_exp_value, temperature=settings.temperature),
            partial(softmax, temperature=settings.temperature),
        ),
    }
    backup, policy = backups[settings.backup]
    try:
        q, sweeps = value_iteration(model, settings.gamma, backup, settings.tolerance)
    except ValueError as error:
        raise ConfigError(f"{error}; agent.gamma below 1 has an answer") from None
    index = StateIndex(task.spec.observation_space, task.spec.env_id)
    planned: Metrics = {"train/sweeps": float(sweeps), "train/start_value": float(model.start @ np.asarray(backup(q)))}
    return PlannedTable(index, q, lambda states: policy(q[states]), Yardstick(model, settings.gamma), planned)
