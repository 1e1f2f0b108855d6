"""What tabular agents are put together from: a table with its schedules, a policy that acts on it, delayed steps.

Tables are NumPy float64, one row per state and one column per action, whatever the number of environments: all of them
read and write the same table, one after the other in the order of their index. With tile coding the rows are tiles, a
state is the list of its active rows, and its action values are their sum.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Discrete, MultiDiscrete
from numpy.typing import NDArray
from torch import Tensor

from contract import Acted, Inspection, Metrics, Mode, Obs, State, Task, Tilings, Transition
from faults import CheckpointError, ConfigError, NonFiniteError, check_choice, check_range
from rules.planning import evaluate_policy, reachable, value_iteration
from rules.schedules import linear_schedule
from rules.tabular import (
    Floats,
    draw_action,
    epsilon_greedy,
    linear_step_size,
    softmax,
    td_error,
    td_update,
    visit_step_size,
)

MAX_ENTRIES = 100_000_000
"""Of a table: 0.8 GB of values."""
MAX_SOLVED_STATES = 5_000
"""Models up to this size are solved exactly to say how far the agent is from the optimum."""

States = NDArray[np.int64]
"""(N,) states; with K tilings (N, K) active rows."""
Distribution = Callable[[States], Floats]
"""(N,) states -> (N, A) numbers: action values, or action probabilities."""
Counts = Callable[[States], Floats]
"""(N,) states -> (N,) numbers."""


@dataclass(frozen=True)
class TableSettings:
    """The `agent.*` keys of every agent that learns a table."""

    algorithm: str = ""
    gamma: float = 0.99
    """Discount per environment step, in [0, 1]."""
    initial_q: float = 0.0
    """Every action value before learning. Values above what can be earned make the agent try everything."""
    step_size: float = 0.1
    """alpha, in (0, 1]."""
    step_size_schedule: str = "constant"
    """constant; linear: from step_size to step_size_end over the run; visits: step_size / N(s,a)**step_size_power."""
    step_size_end: float = 0.0
    """Of the linear schedule."""
    step_size_power: float = 1.0
    """Of the visits schedule: 1 with step_size 1 is the sample mean."""

    def __post_init__(self) -> None:
        check_range("agent.gamma", self.gamma, 0, 1)
        check_range("agent.initial_q", abs(self.initial_q), 0, None)
        check_choice("agent.step_size_schedule", self.step_size_schedule, ("constant", "linear", "visits"))
        check_range("agent.step_size_end", self.step_size_end, 0, 1)
        check_range("agent.step_size_power", self.step_size_power, 0, 1)
        high = None if self.step_size_schedule == "visits" else 1
        check_range("agent.step_size", self.step_size, 0, high, open_low=True)


@dataclass(frozen=True)
class EpsilonSettings(TableSettings):
    """The `agent.*` keys of an agent that explores epsilon-greedily."""

    epsilon_start: float = 0.1
    epsilon_end: float = 0.1
    epsilon_schedule: str = "linear"
    """linear: over epsilon_decay_env_steps; visits: epsilon_start / N(s), at least epsilon_end."""
    epsilon_decay_env_steps: int = 0
    """Environment steps over which epsilon falls linearly from start to end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("agent.epsilon_start", self.epsilon_start, 0, 1)
        check_range("agent.epsilon_end", self.epsilon_end, 0, self.epsilon_start)
        check_choice("agent.epsilon_schedule", self.epsilon_schedule, ("linear", "visits"))
        check_range("agent.epsilon_decay_env_steps", self.epsilon_decay_env_steps, 0, None)


class Step(NamedTuple):
    """One row of a transition, as plain numbers."""

    env: int
    state: Any
    """The row of the state; with tile coding the list of its active rows."""
    action: int
    reward: float
    next_state: Any
    terminal: bool
    episode_end: bool
    probability: float = 1.0
    """Of the action, when it was taken."""

    def discount(self, gamma: float) -> float:
        """gamma, or 0 behind a terminal."""
        return 0.0 if self.terminal else gamma


