"""Gymnasium vector environments behind our contract, with auto-reset undone in this one place.

Whatever the `AutoresetMode`, `HostVecEnv.step` returns the true next observation of every environment and, apart from
it, the observation to act on next:

    DISABLED   the ended environments are reset here, each with the seed of its next episode
    NEXT_STEP  the same, where the environment takes a `reset_mask` (ALE does); else the row of the following step, in
               which such an environment ignores its action and returns a reset observation, is marked not `valid`
    SAME_STEP  the true last observation is taken from `info["final_obs"]`, for rows that ended and for no other

Episodes are seeded one by one, so that a running episode is known by its seed and its actions: that is what a
checkpoint stores, and `load_state_dict` replays it. Where seeding is slow, an environment is seeded only now and then,
goes on from the random state that its episode before left, and is replayed from the last seed.
"""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from contract import EnvSpec, Episode, State, Step, Transition
from faults import ConfigError, EnvError, NonFiniteError

EpisodeSeed = Callable[[int, int], int]
"""(environment index, episode index) -> the seed of that episode, in [0, 2**31)."""


class HostVecEnv:
    """A Gymnasium vector environment as a `contract.VecEnv`. Tensors lie in CPU memory."""

    def __init__(
        self,
        vector_env: VectorEnv[Any, Any, Any],
        spec: EnvSpec,
        episode_seed: EpisodeSeed,
        *,
        resets_by_mask: bool,
        life_loss_is_terminal: bool = False,
        success_return: float | None = None,
        seed_every_env_steps: int = 0,
        discretize: Callable[[Tensor], Tensor] | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        """Wraps `vector_env`.

        Args:
            vector_env: the environment to step; it must return fresh arrays (Gymnasium's `copy=True`).
            spec: how agents see it; its spaces come from `agent_view`.
            episode_seed: the seed of each episode.
            resets_by_mask: whether `reset(seed=<array>, options={"reset_mask": ...})` resets single environments.
            life_loss_is_terminal: report a drop of `info["lives"]` as `terminal` (the episode goes on).
            success_return: an episode with at least this return counts as completed.
            seed_every_env_steps: seed an environment only where an episode begins at least so many of its steps after
                its last seed; 0 seeds each episode.
            discretize: (N, ...) numbers -> (N, ...) int64, if agents see numbers as bins.
            timeout_s: seconds after which a step counts as hung.
        """
        self.spec = spec
        self._env = vector_env
        self._mode = AutoresetMode(getattr(vector_env, "autoreset_mode", vector_env.metadata.get("autoreset_mode")))
        if self._mode is AutoresetMode.DISABLED and not resets_by_mask:
            raise EnvError(f"{spec.env_id}: an environment without auto-reset must take a reset_mask")
        self._resets_by_mask = resets_by_mask and self._mode is not AutoresetMode.SAME_STEP
        self._episode_seed = episode_seed
        self._life_loss_is_terminal = life_loss_is_terminal
        self._success_return = success_return
        self._seed_every_env_steps = seed_every_env_steps
        self._convert = _observation_converter(vector_env.single_observation_space)
        self._discretize = discretize
        self._discrete = isinstance(spec.action_space, Discrete)
        first_action = vector_env.single_action_space
        self._action_start = int(first_action.start) if isinstance(first_action, Discrete) else 0
        self._watchdog = Watchdog(timeout_s, f"{spec.env_id} did not answer within {timeout_s:g} s")

        n = spec.num_envs
        self._obs: Tensor | None = None
        self._episode = np.zeros(n, np.int64)  # episode index of each environment
        self._return = np.zeros(n, np.float64)
        self._length = np.zeros(n, np.int64)
        self._lives = np.zeros(n, np.int64)
        self._resetting = np.zeros(n, bool)  # NEXT_STEP without masks: the next row is the empty one
        self._seeded = np.zeros(n, np.int64)  # episode index at which each environment was seeded last
        self._began = np.zeros(n, np.int64)  # vector step at which that was
        self._actions: list[np.ndarray] = []  # vector actions since the oldest of these
        self._dropped = 0  # vector steps no longer in the log

    def reset(self) -> Tensor:
        n = self.spec.num_envs
        seeds = [self._episode_seed(i, int(self._episode[i])) for i in range(n)]
        self._seeded = self._episode.copy()
        obs, info = self._call("reset", lambda: self._env.reset(seed=self._seed_argument(seeds)))
        self._obs = self._to_agent(obs)
        self._check_observation(self._obs)
        self._return[:], self._length[:], self._resetting[:] = 0, 0, False
        self._actions, self._dropped, self._began = [], 0, np.zeros(n, np.int64)
        self._lives = self._lives_of(info)
        return self._obs

    def step(self, action: Tensor) -> Step:
        if self._obs is None:
            raise EnvError(f"{self.spec.env_id}: reset must come before step")
        act = self._checked_action(action)
        raw_obs, reward, terminated, truncated, info = self._call("step", lambda: self._env.step(act))
        reward = np.asarray(reward, np.float64)
        after = self._to_agent(raw_obs)
        self._check_observation(after)
        if not np.isfinite(reward).all():
            i = int(np.flatnonzero(~np.isfinite(reward))[0])
            raise NonFiniteError(f"{self.spec.env_id}: environment {i} returned reward {reward[i]} ({self._where(i)})")

        valid = ~self._resetting
        episode_end = (np.asarray(terminated, bool) | np.asarray(truncated, bool)) & valid
        terminal = np.asarray(terminated, bool) & valid
        if self._life_loss_is_terminal:
            lives = self._lives_of(info)
            terminal = terminal | ((lives < self._lives) & ~episode_end & valid)
            self._lives = lives

        next_obs = self._true_next_obs(after, episode_end, info)
        self._return += np.where(valid, reward, 0.0)
        self._length += valid
        self._actions.append(act)
        episodes = [self._finished(int(i), info) for i in np.flatnonzero(episode_end)]
        transition = Transition(
            obs=self._obs,
            action=action,
            reward=torch.from_numpy(reward.astype(np.float32)),
            next_obs=next_obs,
            terminal=torch.from_numpy(terminal),
            episode_end=torch.from_numpy(episode_end),
            valid=torch.from_numpy(valid),
        )
        self._obs = self._begin_next_episodes(after, episode_end)
        return Step(transition, self._obs, episodes)

    def seed_of(self, env_index: int) -> int:
        return self._episode_seed(env_index, int(self._seeded[env_index]))

    def close(self) -> None:
        self._watchdog.close()
        if isinstance(self._env, gym.vector.AsyncVectorEnv):
            self._env.close(terminate=True)  # a plain close waits for a dead worker for ever
        else:
            self._env.close()

    def state_dict(self) -> State:
        return {
            "episode": self._episode.copy(),
            "seeded": self._seeded.copy(),
            "began": self._began - self._dropped,
            "actions": np.stack(self._actions) if self._actions else np.zeros((0, self.spec.num_envs), np.int64),
            "obs_sha256": _fingerprint(self._obs),
        }

    def load_state_dict(self, state: State) -> Tensor:
        """Replays what has been played since the last seeds.

        Environments whose dynamics do not follow from seed and actions cannot be restored: they begin new episodes,
        and standard error says so.
        """
        self._episode = np.asarray(state["seeded"], np.int64).copy()
        actions, began = np.asarray(state["actions"]), np.asarray(state["began"], np.int64)
        obs = self.reset()
        if self._resets_by_mask:
            obs = self._replay(actions, began)
        if _fingerprint(obs) != state["obs_sha256"]:
            sys.stderr.write(
                f"warning: {self.spec.env_id} cannot be replayed from seeds and actions; new episodes begin here\n"
            )
            self._episode = np.asarray(state["episode"], np.int64) + 1
            obs = self.reset()
        return obs

    def _replay(self, actions: np.ndarray, began: np.ndarray) -> Tensor:
        """Steps through the action log; each environment begins its seeded episode at the step where it once did."""
        assert self._obs is not None
        for t, act in enumerate(actions):
            raw_obs, reward, terminated, truncated, info = self._call("step", functools.partial(self._env.step, act))
            self._return += reward
            self._length += 1
            self._lives = self._lives_of(info)
            self._actions.append(act)
            enters = began == t + 1
            ended = np.asarray(terminated, bool) | np.asarray(truncated, bool)
            self._episode += ended & (began <= t)
            self._obs = self._to_agent(raw_obs)
            if (enters | ended).any():
                self._obs = self._reset_by_mask(enters | ended, seeded=enters)
        return self._obs

    def _begin_next_episodes(self, after: Tensor, episode_end: np.ndarray) -> Tensor:
        ended = np.flatnonzero(episode_end)
        if len(ended):
            self._episode[ended] += 1
        obs = after
        if self._resets_by_mask:
            if len(ended):
                played = self._dropped + len(self._actions) - self._began
                due = episode_end & (played >= self._seed_every_env_steps)
                obs = self._reset_by_mask(episode_end, seeded=due)
        else:
            self._return[ended], self._length[ended] = 0, 0
            self._began[ended] = self._dropped + len(self._actions)
            if self._mode is AutoresetMode.NEXT_STEP:
                self._resetting = episode_end.copy()
        if len(ended):
            self._forget_finished_actions()
        return obs

    def _reset_by_mask(self, mask: np.ndarray, seeded: np.ndarray) -> Tensor:
        """Begins an episode where `mask` says so, with its own seed where `seeded` does, which implies `mask`."""
        seeds = [self._episode_seed(int(i), int(self._episode[i])) if seeded[i] else None for i in np.flatnonzero(mask)]
        obs, info = self._call(
            "reset", lambda: self._env.reset(seed=self._seed_argument(seeds, mask), options={"reset_mask": mask})
        )
        converted = self._to_agent(obs)
        self._check_observation(converted)
        self._return[mask], self._length[mask] = 0, 0
        self._seeded[seeded] = self._episode[seeded]
        self._began[seeded] = self._dropped + len(self._actions)
        self._lives = np.where(mask, self._lives_of(info), self._lives)
        return converted

    def _forget_finished_actions(self) -> None:
        """Keeps only the actions that a replay needs; cuts in blocks, so that appending stays cheap."""
        stale = int(self._began.min()) - self._dropped
        if stale > len(self._actions) // 2:
            del self._actions[:stale]
            self._dropped += stale

    def _true_next_obs(self, after: Tensor, episode_end: np.ndarray, info: dict[str, Any]) -> Tensor:
        if self._mode is not AutoresetMode.SAME_STEP or not episode_end.any():
            return after
        next_obs = after.clone()
        for i in np.flatnonzero(episode_end):  # the other rows of final_obs may be uninitialised memory
            final = info["final_obs"][i]
            batch = (
                tuple(np.asarray(part)[None] for part in final) if isinstance(final, tuple) else np.asarray(final)[None]
            )
            next_obs[i] = self._to_agent(batch)[0]
        self._check_observation(next_obs)
        return next_obs

    def _finished(self, i: int, info: dict[str, Any]) -> Episode:
        success: bool | None = None
        for source in (info, info.get("final_info", {})):  # the latter is SAME_STEP's, where `info` is the reset's
            for key in ("is_success", "success"):
                if key in source and source.get(f"_{key}", np.ones(self.spec.num_envs, bool))[i]:
                    success = bool(source[key][i])
        if success is None and self._success_return is not None:
            success = bool(self._return[i] >= self._success_return)
        seed = self.seed_of(i) if self._seeded[i] == self._episode[i] else None
        return Episode(i, float(self._return[i]), int(self._length[i]), success, seed=seed)

    def _checked_action(self, action: Tensor) -> np.ndarray:
        """Refuses actions outside the space: an emulator thread that gets one never answers."""
        act = action.detach().cpu().numpy().copy()  # it stays in the log of actions
        if not self._discrete:
            return act
        n = int(self.spec.action_space.n)  # type: ignore[attr-defined]
        if act.shape != (self.spec.num_envs,) or act.dtype != np.int64 or act.min() < 0 or act.max() >= n:
            raise EnvError(
                f"{self.spec.env_id}: actions must be int64 ({self.spec.num_envs},) in [0, {n - 1}], "
                f"got {act.dtype} {act.shape} in [{act.min()}, {act.max()}]"
            )
        return act + self._action_start

    def _check_observation(self, obs: Tensor) -> None:
        if obs.dtype == torch.float32 and not torch.isfinite(obs).all():
            i = int(torch.nonzero(~torch.isfinite(obs).flatten(1).all(1))[0])
            raise NonFiniteError(
                f"{self.spec.env_id}: environment {i} returned a non-finite observation ({self._where(i)})"
            )

    def _to_agent(self, obs: Any) -> Tensor:
        """The environment's observations as agents see them."""
        converted = self._convert(obs)
        return converted if self._discretize is None else self._discretize(converted)

    def _where(self, i: int) -> str:
        later = self._episode[i] - self._seeded[i]
        episode = f"episode {later} after it" if later else "its episode"
        return f"seed {self.seed_of(i)}, step {self._length[i]} of {episode}"

    def _seed_argument(self, seeds: Sequence[int | None], mask: np.ndarray | None = None) -> Any:
        """Seeds as the environment wants them: ALE one per environment being reset, with -1 for none; Gymnasium one per
        environment."""
        if not isinstance(self._env, gym.vector.SyncVectorEnv | gym.vector.AsyncVectorEnv):
            return np.array([-1 if seed is None else seed for seed in seeds]) if self._resets_by_mask else seeds[0]
        if mask is None:
            return seeds
        by_env = dict(zip(np.flatnonzero(mask).tolist(), seeds, strict=True))
        return [by_env.get(i) for i in range(self.spec.num_envs)]

    def _lives_of(self, info: dict[str, Any]) -> np.ndarray:
        return np.asarray(info.get("lives", self._lives), np.int64).copy()

    def _call(self, verb: str, function: Callable[[], Any]) -> Any:
        """Runs the environment's own code: a hang ends the process, an exception becomes one line."""
        try:
            with self._watchdog:
                return function()
        except (KeyboardInterrupt, EnvError):
            raise
        except Exception as error:
            text = str(error).splitlines()[0] if str(error) else "its worker died"
            raise EnvError(
                f"{self.spec.env_id}: {verb} failed after {self._dropped + len(self._actions)} vector steps: "
                f"{type(error).__name__}: {text}"
            ) from error


class Watchdog:
    """Ends the process with exit code 3 when a `with` block takes too long.

    A hung emulator thread cannot be interrupted from Python, so the process itself must go; the last checkpoint stays.
    """

    def __init__(self, timeout_s: float, message: str) -> None:
        self._timeout_s = timeout_s
        self._message = message
        self._deadline = float("inf")
        self._closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def __enter__(self) -> None:
        self._deadline = time.monotonic() + self._timeout_s

    def __exit__(self, *exc: object) -> None:
        self._deadline = float("inf")

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._timeout_s / 4)):
            if time.monotonic() > self._deadline:
                sys.stderr.write(f"error: {self._message}; the last checkpoint is kept\n")
                sys.stderr.flush()
                for worker in multiprocessing.active_children():
                    worker.kill()  # a hung one would not notice that its parent is gone
                os._exit(EnvError.exit_code)


