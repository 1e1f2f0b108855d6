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
import torch

from contract import Acted, Inspection, Metrics, Mode, State, Task, Transition
from faults import check_choice, check_range
from memory.table import EpsilonGreedy, EpsilonSettings, Step, Successors, Table, TablePolicy, restore
from rules.tabular import TRACES, draw_action, td_error, visited_trace


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
        ConfigError: if observations or actions are not discrete.
    """
    return SarsaLambda(settings, Table(settings, task), task.spec.num_envs, task.streams.numpy("sarsa_lambda"))


class SarsaLambda:
    """Tabular SARSA(lambda); see the module docstring for sources and deviations."""

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
        self.traces = np.zeros((num_envs, *table.q.shape))  # (N, S, A)
        self._generator = generator
        self._successors = Successors()
        self._steps: list[Step] = []

    @property
    def memory_bytes(self) -> int:
        return self.traces.nbytes

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> TablePolicy:
        return TablePolicy(self.table.index, lambda states: self.table.q[states], self.behaviour, mode, generator)

    def observe(self, transition: Transition, acted: Acted) -> None:
        self._steps = self.table.rows(transition, acted)

    def update(self) -> Metrics:
        s = self._settings
        q = self.table.q
        for step, next_action in self._successors.pair(self._steps):
            discount = 0.0 if step.terminal else s.gamma
            if next_action is None:
                next_policy = self.behaviour(np.array([step.next_state]))
                next_action = int(draw_action(next_policy, self._generator.random(1))[0])
            best_value = float(q[step.next_state].max())
            chosen_value = float(q[step.next_state, next_action])
            next_value = best_value if s.off_policy else chosen_value
            error = td_error(float(q[step.state, step.action]), step.reward, discount, next_value)
            alpha = self.table.step_size(step.state, step.action)
            e = self.traces[step.env]  # (S, A)
            e[step.state, step.action] = visited_trace(float(e[step.state, step.action]), s.trace, alpha)
            for state, action in zip(*np.nonzero(e), strict=True):
                alpha = self.table.step_size_at(int(self.table.visits[state, action]))
                q[state, action] += alpha * error * e[state, action]
            self.table.note(error)
            explores = s.off_policy and chosen_value < best_value
            e *= 0.0 if step.episode_end or explores else s.gamma * s.trace_decay
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
            "traces": self.traces.copy(),
            "successors": self._successors.state_dict(),
            "generator": self._generator.bit_generator.state,
        }

    def load_state_dict(self, state: State) -> None:
        self.load_policy_state_dict(state["policy"])
        self.table.load_state_dict(state["table"])
        restore(self.traces, state["traces"])
        self._successors.load_state_dict(state["successors"])
        self._generator.bit_generator.state = state["generator"]