class StateIndex:
    """Numbers the observations of a discrete space: (N, ...) tensor -> (N,) states in [0, num_states)."""

    def __init__(self, space: gym.Space[Any], env_id: str) -> None:
        """Reads the space.

        Args:
            space: Discrete, or MultiDiscrete, whose parts become the digits of one number.
            env_id: for the error line.

        Raises:
            ConfigError: if the space is not discrete.
        """
        if isinstance(space, Tilings):
            raise ConfigError(
                f"this agent has one entry per state and cannot sum over the tiles of {env_id}; use "
                "env.discretize=bins, or agent=q_learning or sarsa_lambda"
            )
        if isinstance(space, Discrete):
            sizes = np.array([int(space.n)])
        elif isinstance(space, MultiDiscrete):
            sizes = space.nvec.astype(np.int64)
        else:
            raise ConfigError(
                f"tabular agents need discrete observations; {env_id} has {type(space).__name__} observations "
                "(env.discretize=bins or tiles makes numbers discrete; agent=dqn reads them as they are)"
            )
        self.num_states = int(np.prod(sizes, dtype=object))
        self._place = np.array([int(np.prod(sizes[i + 1 :], dtype=object)) for i in range(len(sizes))])

    def __call__(self, obs: Obs) -> States:
        assert isinstance(obs, Tensor)
        parts = obs.detach().cpu().numpy()
        return parts if parts.ndim == 1 else np.asarray(parts @ self._place)


class TileIndex:
    """Numbers the tiles of all tilings: (N, K) tensor of active tiles -> (N, K) rows."""

    def __init__(self, space: Tilings) -> None:
        sizes = space.nvec.astype(np.int64)
        self.num_states = int(sizes.sum())
        self._first = np.cumsum(sizes) - sizes

    def __call__(self, obs: Obs) -> States:
        assert isinstance(obs, Tensor)
        return np.asarray(obs.detach().cpu().numpy() + self._first)


class Errors:
    """TD errors of updates, as figures."""

    def __init__(self) -> None:
        self._updates = 0
        self._new: list[float] = []

    def note(self, error: float) -> None:
        """Counts one update."""
        self._updates += 1
        self._new.append(abs(error))

    def metrics(self) -> Metrics:
        """Figures of the updates since the last call, {} if there were none.

        Raises:
            NonFiniteError: if a value has grown beyond all bounds.
        """
        if not self._new:
            return {}
        error = sum(self._new) / len(self._new)
        self._new = []
        if not error < float("inf"):
            raise NonFiniteError(f"an action value is not finite after {self._updates} updates; lower agent.step_size")
        return {"train/td_error": error, "train/n_updates": float(self._updates)}

    def state_dict(self) -> State:
        return {"updates": self._updates, "new": self._new}

    def load_state_dict(self, state: State) -> None:
        self._updates, self._new = state["updates"], list(state["new"])