def agent_view(space: gym.Space[Any], env_id: str) -> gym.Space[Any]:
    """The space in which agents see observations of `space`: what `HostVecEnv` converts to.

    Images become channels-first uint8, numbers float32 (bytes stay uint8), tuples of Discrete a MultiDiscrete.

    Raises:
        ConfigError: one line, for a space that no agent here can read.
    """
    if isinstance(space, Box):
        dtype: Any = np.uint8 if space.dtype == np.uint8 else np.float32
        low, high = space.low, space.high
        if _is_channels_last(space):
            low, high = np.moveaxis(low, -1, 0), np.moveaxis(high, -1, 0)
        return Box(low.astype(dtype), high.astype(dtype), dtype=dtype)
    if isinstance(space, Discrete):
        return Discrete(int(space.n))
    if isinstance(space, MultiDiscrete) and len(space.shape) == 1:
        return MultiDiscrete(space.nvec)
    if isinstance(space, MultiBinary):
        return MultiDiscrete(np.full(int(np.prod(space.shape)), 2))
    if isinstance(space, Tuple) and all(isinstance(part, Discrete) for part in space):
        return MultiDiscrete([int(part.n) for part in space])
    raise ConfigError(
        f"{env_id} has observations of type {type(space).__name__}, which no agent reads; Box, Discrete, "
        "MultiDiscrete, MultiBinary and tuples of Discrete are supported"
    )


