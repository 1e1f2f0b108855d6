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
import torch

from contract import Acted, Inspection, Metrics, Mode, State, Task, Transition
from memory.table import EpsilonGreedy, EpsilonSettings, Step, Successors, Table, TablePolicy
from rules.tabular import draw_action


@dataclass(frozen=True)
class Settings(EpsilonSettings):
    """The `agent.*` keys: those of a table and of epsilon-greedy exploration (memory/table.py)."""

    algorithm: str = "sarsa"


def make_agent(settings: Settings, task: Task) -> Sarsa:
    """Builds a SARSA agent for `task`.

    Raises:
        ConfigError: if observations or actions are not discrete.
    """
    return Sarsa(settings, Table(settings, task), task.streams.numpy("sarsa"))


class Sarsa:
    """Tabular SARSA; see the module docstring for sources and deviations."""

    memory_bytes = 0

    def __init__(self, settings: Settings, table: Table, generator: np.random.Generator) -> None:
        """Learns.

        Args:
            settings: the keys.
            table: Q.
            generator: draws the action behind a time limit.
        """
        self._gamma = settings.gamma
        self.table = table
        self.behaviour = EpsilonGreedy(settings, table)
        self._generator = generator
        self._successors = Successors()
        self._steps: list[Step] = []

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> TablePolicy:
        return TablePolicy(self.table.index, lambda states: self.table.q[states], self.behaviour, mode, generator)

    def observe(self, transition: Transition, acted: Acted) -> None:
        self._steps = self.table.rows(transition, acted)

    def update(self) -> Metrics:
        for step, next_action in self._successors.pair(self._steps):
            discount = 0.0 if step.terminal else self._gamma
            if next_action is None:
                next_policy = self.behaviour(np.array([step.next_state]))
                next_action = int(draw_action(next_policy, self._generator.random(1))[0])
            next_value = float(self.table.q[step.next_state, next_action])  # Q(s', a')
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
        return {
            "policy": self.policy_state_dict(),
            "table": self.table.state_dict(),
            "successors": self._successors.state_dict(),
            "generator": self._generator.bit_generator.state,
        }

    def load_state_dict(self, state: State) -> None:
        self.load_policy_state_dict(state["policy"])
        self.table.load_state_dict(state["table"])
        self._successors.load_state_dict(state["successors"])
        self._generator.bit_generator.state = state["generator"]
