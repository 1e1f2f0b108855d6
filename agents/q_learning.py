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

import torch

from contract import Acted, Inspection, Metrics, Mode, State, Task, Transition
from memory.table import EpsilonGreedy, EpsilonSettings, Step, Table, TablePolicy
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
    return QLearning(settings, Table(settings, task))


class QLearning:
    """Tabular Q-learning; see the module docstring for sources and deviations."""

    memory_bytes = 0

    def __init__(self, settings: Settings, table: Table) -> None:
        self._gamma = settings.gamma
        self.table = table
        self.behaviour = EpsilonGreedy(settings, table)
        self._steps: list[Step] = []

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> TablePolicy:
        return TablePolicy(self.table.index, lambda states: self.table.q[states], self.behaviour, mode, generator)

    def observe(self, transition: Transition, acted: Acted) -> None:
        self._steps = self.table.rows(transition, acted)

    def update(self) -> Metrics:
        for step in self._steps:
            discount = 0.0 if step.terminal else self._gamma
            next_value = float(greedy_value(self.table.q[step.next_state]))  # max_a' Q(s', a')
            self.table.update(step.state, step.action, step.reward, discount, next_value)
        self._steps = []
        return self.table.metrics() | self.behaviour.metrics()

    def inspect(self) -> Inspection:
        return self.table.inspect()

    def policy_state_dict(self) -> State:
        return self.table.policy_state_dict()

    def load_policy_state_dict(self, state: State) -> None:
        self.table.load_policy_state_dict(state)

    def state_dict(self) -> State:
        return {"policy": self.policy_state_dict(), "table": self.table.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.load_policy_state_dict(state["policy"])
        self.table.load_state_dict(state["table"])