def _is_channels_last(space: Box) -> bool:
    return len(space.shape) == 3 and space.dtype == np.uint8 and space.shape[2] in (1, 3, 4)


def _observation_converter(space: gym.Space[Any]) -> Callable[[Any], Tensor]:
    """(N, ...) of the environment's space -> (N, ...) tensor of `agent_view`.

    Whatever their axes, images lie channels last in memory: so convolutions read them, and rollouts store them.
    """
    if isinstance(space, Box):
        if _is_channels_last(space):
            return lambda obs: torch.from_numpy(np.asarray(obs)).permute(0, 3, 1, 2)
        if space.dtype == np.uint8 and len(space.shape) == 3:
            return lambda obs: torch.from_numpy(np.asarray(obs)).contiguous(memory_format=torch.channels_last)
        if space.dtype == np.uint8:
            return lambda obs: torch.from_numpy(np.asarray(obs))
        return lambda obs: torch.from_numpy(np.asarray(obs, np.float32))
    if isinstance(space, Discrete):
        start = int(space.start)
        return lambda obs: torch.from_numpy(np.asarray(obs, np.int64) - start)
    if isinstance(space, Tuple):
        starts = np.array([int(part.start) for part in space])
        return lambda obs: torch.from_numpy(np.stack([np.asarray(part, np.int64) for part in obs], axis=1) - starts)
    if isinstance(space, MultiDiscrete):
        offset = space.start.astype(np.int64)
        return lambda obs: torch.from_numpy(np.asarray(obs, np.int64) - offset)
    return lambda obs: torch.from_numpy(np.asarray(obs, np.int64).reshape(len(obs), -1))


def _fingerprint(obs: Tensor | None) -> str:
    return "" if obs is None else hashlib.sha256(obs.contiguous().numpy().tobytes()).hexdigest()