class Table:
    """Action values Q(s, a) and visit counts N(s, a), with the step size that moves them."""

    def __init__(self, settings: TableSettings, task: Task, index: StateIndex | TileIndex | None = None) -> None:
        """Builds the table.

        Args:
            settings: initial values and schedules.
            task: says how many states and actions there are.
            index: numbers the observations; by default each has a row of its own.

        Raises:
            ConfigError: if observations or actions are not discrete, or the table would be too large.
        """
        space = task.spec.action_space
        if not isinstance(space, Discrete):
            raise ConfigError(
                f"agent={settings.algorithm} chooses among discrete actions; {task.spec.env_id} has "
                f"{type(space).__name__} actions"
            )
        self.index = index or StateIndex(task.spec.observation_space, task.spec.env_id)
        self.num_actions = int(space.n)
        if self.index.num_states * self.num_actions > MAX_ENTRIES:
            raise ConfigError(
                f"agent={settings.algorithm} would need a table of {self.index.num_states:.3g} states x "
                f"{self.num_actions} actions; at most {MAX_ENTRIES:,} entries are possible"
            )
        self._settings = settings
        self._total_env_steps = task.total_env_steps
        self._yardstick = Yardstick(task.spec.model, settings.gamma)
        shape = (self.index.num_states, self.num_actions)
        self.q: Floats = np.full(shape, float(settings.initial_q))
        self.visits = np.zeros(shape, np.int64)
        self.env_steps = 0
        self.errors = Errors()

    def rows(self, transition: Transition, acted: Acted) -> list[Step]:
        """The valid rows of a transition as plain numbers; counts them as environment steps."""
        state, next_state = self.index(transition.obs), self.index(transition.next_obs)
        flags = (transition.terminal, transition.episode_end, acted.extras["probability"])
        columns = (state, transition.action, transition.reward, next_state, *flags)
        rows = zip(range(len(state)), *(column.tolist() for column in columns), strict=True)
        steps = [Step(*row) for row, valid in zip(rows, transition.valid.tolist(), strict=True) if valid]
        self.env_steps += len(steps)
        return steps

    def values(self, states: Any) -> Floats:
        """Action values: (A,) of one state, (N, A) of N states."""
        return np.asarray(self.q[states])

    def state_visits(self, states: States) -> Floats:
        """(N,) states -> (N,): how often each has been learned from."""
        return np.asarray(self.visits[states].sum(axis=-1))

    def update(self, state: Any, action: int, reward: float, discount: float, next_value: float) -> float:
        """Q(s, a) <- Q(s, a) + alpha * (reward + discount * next_value - Q(s, a)); returns the TD error."""
        q_sa = float(self.q[state, action])
        self.q[state, action] = td_update(q_sa, reward, discount, next_value, self.step_size(state, action))
        error = td_error(q_sa, reward, discount, next_value)
        self.errors.note(error)
        return error

    def step_size(self, state: Any, action: int) -> Any:
        """alpha for the next update of an entry; counts the visit."""
        self.visits[state, action] += 1
        return self.step_size_at(int(self.visits[state, action]))

    def step_size_at(self, visits: int) -> float:
        """alpha of an entry that has been visited so often."""
        s = self._settings
        if s.step_size_schedule == "visits":
            return visit_step_size(max(visits, 1), s.step_size, s.step_size_power)
        if s.step_size_schedule == "linear":
            return linear_step_size(self.env_steps / self._total_env_steps, s.step_size, s.step_size_end)
        return s.step_size

    def step_sizes(self, visits: NDArray[np.int64]) -> Floats:
        """`step_size_at` for many entries."""
        if self._settings.step_size_schedule == "visits":
            return np.array([self.step_size_at(n) for n in visits.tolist()])
        return np.full(visits.shape, self.step_size_at(0))

    def inspect(self, q: Floats | None = None, policy: Floats | None = None) -> Inspection:
        """The table, and how far it is from the optimum.

        Args:
            q: (S, A), by default the table's own.
            policy: (S, A) probabilities, by default greedy in q, ties shared.
        """
        q = self.q if q is None else q
        policy = epsilon_greedy(q, 0.0) if policy is None else policy
        return Inspection(self._yardstick.metrics(q, policy), q.copy(), policy, self.visits.copy())

    def policy_state_dict(self) -> State:
        """Values, and what the schedules of exploration go by."""
        return {"q": self.q.copy(), "visits": self.visits.copy(), "env_steps": self.env_steps}

    def load_policy_state_dict(self, state: State) -> None:
        restore(self.q, state["q"])
        restore(self.visits, state["visits"])
        self.env_steps = int(state["env_steps"])


