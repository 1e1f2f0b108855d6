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
import torch

from contract import Acted, Inspection, Metrics, Mode, State, Task, Transition
from faults import check_range
from memory.table import EpsilonGreedy, EpsilonSettings, Step, Successors, Table, TablePolicy
from rules.tabular import draw_action, returns_of


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
    return NStepSarsa(settings, Table(settings, task), task.spec.num_envs, task.streams.numpy("n_step_sarsa"))


class NStepSarsa:
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
        self._settings = settings
        self.table = table
        self.behaviour = EpsilonGreedy(settings, table)
        self._generator = generator
        self._successors = Successors()
        self._waiting: list[list[Step]] = [[] for _ in range(num_envs)]  # the last n steps of each environment
        self._steps: list[Step] = []

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> TablePolicy:
        return TablePolicy(self.table.index, lambda states: self.table.q[states], self.behaviour, mode, generator)

    def observe(self, transition: Transition, acted: Acted) -> None:
        self._steps = self.table.rows(transition, acted)

    def update(self) -> Metrics:
        for step, next_action in self._successors.pair(self._steps):
            waiting = self._waiting[step.env]
            waiting.append(step)
            if len(waiting) < self._settings.n_step and not step.episode_end:
                continue
            returns = returns_of([w.reward for w in waiting], self._settings.gamma, self._last_value(step, next_action))
            ready = len(waiting) if step.episode_end else 1
            for w, g in zip(waiting[:ready], returns[:ready], strict=True):
                self.table.update(w.state, w.action, g, 0.0, 0.0)  # the bootstrap is part of G
            del waiting[:ready]
        self._steps = []
        return self.table.metrics() | self.behaviour.metrics()

    def _last_value(self, step: Step, next_action: int | None) -> float:
        """Q(s_{t+n}, a_{t+n}), 0 after a terminal."""
        if step.terminal:
            return 0.0
        if next_action is None:
            next_policy = self.behaviour(np.array([step.next_state]))
            next_action = int(draw_action(next_policy, self._generator.random(1))[0])
        return float(self.table.q[step.next_state, next_action])

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
            "waiting": [[list(step) for step in steps] for steps in self._waiting],
            "generator": self._generator.bit_generator.state,
        }

    def load_state_dict(self, state: State) -> None:
        self.load_policy_state_dict(state["policy"])
        self.table.load_state_dict(state["table"])
        self._successors.load_state_dict(state["successors"])
        self._waiting = [[Step(*row) for row in rows] for rows in state["waiting"]]
        self._generator.bit_generator.state = state["generator"]
