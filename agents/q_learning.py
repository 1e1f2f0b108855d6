"""Q-learning: off-policy control with a table.

Sources:
    Watkins 1989, "Learning from Delayed Rewards"; Watkins and Dayan 1992, Machine Learning 8.
    Sutton and Barto 2018, section 6.5.

Deviations from the sources:
    1. N environments act at once and share the table: their updates follow one another in the order of the
       environments.
"""

from __future__ import annotations

from dataclasses import dataclass

from contract import Task
from memory.table import EpsilonGreedy, EpsilonSettings, Step, Table, TableLearner, value_table
from rules.tabular import greedy_value


@dataclass(frozen=True)
class Settings(EpsilonSettings):
    """The `agent.*` keys: those of a table and of epsilon-greedy exploration (memory/table.py)."""

    algorithm: str = "q_learning"


def make_agent(settings: Settings, task: Task) -> QLearning:
    """Builds a Q-learning agent for `task`.

    Raises:
        ConfigError: if observations or actions are not discrete.
    """
    return QLearning(settings, value_table(settings, task))


class QLearning(TableLearner):
    """Tabular Q-learning; see the module docstring for sources and deviations."""

    def __init__(self, settings: Settings, table: Table) -> None:
        super().__init__(table, EpsilonGreedy(settings, table))
        self._gamma = settings.gamma

    def learn(self, steps: list[Step]) -> None:
        for step in steps:
            next_value = float(greedy_value(self.table.values(step.next_state)))  # max_a' Q(s', a')
            self.table.update(step.state, step.action, step.reward, step.discount(self._gamma), next_value)
