"""SARSA: on-policy control with a table.

Sources:
    Rummery and Niranjan 1994, "On-line Q-learning using connectionist systems".
    Sutton and Barto 2018, section 6.4.

Deviations from the sources:
    1. N environments act at once and share the table: their updates follow one another in the order of the
       environments.
    2. Each update waits for the next step, whose action it needs; that action was chosen before the update, as in the
       book.
    3. At a time limit, which the book does not have, the value behind the limit is that of an action drawn for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from contract import State, Task
from memory.table import EpsilonGreedy, EpsilonSettings, Step, Successors, Table, TableLearner, value_table


@dataclass(frozen=True)
class Settings(EpsilonSettings):
    """The `agent.*` keys: those of a table and of epsilon-greedy exploration (memory/table.py)."""

    algorithm: str = "sarsa"


def make_agent(settings: Settings, task: Task) -> Sarsa:
    """Builds a SARSA agent for `task`.

    Raises:
        ConfigError: if observations or actions are not discrete.
    """
    return Sarsa(settings, value_table(settings, task), task.streams.numpy("sarsa"))


class Sarsa(TableLearner):
    """Tabular SARSA; see the module docstring for sources and deviations."""

    def __init__(self, settings: Settings, table: Table, generator: np.random.Generator) -> None:
        """Learns.

        Args:
            settings: the keys.
            table: Q.
            generator: draws the action behind a time limit.
        """
        super().__init__(table, EpsilonGreedy(settings, table))
        self._gamma = settings.gamma
        self._successors = Successors(self.behaviour, generator)

    def learn(self, steps: list[Step]) -> None:
        for step, next_action in self._successors.pair(steps):
            next_value = float(self.table.values(step.next_state)[next_action])  # Q(s', a')
            self.table.update(step.state, step.action, step.reward, step.discount(self._gamma), next_value)

    def state_dict(self) -> State:
        return super().state_dict() | {"successors": self._successors.state_dict()}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._successors.load_state_dict(state["successors"])
