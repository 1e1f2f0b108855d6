"""The softmax-over-Q policy: acts by pi(a|s) = exp(Q(s,a)/tau) / sum_b exp(Q(s,b)/tau), with a choice of backups.

    sarsa            Q(s', a') of the action taken         the sampled Boltzmann backup
    expected_sarsa   sum_a' pi(a'|s') Q(s', a')            the Boltzmann backup: no contraction, so its fixed point need
                                                           neither be unique nor be reached
    soft             tau log sum_a' exp(Q(s', a') / tau)   log-sum-exp: a contraction with a unique fixed point

Sources:
    Sutton and Barto 2018, equation 2.11 with preferences Q / tau, sections 6.4 and 6.6.
    Asadi and Littman 2017, arXiv:1612.05628 (what the Boltzmann backup lacks); Haarnoja et al. 2017, arXiv:1702.08165
    (soft backup).

Deviations from the sources:
    1. N environments act at once and share the table: their updates follow one another in the order of the
       environments.
    2. At a time limit, which the sources do not have, the `sarsa` backup draws an action for the state behind the
       limit.
    3. The values of the `soft` backup count tau times the entropy of every later choice as reward; reported returns do
       not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from contract import Metrics, State, Task
from faults import check_choice, check_range
from memory.table import States, Step, Successors, Table, TableLearner, TableSettings, value_table
from rules.schedules import linear_schedule
from rules.tabular import Floats, boltzmann_value, log_sum_exp_value, softmax


@dataclass(frozen=True)
class Settings(TableSettings):
    """The `agent.*` keys: those of a table (memory/table.py), and these."""

    algorithm: str = "softmax_q"
    backup: str = "expected_sarsa"
    """sarsa, expected_sarsa or soft."""
    temperature_start: float = 1.0
    """tau, in the units of Q."""
    temperature_end: float = 0.05
    temperature_decay_env_steps: int = 50_000
    """Environment steps over which tau falls linearly from start to end; 0: tau is temperature_end throughout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("agent.backup", self.backup, ("sarsa", "expected_sarsa", "soft"))
        check_range("agent.temperature_start", self.temperature_start, 0, None, open_low=True)
        check_range("agent.temperature_end", self.temperature_end, 0, None, open_low=True)
        check_range("agent.temperature_decay_env_steps", self.temperature_decay_env_steps, 0, None)


def make_agent(settings: Settings, task: Task) -> SoftmaxQ:
    """Builds a softmax-over-Q agent for `task`.

    Raises:
        ConfigError: if observations or actions are not discrete.
    """
    return SoftmaxQ(settings, value_table(settings, task), task.streams.numpy("softmax_q"))


class Softmax:
    """The policy that explores: softmax over the table's values, with tau scheduled."""

    def __init__(self, settings: Settings, table: Table) -> None:
        self._settings, self._table = settings, table

    @property
    def temperature(self) -> float:
        """tau at this step of training."""
        s = self._settings
        return linear_schedule(
            self._table.env_steps, s.temperature_start, s.temperature_end, s.temperature_decay_env_steps
        )

    def __call__(self, states: States) -> Floats:
        """(N,) states -> (N, A) action probabilities."""
        return softmax(self._table.values(states), self.temperature)

    def metrics(self) -> Metrics:
        return {"rollout/temperature": self.temperature}


class SoftmaxQ(TableLearner):
    """Tabular softmax-over-Q agent; see the module docstring for sources and deviations."""

    memory_bytes = 0

    def __init__(self, settings: Settings, table: Table, generator: np.random.Generator) -> None:
        """Learns.

        Args:
            settings: the keys.
            table: Q.
            generator: draws the action behind a time limit.
        """
        self._softmax = Softmax(settings, table)
        super().__init__(table, self._softmax)
        self._settings = settings
        self._successors = Successors(self.behaviour, generator)

    def learn(self, steps: list[Step]) -> None:
        if self._settings.backup == "sarsa":
            for step, next_action in self._successors.pair(steps):
                self._move(step, float(self.table.values(step.next_state)[next_action]))  # Q(s', a')
        else:
            backup = log_sum_exp_value if self._settings.backup == "soft" else boltzmann_value
            for step in steps:
                self._move(step, float(backup(self.table.values(step.next_state), self._softmax.temperature)))

    def _move(self, step: Step, next_value: float) -> None:
        discount = step.discount(self._settings.gamma)
        self.table.update(step.state, step.action, step.reward, discount, next_value)

    def state_dict(self) -> State:
        return super().state_dict() | {"successors": self._successors.state_dict()}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._successors.load_state_dict(state["successors"])
