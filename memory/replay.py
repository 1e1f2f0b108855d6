"""Uniform experience replay with n-step returns, for vectors and for stacked frames.

A ring of T rows of N environments. What differs between observations is only where they are stored:

    VectorStore   obs and next_obs side by side
    FrameStore    each frame once; stacks are put together when they are sampled (1,000,000 Atari steps take 7.1 GB)
    SensesStore   observations of several parts: a VectorStore for each

Sources:
    Mnih et al. 2015, Nature 518, "Methods": uniform replay; frames stored once.
    Sutton 1988 and Hessel et al. 2018, arXiv:1710.02298: n-step targets from replay.

Deviations:
    At the newest rows fewer than n steps have happened yet; such a sample has the m < n steps that there are, with
    discount gamma**m. The sources wait instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from contract import Batch, EnvSpec, Obs, State, Transition
from faults import ConfigError, check_range


@dataclass(frozen=True)
class ReplaySettings:
    """The `agent.*` keys of learning from a replay."""

    gamma: float = 0.99
    """Discount per environment step, in [0, 1]."""
    n_step: int = 1
    """Rewards in a target before it bootstraps."""
    batch_size: int = 128
    samples_per_env_step: float = 8.0
    """Replayed samples per environment step: a gradient step every `batch_size / samples_per_env_step` steps."""
    replay_capacity: int = 50_000
    """Transitions."""
    learning_starts_env_steps: int = 1_000

    def __post_init__(self) -> None:
        check_range("agent.gamma", self.gamma, 0, 1)
        check_range("agent.n_step", self.n_step, 1, 1000)
        check_range("agent.batch_size", self.batch_size, 1, None)
        check_range("agent.samples_per_env_step", self.samples_per_env_step, 0, None, open_low=True)
        check_range("agent.replay_capacity", self.replay_capacity, 1, None)
        check_range("agent.learning_starts_env_steps", self.learning_starts_env_steps, 1, None)
        if self.batch_size > self.replay_capacity:
            raise ConfigError(
                f"agent.batch_size ({self.batch_size}) must not exceed agent.replay_capacity ({self.replay_capacity})"
            )

    def updates_due(self, env_steps: int) -> int:
        """Gradient steps that so many environment steps have earned since the start of the run."""
        learning_env_steps = max(0, env_steps - self.learning_starts_env_steps)
        return int(learning_env_steps * self.samples_per_env_step / self.batch_size)


class ObsStore(Protocol):
    """Stores the observations of a ring of T rows of N environments. Sampled tensors are fresh copies."""

    bytes: int
    history: int
    """How many rows before a sampled one must still be there."""
    lookahead: int
    """How many rows after the newest one are overwritten early."""

    def write(self, row: int, transition: Transition) -> None: ...

    def obs(self, rows: Tensor, envs: Tensor) -> Obs: ...

    def next_obs(self, rows: Tensor, envs: Tensor) -> Obs: ...

    def mean(self, filled: int) -> Tensor: ...

    def state_dict(self, filled: int) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


class VectorStore:
    """Observations and next observations, side by side."""

    history = 0
    lookahead = 0

    def __init__(self, rows: int, spec: EnvSpec) -> None:
        shape = (rows, spec.num_envs, *(spec.observation_space.shape or ()))
        dtype = torch.from_numpy(np.zeros(0, spec.observation_space.dtype)).dtype
        self._shape, self._dtype = shape, dtype
        self.bytes = 2 * int(np.prod(shape)) * dtype.itemsize
        self._obs = self._next_obs = torch.empty(0)

    def write(self, row: int, transition: Transition) -> None:
        if self._obs.numel() == 0:
            self._obs, self._next_obs = (torch.zeros(self._shape, dtype=self._dtype) for _ in range(2))
        self._obs[row] = transition.obs  # type: ignore[assignment]
        self._next_obs[row] = transition.next_obs  # type: ignore[assignment]

    def obs(self, rows: Tensor, envs: Tensor) -> Tensor:
        return self._obs[rows, envs]

    def next_obs(self, rows: Tensor, envs: Tensor) -> Tensor:
        return self._next_obs[rows, envs]

    def mean(self, filled: int) -> Tensor:
        return self._obs[:filled].float().mean(dim=(0, 1))

    def state_dict(self, filled: int) -> State:
        return {"obs": self._obs[:filled], "next_obs": self._next_obs[:filled]}

    def load_state_dict(self, state: State) -> None:
        self._obs, self._next_obs = (torch.zeros(self._shape, dtype=self._dtype) for _ in range(2))
        filled = len(state["obs"])
        self._obs[:filled], self._next_obs[:filled] = state["obs"], state["next_obs"]


class FrameStore:
    """Each frame once. A stack is found by walking back from its newest frame; frames before the episode's first are
    zero. The true last frame of an episode, which belongs to no row, lies in a side store."""

    lookahead = 1

    def __init__(self, rows: int, spec: EnvSpec) -> None:
        self._rows, self._num_envs = rows, spec.num_envs
        shape = spec.observation_space.shape
        assert shape is not None
        self._stack, self._frame_shape = shape[0], shape[1:]
        self.history = self._stack - 1
        # One more frame than there are slots: it stays zero and stands for what came before an episode.
        self._num_frames = rows * spec.num_envs + 1
        self._frames = torch.empty(0, dtype=torch.uint8)
        self._age = torch.zeros(rows, spec.num_envs, dtype=torch.int64)  # steps since the episode's first observation
        self.bytes = self._num_frames * int(np.prod(self._frame_shape)) + self._age.numel() * self._age.itemsize
        self._next_age = torch.zeros(spec.num_envs, dtype=torch.int64)
        self._last_frame: dict[int, Tensor] = {}  # slot of the last row of an episode -> the frame after it

    def write(self, row: int, transition: Transition) -> None:
        if self._frames.numel() == 0:
            self._frames = torch.zeros(self._num_frames, *self._frame_shape, dtype=torch.uint8)
        first = row * self._num_envs
        for slot in range(first, first + self._num_envs):
            self._last_frame.pop(slot, None)
        self._frames[first : first + self._num_envs] = transition.obs[:, -1]  # type: ignore[index]
        self._age[row] = self._next_age
        self._next_age = torch.where(transition.episode_end | ~transition.valid, 0, self._next_age + 1)
        # The newest row's next frame is not stored yet: lend it the row that is overwritten next.
        ahead = ((row + 1) % self._rows) * self._num_envs
        newest = transition.next_obs[:, -1]  # type: ignore[index]
        self._frames[ahead : ahead + self._num_envs] = newest
        for i in torch.nonzero(transition.episode_end).flatten().tolist():
            self._last_frame[first + i] = newest[i].clone()

    def obs(self, rows: Tensor, envs: Tensor) -> Tensor:
        return self._gather(self._slots(rows, envs, self._stack))

    def next_obs(self, rows: Tensor, envs: Tensor) -> Tensor:
        newest = ((rows + 1) % self._rows) * self._num_envs + envs
        stack = self._gather(torch.cat([self._slots(rows, envs, self._stack - 1), newest[:, None]], dim=1))
        for b, slot in enumerate((rows * self._num_envs + envs).tolist()):
            if slot in self._last_frame:
                stack[b, -1] = self._last_frame[slot]
        return stack

    def _gather(self, slots: Tensor) -> Tensor:
        """Frames by slot: (B, k) -> (B, k, H, W). One flat `index_select` copies whole frames."""
        return self._frames.index_select(0, slots.flatten()).view(*slots.shape, *self._frame_shape)

    def _slots(self, rows: Tensor, envs: Tensor, count: int) -> Tensor:
        """Indices of the `count` frames up to and with the frame of each row: (B, count), oldest first."""
        back = torch.arange(count - 1, -1, -1)  # (count,)
        slots = ((rows[:, None] - back) % self._rows) * self._num_envs + envs[:, None]
        before_episode = back > self._age[rows, envs][:, None]
        return torch.where(before_episode, self._num_frames - 1, slots)

    def mean(self, filled: int) -> Tensor:
        frames = self._frames[: filled * self._num_envs]
        return (frames.sum(dim=0, dtype=torch.int64) / len(frames)).expand(self._stack, *self._frame_shape)

    def state_dict(self, filled: int) -> State:
        last_slots = sorted(self._last_frame)
        last = torch.stack([self._last_frame[s] for s in last_slots]) if last_slots else self._frames[:0]
        stored = min(filled + self.lookahead, self._rows) * self._num_envs
        return {
            "frames": self._frames[:stored],
            "age": self._age[:filled],
            "next_age": self._next_age,
            "last_slots": torch.tensor(last_slots, dtype=torch.int64),
            "last_frames": last,
        }

    def load_state_dict(self, state: State) -> None:
        self._frames = torch.zeros(self._num_frames, *self._frame_shape, dtype=torch.uint8)
        self._frames[: len(state["frames"])] = state["frames"]
        self._age[: len(state["age"])] = state["age"]
        self._next_age = state["next_age"].clone()
        pairs = zip(state["last_slots"].tolist(), state["last_frames"], strict=True)
        self._last_frame = {slot: frame.clone() for slot, frame in pairs}


class SensesStore:
    """Observations of several parts, each in a store of its own."""

    history = 0
    lookahead = 0

    def __init__(self, rows: int, spec: EnvSpec) -> None:
        assert isinstance(spec.observation_space, gym.spaces.Dict)
        self._parts = {
            name: VectorStore(rows, replace(spec, observation_space=space))
            for name, space in spec.observation_space.items()
        }
        self.bytes = sum(part.bytes for part in self._parts.values())

    def write(self, row: int, transition: Transition) -> None:
        obs, next_obs = transition.obs, transition.next_obs
        assert isinstance(obs, dict)
        assert isinstance(next_obs, dict)
        for name, part in self._parts.items():
            part.write(row, transition._replace(obs=obs[name], next_obs=next_obs[name]))

    def obs(self, rows: Tensor, envs: Tensor) -> dict[str, Tensor]:
        return {name: part.obs(rows, envs) for name, part in self._parts.items()}

    def next_obs(self, rows: Tensor, envs: Tensor) -> dict[str, Tensor]:
        return {name: part.next_obs(rows, envs) for name, part in self._parts.items()}

    def mean(self, filled: int) -> Tensor:
        raise ConfigError("observations of several senses have no one mean image")

    def state_dict(self, filled: int) -> State:
        return {name: part.state_dict(filled) for name, part in self._parts.items()}

    def load_state_dict(self, state: State) -> None:
        for name, part in self._parts.items():
            part.load_state_dict(state[name])


def make_store(rows: int, spec: EnvSpec) -> ObsStore:
    """The store that fits the observations."""
    if isinstance(spec.observation_space, gym.spaces.Dict):
        return SensesStore(rows, spec)
    return FrameStore(rows, spec) if spec.frame_stack > 1 else VectorStore(rows, spec)


class Replay:
    """A ring of transitions from N environments, sampled uniformly as n-step batches."""

    def __init__(self, capacity: int, spec: EnvSpec, gamma: float, n_step: int, generator: np.random.Generator) -> None:
        """Plans the memory; it is allocated at the first `add`.

        Args:
            capacity: transitions to hold, over all environments.
            spec: the environment's; `frame_stack` above 1 selects the `FrameStore`.
            gamma: discount per environment step.
            n_step: steps per sample.
            generator: draws the samples.
        """
        self._num_envs = spec.num_envs
        self._gamma, self._n_step = gamma, n_step
        self._generator = generator
        rows = -(-capacity // spec.num_envs)
        self._rows = rows + spec.frame_stack if spec.frame_stack > 1 else rows
        self._store = make_store(self._rows, spec)
        action_shape = spec.action_space.shape or ()
        action_dtype = torch.float32 if action_shape else torch.int64
        self._action = torch.zeros(self._rows, self._num_envs, *action_shape, dtype=action_dtype)
        self._reward = torch.zeros(self._rows, self._num_envs)
        self._terminal, self._episode_end, self._valid = (
            torch.zeros(self._rows, self._num_envs, dtype=torch.bool) for _ in range(3)
        )
        self._added = 0  # rows ever written

    @property
    def bytes(self) -> int:
        """Memory of the full ring."""
        small = (self._action, self._reward, self._terminal, self._episode_end, self._valid)
        return self._store.bytes + sum(t.numel() * t.itemsize for t in small)

    @property
    def slots(self) -> int:
        """Rows of the ring times environments."""
        return self._rows * self._num_envs

    @property
    def _filled(self) -> int:
        return min(self._added, self._rows)

    def __len__(self) -> int:
        """Transitions that can be sampled now (empty reset rows included)."""
        oldest, newest = self.sampleable()
        return max(0, newest - oldest + 1) * self._num_envs

    def add(self, transition: Transition, reward: Tensor) -> None:
        """Stores one step of every environment; `reward` (N,) is as the learner sees it. Everything is copied."""
        row = self._added % self._rows
        self._store.write(row, transition)
        self._action[row] = transition.action
        self._reward[row] = reward
        self._terminal[row] = transition.terminal
        self._episode_end[row] = transition.episode_end
        self._valid[row] = transition.valid
        self._added += 1

    def absolute(self, row: Tensor) -> Tensor:
        """Absolute rows of rows of the ring: (B,) -> (B,)."""
        newest = self._added - 1
        return newest - (newest - row) % self._rows

    def sampleable(self) -> tuple[int, int]:
        """First and last absolute row that may begin a sample: what the ring's head spares, with its history."""
        oldest = max(0, self._added + self._store.lookahead - self._rows)
        return (oldest + self._store.history if oldest else 0), self._added - 1

    def sample(self, batch_size: int) -> Batch:
        """Draws `batch_size` transitions uniformly, with replacement."""
        return self.gather(*self._draw(batch_size))

    def gather(self, rows: Tensor, envs: Tensor) -> Batch:
        """The n-step samples that begin at absolute rows (B,) of environments (B,)."""
        reward, discount, last = self._chain(rows, envs)
        first, last = rows % self._rows, last % self._rows
        return Batch(
            obs=self._store.obs(first, envs),
            action=self._action[first, envs],
            reward=reward,
            next_obs=self._store.next_obs(last, envs),
            discount=discount,
        )

    def mean_obs(self) -> Tensor:
        """Mean of the stored observations: (*obs_shape) float32."""
        return self._store.mean(self._filled)

    def _draw(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Absolute rows and environments of the samples; the empty rows of resetting environments are drawn again."""
        oldest, newest = self.sampleable()
        flat = self._generator.integers(oldest * self._num_envs, (newest + 1) * self._num_envs, batch_size)
        while True:
            drawn = torch.from_numpy(flat)
            rows, envs = drawn // self._num_envs, drawn % self._num_envs
            empty = ~self._valid[rows % self._rows, envs].numpy()
            if not empty.any():
                return rows, envs
            flat[empty] = self._generator.integers(
                oldest * self._num_envs, (newest + 1) * self._num_envs, int(empty.sum())
            )

    def _chain(self, rows: Tensor, envs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Walks up to n steps from each start, not across an end of the episode or of the ring.

        Returns:
            Sum of discounted rewards (B,), discount of the next value (B,), absolute row of the last step (B,).
        """
        reward = torch.zeros(len(rows))
        power = 1.0
        discount = torch.ones(len(rows))
        last = rows
        alive = torch.ones(len(rows), dtype=torch.bool)
        for j in range(self._n_step):
            at = rows + j
            alive = alive & (at < self._added)
            row = at % self._rows
            reward = torch.where(alive, reward + power * self._reward[row, envs], reward)
            power *= self._gamma
            terminal = self._terminal[row, envs]
            discount = torch.where(alive, power * ~terminal, discount)
            last = torch.where(alive, at, last)
            alive = alive & ~terminal & ~self._episode_end[row, envs]
        return reward, discount, last

    def state_dict(self) -> State:
        """Views of what is stored (not copies), and the sampling stream."""
        filled = self._filled
        names = ("action", "reward", "terminal", "episode_end", "valid")
        return {
            "added": self._added,
            "generator": self._generator.bit_generator.state,
            "observations": self._store.state_dict(filled) if self._added else {},
            **{name: getattr(self, f"_{name}")[:filled] for name in names},
        }

    def load_state_dict(self, state: State) -> None:
        self._added = int(state["added"])
        self._generator.bit_generator.state = state["generator"]
        if self._added:
            self._store.load_state_dict(state["observations"])
        for name in ("action", "reward", "terminal", "episode_end", "valid"):
            getattr(self, f"_{name}")[: self._filled] = state[name]
