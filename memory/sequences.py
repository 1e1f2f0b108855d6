"""Replay of sequences: consecutive steps of one environment, with the recurrent state from which they began.

Source:
    Kapturowski et al. 2019, "Recurrent Experience Replay in Distributed Reinforcement Learning" (R2D2), section 3.

Deviations:
    1. A sequence may begin at any step; the paper cuts each episode into half-overlapping ones.
    2. A sequence may hold the end of an episode and the start of the next, where the recurrent state is cleared.
    3. Sequences are drawn uniformly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from contract import EnvSpec, Obs, State, Transition, to_device
from memory.replay import make_store
from memory.rollout import map_obs

COLUMNS = ("action", "reward", "terminal", "episode_end", "valid", "episode_start", "state")


class Sequences(NamedTuple):
    """B sequences of T steps."""

    obs: Obs
    """(T, B, *obs_shape)."""
    action: Tensor
    """(T, B) int64."""
    reward: Tensor
    """(T, B) float32, as the learner sees rewards."""
    next_obs: Obs
    """(T, B, *obs_shape): the true ones."""
    terminal: Tensor
    """(T, B) bool."""
    episode_end: Tensor
    """(T, B) bool."""
    valid: Tensor
    """(T, B) bool: False rows are no experience."""
    episode_start: Tensor
    """(T, B) bool: where the recurrent state is cleared before the step."""
    state: Tensor
    """(B, state_dim): of the policy before the first step, not yet cleared."""

    def to(self, device: torch.device) -> Sequences:
        """The same sequences on `device`."""
        return Sequences(*(to_device(part, device) for part in self))


class SequenceReplay:
    """A ring of rows of N environments, each with the recurrent state before it."""

    def __init__(
        self, capacity: int, spec: EnvSpec, length: int, state_dim: int, generator: np.random.Generator
    ) -> None:
        """Plans the memory; that of the observations is allocated at the first `add`.

        Args:
            capacity: transitions to hold, over all environments.
            spec: the environment's.
            length: T, steps of a sequence.
            state_dim: width of a recurrent state.
            generator: draws the samples.
        """
        self._num_envs, self._length, self._generator = spec.num_envs, length, generator
        stacked = spec.frame_stack > 1
        self._rows = max(-(-capacity // spec.num_envs), length) + (spec.frame_stack if stacked else 0)
        self._store = make_store(self._rows, spec)
        shape = (self._rows, spec.num_envs)
        self._action = torch.zeros(shape, dtype=torch.int64)
        self._reward = torch.zeros(shape)
        self._terminal, self._episode_end, self._valid, self._episode_start = (
            torch.zeros(shape, dtype=torch.bool) for _ in range(4)
        )
        self._state = torch.zeros(*shape, state_dim)
        self._added = 0  # rows ever written

    @property
    def bytes(self) -> int:
        """Memory of the full ring."""
        columns: list[Tensor] = [getattr(self, f"_{name}") for name in COLUMNS]
        return self._store.bytes + sum(t.numel() * t.itemsize for t in columns)

    def __len__(self) -> int:
        """Sequences that can be drawn now."""
        oldest, newest = self._sampleable()
        return max(0, newest - oldest + 1) * self._num_envs

    def add(self, transition: Transition, reward: Tensor, state: Tensor, episode_start: Tensor) -> None:
        """Stores one step of every environment. Everything is copied.

        Args:
            transition: the step.
            reward: (N,) as the learner sees it.
            state: (N, state_dim) before the step.
            episode_start: (N,) bool, where the policy cleared it.
        """
        row = self._added % self._rows
        self._store.write(row, transition)
        self._action[row] = transition.action
        self._reward[row] = reward
        self._terminal[row] = transition.terminal
        self._episode_end[row] = transition.episode_end
        self._valid[row] = transition.valid
        self._episode_start[row] = episode_start
        self._state[row] = state
        self._added += 1

    def _sampleable(self) -> tuple[int, int]:
        """First and last absolute row at which a sequence may begin."""
        oldest = max(0, self._added + self._store.lookahead - self._rows)
        return (oldest + self._store.history if oldest else 0), self._added - self._length

    def sample(self, batch_size: int) -> Sequences:
        """Draws `batch_size` sequences uniformly, with replacement."""
        oldest, newest = self._sampleable()
        flat = torch.from_numpy(
            self._generator.integers(oldest * self._num_envs, (newest + 1) * self._num_envs, batch_size)
        )
        start, env = flat // self._num_envs, flat % self._num_envs
        row = (start + torch.arange(self._length)[:, None]) % self._rows  # (T, B)
        envs = env.expand_as(row)

        def unflat(obs: Tensor) -> Tensor:
            return obs.view(self._length, batch_size, *obs.shape[1:])

        return Sequences(
            obs=map_obs(unflat, self._store.obs(row.flatten(), envs.flatten())),
            action=self._action[row, envs],
            reward=self._reward[row, envs],
            next_obs=map_obs(unflat, self._store.next_obs(row.flatten(), envs.flatten())),
            terminal=self._terminal[row, envs],
            episode_end=self._episode_end[row, envs],
            valid=self._valid[row, envs],
            episode_start=self._episode_start[row, envs],
            state=self._state[row[0], env],
        )

    def mean_obs(self) -> Tensor:
        """Mean of the stored observations: (*obs_shape) float32."""
        return self._store.mean(min(self._added, self._rows))

    def state_dict(self) -> State:
        """Views of what is stored (not copies), and the sampling stream."""
        filled = min(self._added, self._rows)
        return {
            "added": self._added,
            "generator": self._generator.bit_generator.state,
            "observations": self._store.state_dict(filled) if self._added else {},
            **{name: getattr(self, f"_{name}")[:filled] for name in COLUMNS},
        }

    def load_state_dict(self, state: State) -> None:
        self._added = int(state["added"])
        self._generator.bit_generator.state = state["generator"]
        if self._added:
            self._store.load_state_dict(state["observations"])
        for name in COLUMNS:
            getattr(self, f"_{name}")[: min(self._added, self._rows)] = state[name]