class TileTable(Table):
    """A linear function of active tiles: Q(s, a) is the sum of K weights, and an update spreads over them.

    Equation:
        Q(s, a) = sum over k of w[row_k(s), a],   w[row_k(s), a] += alpha / K * (target - Q(s, a))

    With one tiling this is a table of bins, to the last bit.

    Source:
        Sutton and Barto 2018, sections 9.5.4 and 10.1.
    """

    def __init__(self, settings: TableSettings, task: Task, space: Tilings) -> None:
        super().__init__(settings, task, TileIndex(space))
        self._num_tilings = len(space.nvec)
        self.q /= self._num_tilings

    def values(self, states: Any) -> Floats:
        return np.asarray(self.q[states].sum(axis=-2))

    def state_visits(self, states: States) -> Floats:
        return np.asarray(self.visits[states].sum(axis=-1).mean(axis=-1))

    def update(self, state: Any, action: int, reward: float, discount: float, next_value: float) -> float:
        error = td_error(float(self.q[state, action].sum()), reward, discount, next_value)
        self.q[state, action] += self.step_size(state, action) * error
        self.errors.note(error)
        return error

    def step_size(self, state: Any, action: int) -> Any:
        self.visits[state, action] += 1
        return self.step_sizes(self.visits[state, action])

    def step_size_at(self, visits: int) -> float:
        return super().step_size_at(visits) / self._num_tilings


def value_table(settings: TableSettings, task: Task) -> Table:
    """The table of an agent that learns sums over tiles as well as single entries.

    Raises:
        ConfigError: if observations or actions are not discrete, or the table would be too large.
    """
    space = task.spec.observation_space
    return TileTable(settings, task, space) if isinstance(space, Tilings) else Table(settings, task)


class Yardstick:
    """Measures tables and policies against the exact optimum, where the model is known."""

    def __init__(self, model: Any, gamma: float) -> None:
        """Measures.

        Args:
            model: an `envs.tables.TabularModel`, or None.
            gamma: discount per step. Neither figure knows a time limit.
        """
        self._model = model if isinstance(getattr(model, "num_states", None), int) else None
        self._gamma = gamma
        self._optimal_value: Floats | None = None

    def metrics(self, q: Floats, policy: Floats) -> Metrics:
        """{} if the model is unknown, or too large to be solved beside the training.

            eval/value_error     max over the states that can be reached of |max_a Q(s, a) - V*(s)|
            eval/policy_regret   what the policy, evaluated exactly, loses against V* from where episodes begin

        Args:
            q: (S, A).
            policy: (S, A) probabilities.
        """
        model = self._model
        if model is None or model.num_states > MAX_SOLVED_STATES:
            return {}
        if self._optimal_value is None:
            try:
                self._optimal_value = value_iteration(model, self._gamma)[0].max(axis=1)
            except ValueError:  # no finite optimum at this gamma
                self._model = None
                return {}
        error = np.abs(q.max(axis=1) - self._optimal_value)[reachable(model, model.start)]
        starts = model.start > 0
        loss = (self._optimal_value - evaluate_policy(model, policy, self._gamma))[starts]
        return {"eval/value_error": float(error.max()), "eval/policy_regret": float(model.start[starts] @ loss)}


class EpsilonGreedy:
    """The policy that explores: epsilon-greedy in some action values, with epsilon scheduled."""

    def __init__(
        self,
        settings: EpsilonSettings,
        table: Table,
        q: Distribution | None = None,
        state_visits: Counts | None = None,
    ) -> None:
        """Explores.

        Args:
            settings: the schedule.
            table: counts environment steps.
            q: action values to be greedy in, by default the table's.
            state_visits: (N,) states -> (N,) visits, by default the table's.
        """
        self._settings, self._table = settings, table
        self._q, self._state_visits = q or table.values, state_visits or table.state_visits

    def epsilon(self, states: States) -> Floats:
        """(N,) probabilities of a random action at this step of training."""
        s = self._settings
        if s.epsilon_schedule == "visits":
            visits = np.maximum(self._state_visits(states), 1)
            return np.asarray(np.maximum(s.epsilon_start / visits, s.epsilon_end))
        return np.full(len(states), self._linear())

    def __call__(self, states: States) -> Floats:
        """(N,) states -> (N, A) action probabilities."""
        return epsilon_greedy(self._q(states), self.epsilon(states))

    def metrics(self) -> Metrics:
        """The exploration rate, where it is one number."""
        return {} if self._settings.epsilon_schedule == "visits" else {"rollout/exploration_rate": self._linear()}

    def _linear(self) -> float:
        s = self._settings
        return linear_schedule(self._table.env_steps, s.epsilon_start, s.epsilon_end, s.epsilon_decay_env_steps)


