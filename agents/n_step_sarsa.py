"""n-step SARSA: n rewards, then the value of the action that was taken after them.

Sources:
    Sutton and Barto 2018, section 7.2.

Deviations from the source:
    1. N environments act at once and share the table: their updates follow one another in the order of the
       environments.
    2. At a time limit, which the book does not have, the steps still waiting are closed by the value of an action drawn
       for the state behind the limit; after a terminal they are closed by 0, as in the book.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from contract import State, Task
from faults import check_range
from memory.table import EpsilonGreedy, EpsilonSettings, Step, Successors, Table, TableLearner, value_table
from rules.tabular import returns_of


@dataclass(frozen=True)
class Settings(EpsilonSettings):
    """The `agent.*` keys: those of a table, of epsilon-greedy exploration (memory/table.py), and these."""

    algorithm: str = "n_step_sarsa"
    n_step: int = 4
    """Rewards before the bootstrap, at least 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("agent.n_step", self.n_step, 1, 1_000_000)


def make_agent(settings: Settings, task: Task) -> NStepSarsa:
    """Builds an n-step SARSA agent for `task`.

    Raises:
        ConfigError: if observations or actions are not discrete.
    """
    return NStepSarsa(settings, value_table(settings, task), task.spec.num_envs, task.streams.numpy("n_step_sarsa"))


class NStepSarsa(TableLearner):
    """Tabular n-step SARSA; see the module docstring for sources and deviations."""

    memory_bytes = 0

    def __init__(self, settings: Settings, table: Table, num_envs: int, generator: np.random.Generator) -> None:
        """Learns.

        Args:
            settings: the keys.
            table: Q.
            num_envs: N.
            generator: draws the action behind a time limit.
        """
        super().__init__(table, EpsilonGreedy(settings, table))
        self._settings = settings
        self._successors = Successors(self.behaviour, generator)
        self._waiting: list[list[Step]] = [[] for _ in range(num_envs)]  # the last n steps of each environment

    def learn(self, steps: list[Step]) -> None:
        for step, next_action in self._successors.pair(steps):
            waiting = self._waiting[step.env]
            waiting.append(step)
            if len(waiting) < self._settings.n_step and not step.episode_end:
                continue
            last_value = 0.0 if step.terminal else float(self.table.values(step.next_state)[next_action])
            returns = returns_of([w.reward for w in waiting], self._settings.gamma, last_value)
            ready = len(waiting) if step.episode_end else 1
            for w, g in zip(waiting[:ready], returns[:ready], strict=True):
                self.table.update(w.state, w.action, g, 0.0, 0.0)  # the bootstrap is part of G
            del waiting[:ready]

    def state_dict(self) -> State:
        return super().state_dict() | {
            "successors": self._successors.state_dict(),
            "waiting": [[list(step) for step in steps] for steps in self._waiting],
        }

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._successors.load_state_dict(state["successors"])
        self._waiting = [[Step(*row) for row in rows] for rows in state["waiting"]]
