"""Environments whose dynamics are known as a table: what planners solve and compiled kernels step through.

Gymnasium's toy-text environments and those of `envs/textbook` carry `P[s][a]`, a list of (probability, next state,
reward, terminated). `TabularModel` holds the same as rectangular arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Discrete
from numpy.typing import NDArray
from torch import Tensor

from contract import EnvSpec, Episode, State, Step, Transition

Outcome = tuple[float, int, float, bool]
"""(probability, next state, reward, terminated), as in Gymnasium's `P[s][a]`."""


@dataclass(frozen=True)
class TabularModel:
    """Dynamics of S states and A actions with at most K outcomes each.

    Outcomes beyond those that a state and action have are padding: probability 0, terminal. The same next state may
    stand in several outcomes, so whoever sums over next states accumulates. The value behind a terminal outcome is
    zero, whatever transitions the table lists for the state it leads to.
    """

    next_state: NDArray[np.int32]
    """(S, A, K)."""
    probability: NDArray[np.float64]
    """(S, A, K): sums to 1 over K."""
    cumulative: NDArray[np.float64]
    """(S, A, K): running sum of `probability` over K, exactly 1 from the last outcome on. The outcome of a uniform
    number u in [0, 1) is the first with `cumulative > u`."""
    reward: NDArray[np.float64]
    """(S, A, K)."""
    terminal: NDArray[np.bool_]
    """(S, A, K): the task ends with this outcome."""
    start: NDArray[np.float64]
    """(S,): probability of beginning an episode in each state."""
    max_episode_steps: int | None = None
    """Time limit in environment steps, None if there is none."""
    shape: tuple[int, int] | None = None
    """(rows, columns) if the states are the cells of a grid, numbered row by row."""

    @property
    def num_states(self) -> int:
        return int(self.next_state.shape[0])

    @property
    def num_actions(self) -> int:
        return int(self.next_state.shape[1])

    @classmethod
    def from_outcomes(
        cls,
        table: Mapping[int, Mapping[int, Sequence[Outcome]]],
        start: NDArray[np.float64],
        max_episode_steps: int | None = None,
        shape: tuple[int, int] | None = None,
    ) -> TabularModel:
        """Builds the arrays from `P[s][a]`.

        Args:
            table: outcomes by state, then action; states and actions count from 0.
            start: (S,) probabilities of the first state.
            max_episode_steps: time limit in environment steps.
            shape: (rows, columns) of a grid.

        Raises:
            ValueError: if the probabilities of a state and action, or of the start, do not sum to 1.
        """
        num_states, num_actions = len(table), len(table[0])
        outcomes = max(len(table[s][a]) for s in table for a in table[s])
        size = (num_states, num_actions, outcomes)
        next_state, probability, reward = np.zeros(size, np.int32), np.zeros(size), np.zeros(size)
        terminal = np.ones(size, bool)
        cumulative = np.ones(size)
        for s in range(num_states):
            for a in range(num_actions):
                for k, outcome in enumerate(table[s][a]):
                    probability[s, a, k], next_state[s, a, k], reward[s, a, k], terminal[s, a, k] = outcome
                last = len(table[s][a]) - 1
                cumulative[s, a, :last] = np.cumsum(probability[s, a, :last])
        start = np.asarray(start, np.float64)
        if not np.allclose(probability.sum(2), 1, atol=1e-9) or not np.isclose(start.sum(), 1, atol=1e-9):
            raise ValueError("the probabilities of every state and action, and of the start, must sum to 1")
        return cls(next_state, probability, cumulative, reward, terminal, start, max_episode_steps, shape)


