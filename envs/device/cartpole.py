"""CartPole-v1 on the device: N carts stepped and reset by one kernel.

The dynamics are Gymnasium's, in float64 like Gymnasium's, but for rounding; so are rewards, ends, the time limit and
the distribution of first states. Only the random numbers differ: they are counter-based, so that one seed gives one
episode on the CPU and on CUDA.

Source:
    Barto, Sutton and Anderson 1983; Gymnasium 1.4, `classic_control/cartpole.py`, euler integration.
"""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym
import numpy as np
import warp as wp
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from torch import Tensor

from contract import EnvSpec, Episode
from envs.device.endings import KEPT, SLOTS, entries
from envs.device.random import draw, episode_key
from envs.device.vec import DeviceVecEnv, require

wp.set_module_options({"enable_backward": False, "fuse_fp": False, "optimization_level": 3})

GRAVITY, LENGTH, FORCE, TAU = (wp.constant(wp.float64(v)) for v in (9.8, 0.5, 10.0, 0.02))
# Shares of the whole mass: the pole's, the pole's times its half length, and 1.
POLE_SHARE, LENGTH_SHARE, ONE_SHARE = (wp.constant(wp.float64(v / 1.1)) for v in (0.1, 0.1 * 0.5, 1.0))
FOUR_THIRDS = wp.constant(wp.float64(4.0 / 3.0))
X_LIMIT, THETA_LIMIT = wp.constant(wp.float64(2.4)), wp.constant(wp.float64(12 * 2 * np.pi / 360))
TIME_LIMIT = 500
LIMIT = wp.constant(TIME_LIMIT)
START_SPREAD = wp.constant(wp.float64(0.05))
"""First states are uniform in [-0.05, 0.05) in each of the four numbers."""
MIN_ENVS_PER_THREAD = 2048


@wp.struct
class Carts:
    """All that changes, for N carts."""

    seed: wp.array(dtype=wp.uint32)
    episode: wp.array(dtype=wp.int32)
    key: wp.array(dtype=wp.uint32)
    physics: wp.array(dtype=wp.vec4d)
    """(N,) position, velocity, angle, angular velocity (m, m/s, rad, rad/s)."""
    time: wp.array(dtype=wp.int32)


@wp.struct
class Answer:
    """What a step answers, and the log of ended episodes."""

    reward: wp.array(dtype=wp.float32)
    terminal: wp.array(dtype=wp.bool)
    episode_end: wp.array(dtype=wp.bool)
    ended: wp.array(dtype=wp.int32)
    """(N,) episodes that ended since the log was last read, see `envs.device.endings`."""
    ended_time: wp.array2d(dtype=wp.int32)
    ended_key: wp.array2d(dtype=wp.uint32)


@wp.func
def sine_ratio(square: wp.float64) -> wp.float64:
    """sin(x) / x by its series, from x squared: exact to a bit or two for |x| below 0.3, where poles still stand."""
    return wp.float64(1.0) - square * wp.float64(1.0 / 6.0) * (
        wp.float64(1.0)
        - square
        * wp.float64(1.0 / 20.0)
        * (
            wp.float64(1.0)
            - square
            * wp.float64(1.0 / 42.0)
            * (wp.float64(1.0) - square * wp.float64(1.0 / 72.0) * (wp.float64(1.0) - square * wp.float64(1.0 / 110.0)))
        )
    )


@wp.func
def cosine(square: wp.float64) -> wp.float64:
    """cos(x) by its series, from x squared."""
    return wp.float64(1.0) - square * wp.float64(1.0 / 2.0) * (
        wp.float64(1.0)
        - square
        * wp.float64(1.0 / 12.0)
        * (
            wp.float64(1.0)
            - square
            * wp.float64(1.0 / 30.0)
            * (wp.float64(1.0) - square * wp.float64(1.0 / 56.0) * (wp.float64(1.0) - square * wp.float64(1.0 / 90.0)))
        )
    )


@wp.func
def begin(carts: Carts, i: int) -> wp.vec4d:
    """Begins the episode that seed and episode number name."""
    key = episode_key(carts.seed[i], carts.episode[i])
    carts.key[i] = key
    carts.time[i] = 0
    physics = wp.vec4d()
    for k in range(4):
        unit = wp.float64(draw(key, 0, 0, k)) * wp.float64(2.3283064365386963e-10)  # 2**-32
        physics[k] = (unit * wp.float64(2.0) - wp.float64(1.0)) * START_SPREAD
    carts.physics[i] = physics
    return physics


@wp.kernel
def reset(first: int, carts: Carts) -> None:
    begin(carts, first + wp.tid())


@wp.kernel
def observe(first: int, carts: Carts, obs: wp.array(dtype=wp.vec4f)) -> None:
    i = first + wp.tid()
    obs[i] = wp.vec4f(carts.physics[i])