class TablePolicy:
    """Acts on a live table. `train` and `sample` follow the agent's own policy; ties of `greedy` are broken at
    random."""

    def __init__(
        self, index: StateIndex | TileIndex, q: Distribution, own: Distribution, mode: Mode, generator: torch.Generator
    ) -> None:
        """Acts.

        Args:
            index: numbers the observations.
            q: action values.
            own: action probabilities of the policy that the agent trains with.
            mode: how to choose.
            generator: advanced by one number per environment and step.
        """
        self._index, self._q, self._own, self._mode, self._generator = index, q, own, mode, generator

    def act(self, obs: Obs, episode_start: Tensor) -> Acted:
        states = self._index(obs)
        policy = self.probabilities(states)
        uniform = torch.rand(len(states), generator=self._generator, device=self._generator.device, dtype=torch.float64)
        action = draw_action(policy, uniform.cpu().numpy())
        probability = np.take_along_axis(policy, action[:, None], axis=1)[:, 0]
        return Acted(torch.from_numpy(action), {"probability": torch.from_numpy(probability)})

    def probabilities(self, states: States) -> Floats:
        """(N,) states -> (N, A) action probabilities."""
        if self._mode.name in ("train", "sample"):
            return self._own(states)
        value = self._mode.value or 0.0
        return (
            softmax(self._q(states), value)
            if self._mode.name == "temperature"
            else epsilon_greedy(self._q(states), value)
        )

    def state_dict(self) -> State:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: State) -> None:
        self._generator.set_state(state["generator"])


class Behaviour(Protocol):
    """The policy that an agent trains with."""

    def __call__(self, states: States) -> Floats:
        """(N,) states -> (N, A) action probabilities."""
        ...

    def metrics(self) -> Metrics:
        """How it explores at present."""
        ...


