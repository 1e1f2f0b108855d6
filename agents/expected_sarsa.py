"""Expected SARSA: on-policy control whose target averages over the next action instead of drawing it.

Sources:
    van Seijen, van Hasselt, Whiteson and Wiering 2009, "A theoretical and empirical analysis of Expected Sarsa".
    Sutton and Barto 2018, section 6.6.

Deviations from the sources:
    1. N environments act at once and share the table: their updates follow one another in the order of the
       environments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from contract import Task
from memory.table import EpsilonGreedy, EpsilonSettings, Step, Table, TableLearner, value_table
from rules.tabular import expected_value


@dataclass(frozen=True)
class Settings(EpsilonSettings):
    """The `agent.*` keys: those of a table and of epsilon-greedy exploration (memory/table.py)."""

    algorithm: str = "expected_sarsa"


def make_agent(settings: Settings, task: Task) -> ExpectedSarsa:
    """Builds an expected SARSA agent for `task`.

    Raises:
        ConfigError: if observations or actions are not discrete.
    """
    return ExpectedSarsa(settings, value_table(settings, task))


class ExpectedSarsa(TableLearner):
    """Tabular expected SARSA; see the module docstring for sources and deviations."""

    def __init__(self, settings: Settings, table: Table) -> None:
        super().__init__(table, EpsilonGreedy(settings, table))
        self._gamma = settings.gamma

    def learn(self, steps: list[Step]) -> None:
        for step in steps:
            next_policy = self.behaviour(np.array([step.next_state]))[0]  # pi(a'|s')
            next_value = float(expected_value(self.table.values(step.next_state), next_policy))
            self.table.update(step.state, step.action, step.reward, step.discount(self._gamma), next_value)
