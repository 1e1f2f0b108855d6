"""Rollouts: the last T steps of N environments, in the order in which they happened, on the environments' device.

Nothing here waits for the device: no number is read back, no row is selected by a mask, so that a rollout also fills
where environments live on a GPU, or on torch's meta device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from contract import EnvSpec, Obs, State, Transition

ValueOf = Callable[[Obs, Mapping[str, Tensor]], Tensor]
"""(next observations (K, *obs_shape), the extras of the K steps that led there) -> their values (K,)."""


class Rollout:
    """T x N steps.

    `next_obs[t]` is `obs[t + 1]` but where an episode ended, so it is not stored a second time: of true last
    observations the CPU keeps those rows only. Elsewhere, where picking rows would wait for the device, all are kept.
    """

    reward: Tensor
    """(T, N) float32, as the learner sees rewards."""
    terminal: Tensor
    """(T, N) bool."""
    episode_end: Tensor
    """(T, N) bool."""
    valid: Tensor
    """(T, N) bool: False rows are no experience; losses leave them out."""
    action: Tensor
    """(T, N) int64 or (T, N, action_dim) float32, as the environment got it."""
    obs: Any
    """(T, N, *obs_shape), or a dict of such tensors."""
    extras: dict[str, Tensor]
    """(T, N, ...) each: what the policy told about the moments of acting."""

    def __init__(self, length: int) -> None:
        """Makes an empty rollout; storage is allocated by the first `add`.

        Args:
            length: T, steps per environment.
        """
        self.length = length
        self.position = 0
        """Steps stored so far."""
        self._allocated = False
        self._last_obs: Obs = {}
        self._ends: list[tuple[int, Tensor, Obs]] = []  # CPU: step, environments (K,), true last observations (K, ...)
        self._next_obs: Obs | None = None  # elsewhere: (T, N, ...)

    @property
    def full(self) -> bool:
        return self.position == self.length

    @property
    def cut(self) -> Tensor:
        """(T, N) bool: row t + 1 does not continue this chain."""
        return self.terminal | self.episode_end

    @property
    def env_steps(self) -> int:
        """Environment steps stored: the valid rows."""
        return int(self.valid[: self.position].sum())

    def add(self, transition: Transition, reward: Tensor, extras: Mapping[str, Tensor]) -> None:
        """Copies one step; a full rollout must be cleared first.

        Args:
            transition: of N environments.
            reward: (N,) as the learner sees it.
            extras: (N, ...) each, the same names every time.
        """
        if not self._allocated:
            self._allocate(transition, reward, extras)
        t = self.position
        for store, value in (
            (self.reward, reward),
            (self.terminal, transition.terminal),
            (self.episode_end, transition.episode_end),
            (self.valid, transition.valid),
            (self.action, transition.action),
        ):
            store[t] = value
        for name, store in self.extras.items():
            store[t] = extras[name]
        _write(self.obs, t, transition.obs)
        if self._next_obs is not None:
            _write(self._next_obs, t, transition.next_obs)
        else:
            stops = transition.episode_end & ~transition.terminal
            if stops.any():
                envs = stops.nonzero().squeeze(1)
                self._ends.append((t, envs, map_obs(lambda part: part[envs], transition.next_obs)))
            if t == self.length - 1:
                self._last_obs = map_obs(torch.clone, transition.next_obs)
        self.position += 1

    def clear(self) -> None:
        """Forgets the steps and keeps the storage."""
        self.position = 0
        self._ends = []

    def next_value(self, value: Tensor, value_of: ValueOf) -> Tensor:
        """Values of the true next observations of a full rollout.

        Args:
            value: (T, N) float, values of `obs`: the value of step t + 1 is that of the next observation of step t.
            value_of: values the observations for which that is not so: true last observations at time limits, and those
                after the last step.

        Returns:
            (T, N) float. After a terminal it is meaningless, and not to be read.
        """
        if self._next_obs is not None:
            flat = map_obs(lambda part: part.flatten(0, 1), self._next_obs)
            all_values = value_of(flat, {k: v.flatten(0, 1) for k, v in self.extras.items()}).view_as(value)
            following = torch.cat([value[1:], all_values[-1:]])
            return torch.where(self.cut, all_values, following)
        last = value_of(self._last_obs, {k: v[-1] for k, v in self.extras.items()})
        next_value = torch.cat([value[1:], last[None]])
        if self._ends:
            step = torch.cat([torch.full_like(envs, t) for t, envs, _ in self._ends])
            envs = torch.cat([envs for _, envs, _ in self._ends])
            obs = _cat([obs for _, _, obs in self._ends])
            next_value[step, envs] = value_of(obs, {k: v[step, envs] for k, v in self.extras.items()})
        return next_value

    def state_dict(self) -> State:
        """Views of what is stored (not copies)."""
        if not self.position:
            return {"position": 0}
        steps = slice(0, self.position)
        state: State = {name: getattr(self, name)[steps] for name in _COLUMNS}
        state |= {"position": self.position, "extras": {k: v[steps] for k, v in self.extras.items()}}
        state["obs"] = map_obs(lambda part: part[steps], self.obs)
        if self._next_obs is not None:
            state["next_obs"] = map_obs(lambda part: part[steps], self._next_obs)
        state["ends"] = {str(t): {"envs": envs, "obs": obs} for t, envs, obs in self._ends}
        return state

    def load_state_dict(self, state: State) -> None:
        """Restores a rollout that is not full."""
        self.clear()
        self.position = int(state["position"])
        if not self.position:
            return
        for name in _COLUMNS:
            setattr(self, name, _padded(state[name], self.length))
        self.extras = {name: _padded(part, self.length) for name, part in state["extras"].items()}
        self.obs = map_obs(lambda part: _padded(part, self.length), state["obs"])
        if "next_obs" in state:
            self._next_obs = map_obs(lambda part: _padded(part, self.length), state["next_obs"])
        self._ends = [(int(t), end["envs"], end["obs"]) for t, end in sorted(state["ends"].items(), key=_step_of)]
        self._allocated = True

    def _allocate(self, transition: Transition, reward: Tensor, extras: Mapping[str, Tensor]) -> None:
        def rows(part: Tensor) -> Tensor:
            return _rows(part, self.length)

        self.reward, self.action = rows(reward), rows(transition.action)
        self.terminal, self.episode_end = rows(transition.terminal), rows(transition.episode_end)
        self.valid = rows(transition.valid)
        self.extras = {name: rows(part) for name, part in extras.items()}
        self.obs = map_obs(rows, transition.obs)
        if reward.device.type != "cpu":
            self._next_obs = map_obs(rows, transition.obs)
        self._allocated = True


def rollout_bytes(length: int, spec: EnvSpec, state_dim: int) -> int:
    """What a rollout will take once it is allocated; true last observations are few, and not counted."""
    obs = sum(np.prod(part.shape) * np.dtype(part.dtype).itemsize for part in _parts(spec.observation_space))
    numbers = 8 * int(np.prod(spec.action_space.shape or (1,))) + 12 + 8 * state_dim
    return int(length * spec.num_envs * (obs + 2 * numbers))


def _parts(space: gym.Space[Any]) -> list[Any]:
    return list(space.spaces.values()) if isinstance(space, gym.spaces.Dict) else [space]


_COLUMNS = ("reward", "action", "terminal", "episode_end", "valid")


def _step_of(item: tuple[str, Any]) -> int:
    return int(item[0])


def _rows(step: Tensor, length: int) -> Tensor:
    """(length, *step.shape) zeros; images lie channels last in memory, turned once instead of in every epoch."""
    if step.dim() != 4:
        return step.new_zeros((length, *step.shape))
    n, channels, height, width = step.shape
    return step.new_zeros((length, n, height, width, channels)).permute(0, 1, 4, 2, 3)


def _padded(stored: Tensor, length: int) -> Tensor:
    rows = _rows(stored[0], length)
    rows[: len(stored)] = stored
    return rows


def select_columns(obs: Any, columns: Tensor) -> Any:
    """Some environments of a stored tensor or dict: (T, N, ...) and (K,) -> (T, K, ...); images stay channels last."""

    def select(part: Tensor) -> Tensor:
        if part.dim() != 5:
            return part.index_select(1, columns)
        return part.permute(0, 1, 3, 4, 2).index_select(1, columns).permute(0, 1, 4, 2, 3)

    return map_obs(select, obs)


def map_obs(function: Callable[[Tensor], Tensor], obs: Any) -> Any:
    """Applies a function to an observation, or to each part of it."""
    return {name: function(part) for name, part in obs.items()} if isinstance(obs, dict) else function(obs)


def _write(store: Any, t: int, obs: Obs) -> None:
    if isinstance(obs, dict):
        for name, part in obs.items():
            store[name][t] = part
    else:
        store[t] = obs


def _cat(parts: list[Any]) -> Any:
    first = parts[0]
    return (
        {name: torch.cat([p[name] for p in parts]) for name in first} if isinstance(first, dict) else torch.cat(parts)
    )