class TableLearner(ABC):
    """An agent that learns one table: acting, observing, showing and saving. How it learns is left to `learn`."""

    memory_bytes = 0

    def __init__(self, table: Table, behaviour: Behaviour) -> None:
        self.table, self.behaviour = table, behaviour
        self._steps: list[Step] = []

    @abstractmethod
    def learn(self, steps: list[Step]) -> None:
        """Learns from the latest step of each environment, in their order."""

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> TablePolicy:
        return TablePolicy(self.table.index, self.table.values, self.behaviour, mode, generator)

    def observe(self, transition: Transition, acted: Acted) -> None:
        self._steps = self.table.rows(transition, acted)

    def update(self) -> Metrics:
        steps, self._steps = self._steps, []
        self.learn(steps)
        return self.table.errors.metrics() | self.behaviour.metrics()

    def inspect(self) -> Inspection:
        return self.table.inspect()

    def policy_state_dict(self) -> State:
        return self.table.policy_state_dict()

    def load_policy_state_dict(self, state: State) -> None:
        self.table.load_policy_state_dict(state)

    def state_dict(self) -> State:
        return {"policy": self.policy_state_dict(), "errors": self.table.errors.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.load_policy_state_dict(state["policy"])
        self.table.errors.load_state_dict(state["errors"])


class PlannedTable:
    """An agent whose table was solved, not learned: it acts, and has nothing to learn."""

    memory_bytes = 0

    def __init__(self, index: StateIndex, q: Floats, own: Distribution, yardstick: Yardstick, planned: Metrics) -> None:
        """Acts.

        Args:
            index: numbers the observations.
            q: (S, A) action values.
            own: (N,) states -> (N, A) probabilities of the policy that the plan is for.
            yardstick: says how good it is.
            planned: what planning took; the metrics of every update.
        """
        self._index, self._q, self._own, self._yardstick, self._planned = index, q, own, yardstick, planned

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> TablePolicy:
        return TablePolicy(self._index, lambda states: self._q[states], self._own, mode, generator)

    def observe(self, transition: Transition, acted: Acted) -> None:
        pass

    def update(self) -> Metrics:
        return dict(self._planned)

    def inspect(self) -> Inspection:
        policy = self._own(np.arange(len(self._q)))
        return Inspection(self._yardstick.metrics(self._q, policy), self._q, policy, np.zeros(self._q.shape, np.int64))

    def policy_state_dict(self) -> State:
        return {"q": self._q.copy()}

    def load_policy_state_dict(self, state: State) -> None:
        restore(self._q, state["q"])

    def state_dict(self) -> State:
        return {"policy": self.policy_state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.load_policy_state_dict(state["policy"])


def known_model(task: Task, algorithm: str) -> Any:
    """The model of the task's environment.

    Raises:
        ConfigError: if the environment does not tell its dynamics.
    """
    if not isinstance(getattr(task.spec.model, "num_states", None), int):
        raise ConfigError(f"agent={algorithm} plans with a known model P[s][a]; {task.spec.env_id} has none")
    return task.spec.model


class Successors:
    """Holds each environment's latest step back until the action that follows it is known.

    A step that ends an episode has no following action: it passes at once, with an action drawn for the state behind
    it. Behind a time limit that is the action that would have been taken; behind a terminal nobody reads it.
    """

    def __init__(self, behaviour: Distribution, generator: np.random.Generator) -> None:
        """Holds back.

        Args:
            behaviour: (N,) states -> (N, A) probabilities of the next action.
            generator: draws the action behind an episode's end.
        """
        self._behaviour, self._generator = behaviour, generator
        self._held: dict[int, Step] = {}

    def pair(self, steps: list[Step]) -> Iterator[tuple[Step, int]]:
        """Yields (step, next action) for what has become complete."""
        for step in steps:
            if step.env in self._held:
                yield self._held.pop(step.env), step.action
            if step.episode_end:
                yield step, self._draw(step.next_state)
            else:
                self._held[step.env] = step

    def _draw(self, state: Any) -> int:
        return int(draw_action(self._behaviour(np.array([state])), self._generator.random(1))[0])

    def state_dict(self) -> State:
        return {
            "held": [list(step) for step in self._held.values()],
            "generator": self._generator.bit_generator.state,
        }

    def load_state_dict(self, state: State) -> None:
        self._held = {row[0]: Step(*row) for row in state["held"]}
        self._generator.bit_generator.state = state["generator"]


class Episodes:
    """Collects the running episode of each environment."""

    def __init__(self) -> None:
        self._running: dict[int, list[Step]] = {}

    def finish(self, steps: list[Step]) -> Iterator[list[Step]]:
        """Yields each episode that ended with one of these steps."""
        for step in steps:
            self._running.setdefault(step.env, []).append(step)
            if step.episode_end:
                yield self._running.pop(step.env)

    def state_dict(self) -> State:
        return {"running": [[list(step) for step in steps] for steps in self._running.values()]}

    def load_state_dict(self, state: State) -> None:
        self._running = {rows[0][0]: [Step(*row) for row in rows] for rows in state["running"]}


def restore(target: NDArray[Any], saved: Any) -> None:
    """Copies a saved array into one of the same shape.

    Raises:
        CheckpointError: if the shapes differ.
    """
    array = np.asarray(saved)
    if array.shape != target.shape:
        raise CheckpointError(f"the checkpoint's table has shape {array.shape}, this environment needs {target.shape}")
    target[...] = array
