"""Monte Carlo estimates of Q, then the softmax-over-Q improvement of an explicit policy pi(a|s).

    pi'(a|s) ~ pi(a|s) (e^Q(s,a) - [a = a*]) / (e^Q(s,a*) - [a = a*]),  a* = argmax_a Q(s,a)

which is pi(a|s) exp(Q(s,a) - Q(s,a*)) for every a, by continuity also where Q(s,a*) is 0: see
`rules.exploration.monte_carlo_improvement` for the identity, which a test proves.

Sources:
    The improvement with the indicator is this project's softmax-over-Q policy; its exponentiated form is natural policy
    gradient for softmax policies: Agarwal, Kakade, Lee and Mahajan 2021, arXiv:1908.00261, section 5.3.
    Sutton and Barto 2018, section 5.2, for first-visit Monte Carlo estimates of Q under pi.

Deviations from the sources:
    1. N environments act at once and share the table; an episode is learned from when it ends.
    2. pi improves after every few episodes, not after Q has converged, at the states that those episodes visited.
    3. Q is divided by a temperature, which scales how far one improvement goes (1: the formula above).
    4. A return that a time limit cuts short is no return: such an episode is dropped, or, with
       `truncated_episodes: bootstrap`, closed by the expected value of the state behind the limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from contract import Inspection, Metrics, Mode, State, Task
from faults import check_choice, check_range
from memory.table import Episodes, States, Step, Table, TableLearner, TablePolicy, TableSettings, restore
from rules.exploration import monte_carlo_improvement
from rules.tabular import Floats, expected_value, returns_of


@dataclass(frozen=True)
class Settings(TableSettings):
    """The `agent.*` keys: those of a table (memory/table.py), and these."""

    algorithm: str = "mc_softmax"
    temperature: float = 1.0
    """tau, in the units of Q: smaller ones improve faster and forget exploration sooner."""
    episodes_per_improvement: int = 1
    """Finished episodes between two improvements, at least 1."""
    truncated_episodes: str = "drop"
    """drop, or bootstrap from the value of the state behind the time limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("agent.temperature", self.temperature, 0, None, open_low=True)
        check_range("agent.episodes_per_improvement", self.episodes_per_improvement, 1, None)
        check_choice("agent.truncated_episodes", self.truncated_episodes, ("drop", "bootstrap"))


def make_agent(settings: Settings, task: Task) -> MCSoftmax:
    """Builds a Monte Carlo softmax agent for `task`.

    Raises:
        ConfigError: if observations or actions are not discrete.
    """
    return MCSoftmax(settings, Table(settings, task))


class Explicit:
    """A policy that is a live table of its own, (S, A) probabilities."""

    def __init__(self, pi: Floats) -> None:
        self._pi = pi

    def __call__(self, states: States) -> Floats:
        """(N,) states -> (N, A) action probabilities."""
        return np.asarray(self._pi[states])

    def metrics(self) -> Metrics:
        return {}


class MCSoftmax(TableLearner):
    """Tabular Monte Carlo with softmax improvement; see the module docstring for sources and deviations."""

    def __init__(self, settings: Settings, table: Table) -> None:
        self.pi = np.full(table.q.shape, 1 / table.num_actions)
        super().__init__(table, Explicit(self.pi))
        self._settings = settings
        self._visited: set[int] = set()  # states seen since the last improvement
        self._waiting_episodes = 0
        self._episodes = Episodes()

    def preferences(self, states: States) -> Floats:
        """(N,) states -> (N, A): log pi, whose softmax at temperature 1 is pi itself."""
        return np.asarray(np.log(np.maximum(self.pi[states], np.finfo(np.float64).tiny)))

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> TablePolicy:
        return TablePolicy(self.table.index, self.preferences, self.behaviour, mode, generator)

    def learn(self, steps: list[Step]) -> None:
        for episode in self._episodes.finish(steps):
            if not episode[-1].terminal and self._settings.truncated_episodes == "drop":
                continue
            self._estimate(episode)
            self._waiting_episodes += 1
            if self._waiting_episodes >= self._settings.episodes_per_improvement:
                self._improve()

    def _estimate(self, episode: list[Step]) -> None:
        """First-visit Monte Carlo."""
        last = episode[-1]
        q, pi = self.table.q[last.next_state], self.pi[last.next_state]
        last_value = 0.0 if last.terminal else float(expected_value(q, pi))
        returns = returns_of([step.reward for step in episode], self._settings.gamma, last_value)
        seen = set()
        for step, g in zip(episode, returns, strict=True):
            pair = (step.state, step.action)
            if pair not in seen:
                self.table.update(*pair, g, 0.0, 0.0)
            seen.add(pair)
            self._visited.add(step.state)

    def _improve(self) -> None:
        """pi' ~ pi exp((Q - Q(s, a*)) / tau) at the visited states."""
        states = np.array(sorted(self._visited))
        q = torch.from_numpy(self.table.q[states] / self._settings.temperature)  # (visited, A)
        pi = torch.from_numpy(self.pi[states])
        self.pi[states] = monte_carlo_improvement(pi, q, q.argmax(dim=1)).numpy()
        self._visited.clear()
        self._waiting_episodes = 0

    def inspect(self) -> Inspection:
        return self.table.inspect(policy=self.pi.copy())

    def policy_state_dict(self) -> State:
        return super().policy_state_dict() | {"pi": self.pi.copy()}

    def load_policy_state_dict(self, state: State) -> None:
        super().load_policy_state_dict(state)
        restore(self.pi, state["pi"])

    def state_dict(self) -> State:
        return super().state_dict() | {
            "visited": sorted(self._visited),
            "waiting_episodes": self._waiting_episodes,
            "episodes": self._episodes.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._visited = set(state["visited"])
        self._waiting_episodes = state["waiting_episodes"]
        self._episodes.load_state_dict(state["episodes"])
