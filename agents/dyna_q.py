"""Dyna-Q: Q-learning that also learns from an empirical model of the world; prioritised sweeping by a key.

Sources:
    Sutton 1990, "Integrated architectures for learning, planning, and reacting".
    Moore and Atkeson 1993, "Prioritized sweeping", Machine Learning 13; Peng and Williams 1993.
    Sutton and Barto 2018, section 8.2 (`sweeping: uniform`) and section 8.4 (`sweeping: prioritised`).

Deviations from the sources:
    1. N environments act at once and share table and model; `planning_steps` follow each environment step.
    2. The model counts outcomes, and a planning step takes their expectation, as section 8.4 suggests for random
       worlds. In a deterministic world, the book's, this is the same as the last outcome.
    3. Planning steps may have a step size of their own.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from contract import State, Task
from faults import check_choice, check_range
from memory.table import EpsilonGreedy, EpsilonSettings, Step, Table, TableLearner
from rules.tabular import greedy_value, td_error, td_update

Pair = tuple[int, int]
"""State and action."""
Outcome = tuple[int, bool]
"""Next state, and whether it is terminal."""


@dataclass(frozen=True)
class Settings(EpsilonSettings):
    """The `agent.*` keys: those of a table, of epsilon-greedy exploration (memory/table.py), and these."""

    algorithm: str = "dyna_q"
    planning_steps: int = 10
    """Updates from the model after each environment step; 0 is Q-learning (with `sweeping: uniform`)."""
    planning_step_size: float | None = None
    """alpha of planning, null: as step_size and its schedule have it."""
    sweeping: str = "uniform"
    """uniform: known pairs at random; prioritised: where the model says that values are most wrong, and backwards from
    there. The latter learns from the model only, as in the book."""
    priority_threshold: float = 1e-4
    """Smaller errors are not worth a planning step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("agent.planning_steps", self.planning_steps, 0, 1_000_000)
        if self.planning_step_size is not None:
            check_range("agent.planning_step_size", self.planning_step_size, 0, 1, open_low=True)
        check_choice("agent.sweeping", self.sweeping, ("uniform", "prioritised"))
        check_range("agent.priority_threshold", self.priority_threshold, 0, None)


def make_agent(settings: Settings, task: Task) -> DynaQ:
    """Builds a Dyna-Q agent for `task`.

    Raises:
        ConfigError: if observations or actions are not discrete.
    """
    return DynaQ(settings, Table(settings, task), task.streams.numpy("dyna_q"))


class EmpiricalModel:
    """What each known pair has led to, with counts."""

    def __init__(self) -> None:
        self.pairs: list[Pair] = []
        """Known pairs, in the order in which they were first seen."""
        self.predecessors: dict[int, dict[Pair, None]] = {}
        """Pairs that have led to a state, in the order in which they were first seen to."""
        self._outcomes: dict[Pair, dict[Outcome, list[float]]] = {}  # -> [count, sum of rewards]

    def learn(self, step: Step) -> None:
        """Counts one outcome."""
        pair = (step.state, step.action)
        if pair not in self._outcomes:
            self._outcomes[pair] = {}
            self.pairs.append(pair)
        counted = self._outcomes[pair].setdefault((step.next_state, step.terminal), [0, 0.0])
        counted[0] += 1
        counted[1] += step.reward
        self.predecessors.setdefault(step.next_state, {})[pair] = None

    def target(self, pair: Pair, q: np.ndarray, gamma: float) -> float:
        """sum over outcomes of count/total * (mean reward + gamma * max_a' Q(s', a'), cut at terminals)."""
        total, value = 0.0, 0.0
        for (next_state, terminal), (count, reward_sum) in self._outcomes[pair].items():
            total += count
            value += reward_sum + (0.0 if terminal else count * gamma * float(greedy_value(q[next_state])))
        return value / total

    def state_dict(self) -> State:
        rows = [
            [*pair, next_state, terminal, count, reward_sum]
            for pair in self.pairs
            for (next_state, terminal), (count, reward_sum) in self._outcomes[pair].items()
        ]
        predecessors = [[state, [list(pair) for pair in pairs]] for state, pairs in self.predecessors.items()]
        return {"outcomes": rows, "predecessors": predecessors}

    def load_state_dict(self, state: State) -> None:
        self.pairs, self._outcomes = [], {}
        for s, a, next_state, terminal, count, reward_sum in state["outcomes"]:
            if (s, a) not in self._outcomes:
                self.pairs.append((s, a))
            self._outcomes.setdefault((s, a), {})[next_state, terminal] = [count, reward_sum]
        self.predecessors = {s: {(p[0], p[1]): None for p in pairs} for s, pairs in state["predecessors"]}


