"""Device environments behind our contract. A batch resets itself, so nothing has to be undone here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
import warp as wp
from gymnasium.spaces import Discrete
from numpy.typing import NDArray
from torch import Tensor

from contract import EnvSpec, Episode, Obs, State, Step, Transition
from envs.device.endings import read_log
from faults import ConfigError, EnvError


class DeviceBatch(Protocol):
    """N environments as tensors on one device, each attribute valid until the next step."""

    action_tensor: Tensor
    """(N,) int64: where the next step reads its actions."""
    reward: Tensor
    terminal: Tensor
    episode_end: Tensor
    ended: Tensor
    """(N,) int32: episodes that ended since the log was last read."""

    @property
    def obs(self) -> dict[str, Tensor]: ...

    @property
    def next_obs(self) -> dict[str, Tensor]: ...

    def reset(self, seed: NDArray[np.uint32] | None = None, episode: NDArray[np.int32] | None = None) -> None: ...

    def step_and_reset(self) -> None: ...

    def state_dict(self) -> dict[str, NDArray[Any]]: ...

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None: ...

    def close(self) -> None: ...


class DeviceVecEnv:
    """A `DeviceBatch` as a `contract.VecEnv` that also steps without being watched (`contract.StepsOnDevice`)."""

    def __init__(
        self,
        batch: DeviceBatch,
        spec: EnvSpec,
        seeds: NDArray[np.uint32],
        finished: Callable[[Tensor, Tensor], list[Episode]],
    ) -> None:
        """Wraps `batch`.

        Args:
            batch: the environments.
            spec: how agents see them.
            seeds: (N,) what the episodes of each environment follow from.
            finished: describes episodes of the log; takes what `envs.device.endings.read_log` returns.
        """
        assert isinstance(spec.action_space, Discrete)
        self.spec, self.batch = spec, batch
        self._seeds, self._finished = seeds, finished
        self._num_actions = int(spec.action_space.n)
        self._valid = torch.ones(spec.num_envs, dtype=torch.bool, device=batch.reward.device)
        self._ready = False

    def reset(self) -> Obs:
        episode = np.zeros(self.spec.num_envs, np.int32)
        if self._ready:  # the running episodes are given up
            episode = np.asarray(self.batch.state_dict()["episode"]) + 1
        self._ready = True
        self.batch.reset(self._seeds, episode)
        self.batch.ended.zero_()
        return as_agents_see(self.batch.obs)

    def step(self, action: Tensor) -> Step:
        transition, obs = self.launch(action)
        return Step(transition, obs, self.drain())

    def launch(self, action: Tensor) -> tuple[Transition, Obs]:
        if not self._ready:
            raise EnvError(f"{self.spec.env_id}: reset must come before step")
        if action.shape != (self.spec.num_envs,):
            raise EnvError(f"{self.spec.env_id}: actions must be ({self.spec.num_envs},), got {tuple(action.shape)}")
        if action.device.type == "cpu" and not (action.min() >= 0 and action.max() < self._num_actions):
            raise EnvError(f"{self.spec.env_id}: actions are 0 to {self._num_actions - 1}, got {action.tolist()[:8]}")
        obs = as_agents_see(self.batch.obs)
        self.batch.action_tensor.copy_(action)
        with on_torch_stream(action.device):
            self.batch.step_and_reset()
        transition = Transition(
            obs=obs,
            action=action,
            reward=self.batch.reward,
            next_obs=as_agents_see(self.batch.next_obs),
            terminal=self.batch.terminal,
            episode_end=self.batch.episode_end,
            valid=self._valid,
        )
        return transition, as_agents_see(self.batch.obs)

    def drain(self) -> list[Episode]:
        env, slot = read_log(self.batch.ended)
        return self._finished(env, slot) if len(env) else []

    def seed_of(self, env_index: int) -> int:
        return int(np.asarray(self.batch.state_dict()["key"])[env_index])

    def close(self) -> None:
        self.batch.close()

    def state_dict(self) -> State:
        return dict(self.batch.state_dict())

    def load_state_dict(self, state: State) -> Obs:
        self.batch.load_state_dict(state)
        self.batch.ended.zero_()
        self._ready = True
        return as_agents_see(self.batch.obs)


def require(device: str) -> None:
    """Refuses a device that is not there.

    Raises:
        ConfigError: in one line.
    """
    if device == "cpu":
        return
    if not wp.is_cuda_available():
        raise ConfigError(f"env.device={device}: no CUDA device was found; use cpu")
    there = ["cpu", *(f"cuda:{i}" for i in range(wp.get_cuda_device_count()))]
    if device not in (*there, "cuda"):
        raise ConfigError(f"env.device={device} is not on this machine; it has {', '.join(there)}")


def on_torch_stream(device: torch.device) -> AbstractContextManager[object]:
    """Lets kernels run on torch's current stream: after what torch has done before, before what it does then, and into
    the CUDA graph that torch is capturing, if it is."""
    if device.type != "cuda":
        return nullcontext()
    return wp.ScopedStream(wp.stream_from_torch(device), sync_enter=False)


def as_agents_see(obs: dict[str, Tensor]) -> Obs:
    """One part stands alone; pictures become channels-first views, in the layout that convolutions read fastest."""
    seen = {name: part.permute(0, 3, 1, 2) if part.dim() == 4 else part for name, part in obs.items()}
    return seen if len(seen) > 1 else next(iter(seen.values()))
