"""Monte Carlo control: action values are averages of whole returns.

Sources:
    Sutton and Barto 2018, section 5.4 (on-policy, epsilon-soft, first or every visit) and section 5.7 (`off_policy`:
    the greedy policy from epsilon-greedy behaviour, by weighted importance sampling).

Deviations from the sources:
    1. N environments act at once and share the table; an episode is learned from when it ends.
    2. A return that a time limit cuts short is no return: such an episode is dropped, or, with
       `truncated_episodes: bootstrap`, closed by the value of the state behind the limit, which is then no longer pure
       Monte Carlo.
    3. With `off_policy`, tied best actions share the target policy's probability; the book breaks ties consistently.
    4. The sample mean is the default, any other step size schedule a key away (on-policy only: off-policy, the weights
       are the step size).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from contract import State, Task
from faults import check_choice
from memory.table import Episodes, EpsilonGreedy, EpsilonSettings, Step, Table, TableLearner, restore
from rules.tabular import epsilon_greedy, expected_value, greedy_value, returns_of, td_error, td_update


@dataclass(frozen=True)
class Settings(EpsilonSettings):
    """The `agent.*` keys: those of a table, of epsilon-greedy exploration (memory/table.py), and these."""

    algorithm: str = "monte_carlo"
    step_size: float = 1.0
    step_size_schedule: str = "visits"
    visit: str = "first"
    """first: an episode counts once per state and action; every: each time."""
    off_policy: bool = False
    """Learn the greedy policy by weighted importance sampling (every visit)."""
    truncated_episodes: str = "drop"
    """drop, or bootstrap from the value of the state behind the time limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("agent.visit", self.visit, ("first", "every"))
        check_choice("agent.truncated_episodes", self.truncated_episodes, ("drop", "bootstrap"))


def make_agent(settings: Settings, task: Task) -> MonteCarlo:
    """Builds a Monte Carlo agent for `task`.

    Raises:
        ConfigError: if observations or actions are not discrete.
    """
    return MonteCarlo(settings, Table(settings, task))


class MonteCarlo(TableLearner):
    """Tabular Monte Carlo control; see the module docstring for sources and deviations."""

    def __init__(self, settings: Settings, table: Table) -> None:
        super().__init__(table, EpsilonGreedy(settings, table))
        self._settings = settings
        self.weight_sum = np.zeros(table.q.shape)  # C(s, a): the importance weights so far
        self._episodes = Episodes()

    def learn(self, steps: list[Step]) -> None:
        for episode in self._episodes.finish(steps):
            if not episode[-1].terminal and self._settings.truncated_episodes == "drop":
                continue
            returns = returns_of([step.reward for step in episode], self._settings.gamma, self._last_value(episode[-1]))
            learn = self._learn_off_policy if self._settings.off_policy else self._learn_on_policy
            learn(episode, returns)

    def _last_value(self, last: Step) -> float:
        """Value of the state behind the episode's last step, 0 after a terminal."""
        if last.terminal:
            return 0.0
        q = self.table.q[last.next_state]
        if self._settings.off_policy:
            return float(greedy_value(q))
        return float(expected_value(q, self.behaviour(np.array([last.next_state]))[0]))

    def _learn_on_policy(self, episode: list[Step], returns: list[float]) -> None:
        seen = set()
        for step, g in zip(episode, returns, strict=True):
            pair = (step.state, step.action)
            if self._settings.visit == "every" or pair not in seen:
                self.table.update(*pair, g, 0.0, 0.0)
            seen.add(pair)

    def _learn_off_policy(self, episode: list[Step], returns: list[float]) -> None:
        q, weight = self.table.q, 1.0
        for step, g in zip(reversed(episode), reversed(returns), strict=True):
            s, a = step.state, step.action
            self.weight_sum[s, a] += weight
            self.table.visits[s, a] += 1
            self.table.errors.note(td_error(float(q[s, a]), g, 0.0, 0.0))
            q[s, a] = td_update(float(q[s, a]), g, 0.0, 0.0, weight / float(self.weight_sum[s, a]))
            target = float(epsilon_greedy(q[s], 0.0)[a])  # pi(a|s) of the greedy policy
            if target == 0.0:
                break
            weight *= target / step.probability

    def state_dict(self) -> State:
        return super().state_dict() | {"weight_sum": self.weight_sum.copy(), "episodes": self._episodes.state_dict()}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        restore(self.weight_sum, state["weight_sum"])
        self._episodes.load_state_dict(state["episodes"])
