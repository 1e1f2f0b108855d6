"""Double Q-learning: two tables, each valuing the action that the other prefers, against the bias of the maximum.

Sources:
    van Hasselt 2010, "Double Q-learning", NeurIPS.
    Sutton and Barto 2018, section 6.7.

Deviations from the sources:
    1. N environments act at once and share the tables: their updates follow one another in the order of the
       environments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from contract import Acted, Inspection, Metrics, Mode, State, Task, Transition
from memory.table import EpsilonGreedy, EpsilonSettings, States, Step, Table, TablePolicy
from rules.tabular import Floats


@dataclass(frozen=True)
class Settings(EpsilonSettings):
    """The `agent.*` keys: those of a table and of epsilon-greedy exploration (memory/table.py)."""

    algorithm: str = "double_q_learning"


def make_agent(settings: Settings, task: Task) -> DoubleQLearning:
    """Builds a double Q-learning agent for `task`.

    Raises:
        ConfigError: if observations or actions are not discrete.
    """
    return DoubleQLearning(
        settings, Table(settings, task), Table(settings, task), task.streams.numpy("double_q_learning")
    )


class DoubleQLearning:
    """Tabular double Q-learning; see the module docstring for sources and deviations."""

    memory_bytes = 0

    def __init__(self, settings: Settings, first: Table, second: Table, generator: np.random.Generator) -> None:
        """Learns.

        Args:
            settings: the keys.
            first: Q1; counts the environment steps for both.
            second: Q2.
            generator: tosses the coin of each update.
        """
        self._gamma = settings.gamma
        self.first, self.second = first, second
        self.errors = second.errors = first.errors
        self.behaviour = EpsilonGreedy(settings, first, self.action_values, self.state_visits)
        self._generator = generator
        self._steps: list[Step] = []

    def action_values(self, states: States) -> Floats:
        """(N,) states -> (N, A): the mean of both tables."""
        return (self.first.q[states] + self.second.q[states]) / 2

    def state_visits(self, states: States) -> Floats:
        """(N,) states -> (N,): how often each has been learned from."""
        return self.first.state_visits(states) + self.second.state_visits(states)

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> TablePolicy:
        return TablePolicy(self.first.index, self.action_values, self.behaviour, mode, generator)

    def observe(self, transition: Transition, acted: Acted) -> None:
        self._steps = self.first.rows(transition, acted)
        self.second.env_steps = self.first.env_steps

    def update(self) -> Metrics:
        steps, self._steps = self._steps, []
        for step in steps:
            heads = self._generator.random() < 0.5
            learner, judge = (self.first, self.second) if heads else (self.second, self.first)
            best_action = self._argmax(learner.q[step.next_state])
            next_value = float(judge.q[step.next_state, best_action])  # Q2(s', argmax_a' Q1(s', a'))
            learner.update(step.state, step.action, step.reward, step.discount(self._gamma), next_value)
        return self.errors.metrics() | self.behaviour.metrics()

    def _argmax(self, q: Floats) -> int:
        """A best action; ties are broken at random, lest an early favourite of the first table biases the second."""
        return int(self._generator.choice(np.flatnonzero(q == q.max())))

    def inspect(self) -> Inspection:
        inspection = self.first.inspect(self.action_values(np.arange(self.first.index.num_states)))
        return inspection._replace(visits=self.first.visits + self.second.visits)

    def policy_state_dict(self) -> State:
        return {"first": self.first.policy_state_dict(), "second": self.second.policy_state_dict()}

    def load_policy_state_dict(self, state: State) -> None:
        self.first.load_policy_state_dict(state["first"])
        self.second.load_policy_state_dict(state["second"])

    def state_dict(self) -> State:
        return {
            "policy": self.policy_state_dict(),
            "errors": self.errors.state_dict(),
            "generator": self._generator.bit_generator.state,
        }

    def load_state_dict(self, state: State) -> None:
        self.load_policy_state_dict(state["policy"])
        self.errors.load_state_dict(state["errors"])
        self._generator.bit_generator.state = state["generator"]