def tabular_model(env: gym.Env[Any, Any], max_episode_steps: int | None) -> TabularModel | None:
    """The model of an environment, None if it does not tell its dynamics.

    Args:
        env: has `P` and `initial_state_distrib` if its dynamics are known; a grid says its `shape`, or `nrow`, `ncol`.
        max_episode_steps: the time limit that it is played with.
    """
    inner: Any = env.unwrapped
    table, start = getattr(inner, "P", None), getattr(inner, "initial_state_distrib", None)
    discrete = isinstance(inner.observation_space, Discrete) and isinstance(inner.action_space, Discrete)
    if table is None or start is None or not discrete or getattr(inner, "fickle_passenger", False):
        return None  # a fickle passenger of Taxi changes the destination outside the table
    shape = getattr(inner, "shape", None)
    if shape is None and hasattr(inner, "nrow"):
        shape = (inner.nrow, inner.ncol)
    return TabularModel.from_outcomes(table, start, max_episode_steps, None if shape is None else (shape[0], shape[1]))


class TableVecEnv:
    """N copies of a tabular model as a `contract.VecEnv`, stepped together in NumPy: no Gymnasium, no rendering."""

    def __init__(
        self,
        model: TabularModel,
        num_envs: int,
        generator: np.random.Generator,
        env_id: str = "table",
        observation: NDArray[np.int64] | None = None,
    ) -> None:
        """Steps.

        Args:
            model: the dynamics.
            num_envs: N.
            generator: draws starts and outcomes; advanced by 2 N numbers per step.
            env_id: a name.
            observation: (S,) what an agent sees in each state, None: the state itself. With an observation, agents are
                not shown the model, whose states are not theirs.
        """
        self.model = model
        self._observation = np.arange(model.num_states) if observation is None else observation
        self.spec = EnvSpec(
            env_id,
            Discrete(int(self._observation.max()) + 1),
            Discrete(model.num_actions),
            num_envs,
            max_episode_steps=model.max_episode_steps,
            model=model if observation is None else None,
        )
        self._generator = generator
        self._start = np.cumsum(model.start)
        self._state = np.zeros(num_envs, np.int64)
        self._length = np.zeros(num_envs, np.int64)
        self._return = np.zeros(num_envs)

    def reset(self) -> Tensor:
        self._state = self._starts(self.spec.num_envs)
        self._length[:], self._return[:] = 0, 0
        return self._seen(self._state)

    def step(self, action: Tensor) -> Step:
        m, state, act = self.model, self._state, action.numpy()
        uniform = self._generator.random(len(state))
        outcome = (m.cumulative[state, act] > uniform[:, None]).argmax(axis=1)
        next_state = m.next_state[state, act, outcome].astype(np.int64)
        reward, terminal = m.reward[state, act, outcome], m.terminal[state, act, outcome]
        self._length += 1
        self._return += reward
        limit = m.max_episode_steps
        episode_end = terminal if limit is None else terminal | (self._length >= limit)
        episodes = [Episode(int(i), float(self._return[i]), int(self._length[i])) for i in np.flatnonzero(episode_end)]
        transition = Transition(
            obs=self._seen(state),
            action=action,
            reward=torch.from_numpy(reward.astype(np.float32)),
            next_obs=self._seen(next_state),
            terminal=torch.from_numpy(terminal),
            episode_end=torch.from_numpy(episode_end),
            valid=torch.ones(len(state), dtype=torch.bool),
        )
        self._state = np.where(episode_end, self._starts(len(state)), next_state)
        self._length[episode_end], self._return[episode_end] = 0, 0
        return Step(transition, self._seen(self._state), episodes)

    def close(self) -> None:
        pass

    def state_dict(self) -> State:
        return {
            "state": self._state.copy(),
            "length": self._length.copy(),
            "return": self._return.copy(),
            "generator": self._generator.bit_generator.state,
        }

    def load_state_dict(self, state: State) -> Tensor:
        self._state, self._length, self._return = (
            np.asarray(state[name]).copy() for name in ("state", "length", "return")
        )
        self._generator.bit_generator.state = state["generator"]
        return self._seen(self._state)

    def _seen(self, state: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self._observation[state])

    def _starts(self, count: int) -> NDArray[np.int64]:
        drawn = np.searchsorted(self._start, self._generator.random(count) * self._start[-1], side="right")
        return np.asarray(drawn, np.int64)