class DynaQ(TableLearner):
    """Tabular Dyna-Q; see the module docstring for sources and deviations."""

    def __init__(self, settings: Settings, table: Table, generator: np.random.Generator) -> None:
        """Learns.

        Args:
            settings: the keys.
            table: Q.
            generator: picks the pairs to plan with.
        """
        super().__init__(table, EpsilonGreedy(settings, table))
        self._settings = settings
        self.model = EmpiricalModel()
        self._generator = generator
        self._queue: list[tuple[float, int, int]] = []  # (-priority, s, a): a heap
        self._priority: dict[Pair, float] = {}  # the valid entry of each pair in the queue

    def learn(self, steps: list[Step]) -> None:
        for step in steps:
            self.model.learn(step)
            if self._settings.sweeping == "prioritised":
                self.table.visits[step.state, step.action] += 1
                self._prioritise((step.state, step.action))
                self._sweep()
            else:
                next_value = float(greedy_value(self.table.q[step.next_state]))
                discount = step.discount(self._settings.gamma)
                self.table.update(step.state, step.action, step.reward, discount, next_value)
                for i in self._generator.integers(len(self.model.pairs), size=self._settings.planning_steps):
                    self._plan(self.model.pairs[i])

    def _sweep(self) -> None:
        """Plans with the pairs of highest priority, each time asking anew how wrong their predecessors have become."""
        for _ in range(self._settings.planning_steps):
            pair = self._pop()
            if pair is None:
                return
            self._plan(pair)
            for predecessor in self.model.predecessors.get(pair[0], ()):
                self._prioritise(predecessor)

    def _plan(self, pair: Pair) -> None:
        """Moves Q(s, a) towards what the model expects."""
        s = self._settings
        alpha = s.planning_step_size or self.table.step_size_at(int(self.table.visits[pair]))
        q_sa = float(self.table.q[pair])
        target = self.model.target(pair, self.table.q, s.gamma)
        self.table.q[pair] = td_update(q_sa, target, 0.0, 0.0, alpha)
        self.table.errors.note(td_error(q_sa, target, 0.0, 0.0))

    def _prioritise(self, pair: Pair) -> None:
        """Queues a pair by how wrong its value is, if that is worth a planning step."""
        target = self.model.target(pair, self.table.q, self._settings.gamma)
        priority = abs(td_error(float(self.table.q[pair]), target, 0.0, 0.0))
        if priority > max(self._settings.priority_threshold, self._priority.get(pair, 0.0)):
            self._priority[pair] = priority
            heapq.heappush(self._queue, (-priority, *pair))

    def _pop(self) -> Pair | None:
        """The pair of highest priority; entries that a higher one has replaced are skipped."""
        while self._queue:
            negative, s, a = heapq.heappop(self._queue)
            if self._priority.get((s, a)) == -negative:
                del self._priority[s, a]
                return s, a
        return None

    def state_dict(self) -> State:
        return super().state_dict() | {
            "model": self.model.state_dict(),
            "queue": [list(entry) for entry in self._queue],
            "priority": [[s, a, priority] for (s, a), priority in self._priority.items()],
            "generator": self._generator.bit_generator.state,
        }

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.model.load_state_dict(state["model"])
        self._queue = [(entry[0], entry[1], entry[2]) for entry in state["queue"]]
        self._priority = {(s, a): priority for s, a, priority in state["priority"]}
        self._generator.bit_generator.state = state["generator"]
