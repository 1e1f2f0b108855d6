"""SARSA(lambda) and Watkins's Q(lambda): every TD error also corrects what led to it, through eligibility traces.

Sources:
    Rummery and Niranjan 1994; Singh and Sutton 1996, "Reinforcement learning with replacing eligibility traces".
    Watkins 1989, "Learning from Delayed Rewards" (`off_policy`: the trace is cut at exploring actions).
    Sutton and Barto 2018, sections 12.7 and 12.10.

Deviations from the sources:
    1. N environments act at once and share the table; each has a trace of its own.
    2. Each update waits for the next step, whose action it needs; that action was chosen before the update, as in the
       book.
    3. At a time limit, which the sources do not have, the value behind the limit is that of an action drawn for it.
    4. Dutch traces are used with the ordinary TD error, not with the correction that makes the true online algorithm of
       section 12.5 equal to its forward view.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from contract import State, Task
from faults import ConfigError, check_choice, check_range
from memory.table import (
    EpsilonGreedy,
    EpsilonSettings,
    Step,
    Successors,
    Table,
    TableLearner,
    TileTable,
    restore,
    value_table,
)
from rules.tabular import TRACES, td_error, visited_trace


@dataclass(frozen=True)
class Settings(EpsilonSettings):
    """The `agent.*` keys: those of a table, of epsilon-greedy exploration (memory/table.py), and these."""

    algorithm: str = "sarsa_lambda"
    trace_decay: float = 0.9
    """lambda, in [0, 1]: 0 is one-step, 1 resembles Monte Carlo."""
    trace: str = "replacing"
    """accumulating, replacing or dutch."""
    off_policy: bool = False
    """Watkins's Q(lambda): learn the greedy policy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("agent.trace_decay", self.trace_decay, 0, 1)
        check_choice("agent.trace", self.trace, TRACES)


def make_agent(settings: Settings, task: Task) -> SarsaLambda:
    """Builds a SARSA(lambda) agent for `task`.

    Raises:
        ConfigError: if observations or actions are not discrete, or tiles are to have dutch traces.
    """
    table = value_table(settings, task)
    if settings.trace == "dutch" and isinstance(table, TileTable):
        raise ConfigError("agent.trace=dutch is for tables; with env.discretize=tiles use replacing or accumulating")
    return SarsaLambda(settings, table, task.spec.num_envs, task.streams.numpy("sarsa_lambda"))


class SarsaLambda(TableLearner):
    """Tabular SARSA(lambda); see the module docstring for sources and deviations."""

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
        self.traces = np.zeros((num_envs, *table.q.shape))  # (N, S, A)
        self.memory_bytes = self.traces.nbytes

    def learn(self, steps: list[Step]) -> None:
        s, table = self._settings, self.table
        for step, next_action in self._successors.pair(steps):
            next_q = table.values(step.next_state)  # (A,)
            explores = s.off_policy and next_q[next_action] < next_q.max()
            next_value = float(next_q.max() if s.off_policy else next_q[next_action])
            q_sa = float(table.values(step.state)[step.action])
            error = td_error(q_sa, step.reward, step.discount(s.gamma), next_value)
            alpha = table.step_size(step.state, step.action)
            e = self.traces[step.env]  # (S, A)
            e[step.state, step.action] = visited_trace(e[step.state, step.action], s.trace, alpha)
            active = np.nonzero(e)
            table.q[active] += table.step_sizes(table.visits[active]) * error * e[active]
            table.errors.note(error)
            e *= 0.0 if step.episode_end or explores else s.gamma * s.trace_decay

    def state_dict(self) -> State:
        return super().state_dict() | {"traces": self.traces.copy(), "successors": self._successors.state_dict()}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        restore(self.traces, state["traces"])
        self._successors.load_state_dict(state["successors"])