@wp.kernel
def step(
    first: int,
    carts: Carts,
    action: wp.array(dtype=wp.int64),
    answer: Answer,
    next_obs: wp.array(dtype=wp.vec4f),
    obs: wp.array(dtype=wp.vec4f),
) -> None:
    """One step; where it ends the episode the next one begins. `next_obs` is the true one, `obs` what to act on."""
    i = first + wp.tid()
    s = carts.physics[i]
    force = FORCE
    if action[i] == wp.int64(0):
        force = -FORCE
    square = s[2] * s[2]
    cos_theta = cosine(square)
    sin_theta = s[2] * sine_ratio(square)
    temp = ONE_SHARE * force + LENGTH_SHARE * (s[3] * s[3]) * sin_theta
    theta_acc = (GRAVITY * sin_theta - cos_theta * temp) / (
        LENGTH * (FOUR_THIRDS - POLE_SHARE * (cos_theta * cos_theta))
    )
    x_acc = temp - LENGTH_SHARE * theta_acc * cos_theta
    s = wp.vec4d(s[0] + TAU * s[1], s[1] + TAU * x_acc, s[2] + TAU * s[3], s[3] + TAU * theta_acc)
    carts.physics[i] = s
    time = carts.time[i] + 1
    carts.time[i] = time
    terminal = s[0] < -X_LIMIT or s[0] > X_LIMIT or s[2] < -THETA_LIMIT or s[2] > THETA_LIMIT
    answer.reward[i] = 1.0
    answer.terminal[i] = terminal
    next_obs[i] = wp.vec4f(s)
    ends = terminal or time >= LIMIT
    answer.episode_end[i] = ends
    if ends:
        slot = answer.ended[i] % SLOTS
        answer.ended_time[i, slot] = time
        answer.ended_key[i, slot] = carts.key[i]
        answer.ended[i] += 1
        carts.episode[i] += 1
        s = begin(carts, i)
    obs[i] = wp.vec4f(s)


class CartPoleBatch:
    """N carts on one device, see `envs.device.vec.DeviceBatch`."""

    def __init__(self, num_envs: int, device: str = "cpu") -> None:
        self.num_envs = num_envs
        self.carts, self.answer = Carts(), Answer()
        for struct in (self.carts, self.answer):
            for name, var in struct._cls.vars.items():
                shape = (num_envs, KEPT) if name in ("ended_time", "ended_key") else num_envs
                setattr(struct, name, wp.zeros(shape, dtype=var.type.dtype, device=device))
        self.action = wp.zeros(num_envs, dtype=wp.int64, device=device)
        self.action_tensor = wp.to_torch(self.action)
        self.reward = wp.to_torch(self.answer.reward)
        self.terminal, self.episode_end = wp.to_torch(self.answer.terminal), wp.to_torch(self.answer.episode_end)
        self.ended = wp.to_torch(self.answer.ended)
        arrays = [wp.zeros(num_envs, dtype=wp.vec4f, device=device) for _ in range(3)]
        self._next_obs, *self._obs = [wp.to_torch(array) for array in arrays]
        self._turn = 0  # which of the two holds the observation to act on
        threads = len(os.sched_getaffinity(0)) if device == "cpu" else 1
        threads = max(1, min(threads, num_envs // MIN_ENVS_PER_THREAD))
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        bounds = [num_envs * k // threads for k in range(threads + 1)]

        def record(kernel: Any, inputs: list[Any]) -> list[wp.Launch]:
            return [
                wp.launch(kernel, b - a, inputs=[a, *inputs], device=device, record_cmd=True)
                for a, b in itertools.pairwise(bounds)
            ]

        self._reset = record(reset, [self.carts])
        self._observe = [record(observe, [self.carts, out]) for out in arrays[1:]]
        self._step = [record(step, [self.carts, self.action, self.answer, arrays[0], out]) for out in arrays[1:]]

    @property
    def obs(self) -> dict[str, Tensor]:
        return {"obs": self._obs[self._turn]}

    @property
    def next_obs(self) -> dict[str, Tensor]:
        return {"obs": self._next_obs}

    def reset(self, seed: NDArray[np.uint32] | None = None, episode: NDArray[np.int32] | None = None) -> None:
        for name, values in (("seed", seed), ("episode", episode)):
            if values is not None:
                getattr(self.carts, name).assign(values)
        self._run(self._reset)
        self._run(self._observe[self._turn])

    def step_and_reset(self) -> None:
        self._turn = 1 - self._turn
        self._run(self._step[self._turn])

    def state_dict(self) -> dict[str, NDArray[Any]]:
        return {name: getattr(self.carts, name).numpy().copy() for name in Carts.vars}

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        for name in Carts.vars:
            getattr(self.carts, name).assign(np.asarray(state[name]))
        self._run(self._observe[self._turn])

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _run(self, launches: list[wp.Launch]) -> None:
        if self._pool is None:
            launches[0].launch()
        else:
            for done in [self._pool.submit(one.launch) for one in launches]:
                done.result()


def make_cartpole(num_envs: int, seeds: NDArray[np.uint32], device: str = "cpu") -> DeviceVecEnv:
    """CartPole-v1 behind our contract; episodes follow from `seeds` (N,).

    Raises:
        ConfigError: if the device is not there.
    """
    require(device)
    batch = CartPoleBatch(num_envs, device)
    space = gym.make("CartPole-v1").observation_space
    assert isinstance(space, Box)
    spec = EnvSpec(
        env_id="CartPole-v1",
        observation_space=space,
        action_space=Discrete(2),
        num_envs=num_envs,
        family="classic_control",
        max_episode_steps=TIME_LIMIT,
        protocol={"env_id": "CartPole-v1", "max_episode_steps": TIME_LIMIT, "reward": "raw"},
    )

    def finished(env: Tensor, slot: Tensor) -> list[Episode]:
        length, keys = (entries(log, env, slot).tolist() for log in (batch.answer.ended_time, batch.answer.ended_key))
        return [Episode(i, float(n), n, seed=key) for i, n, key in zip(env.tolist(), length, keys, strict=True)]

    return DeviceVecEnv(batch, spec, seeds, finished)
