"""CartPole-v1 on the device: N carts stepped and reset by one kernel.

The dynamics are Gymnasium's, in float64 like Gymnasium's, but for rounding; so are rewards, ends, the time limit and
the distribution of first states. Only the random numbers differ: they are counter-based, so that one seed gives one
episode on the CPU and on CUDA.

Source:
    Barto, Sutton and Anderson 1983; Gymnasium 1.4, `classic_control/cartpole.py`, euler integration.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
import warp as wp
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from torch import Tensor

from contract import EnvSpec, Episode
from envs.device.endings import KEPT, SLOTS, entries
from envs.device.launches import Launches, record
from envs.device.random import draw, episode_key, instant
from envs.device.slices import Slices
from envs.device.vec import DeviceVecEnv, require

wp.set_module_options({"enable_backward": False, "fuse_fp": False, "optimization_level": 3})

LANES = 8
"""Carts that one thread steps side by side: as many as a processor has float64 numbers in its widest registers."""
CARTS_A_THREAD = wp.constant(LANES)
Doubles, Floats, Ints, Longs, Bytes = (
    wp.types.vector(LANES, dtype) for dtype in (wp.float64, wp.float32, wp.int32, wp.int64, wp.uint8)
)
Observations = wp.types.matrix((LANES, 4), wp.float32)

GRAVITY, LENGTH, TAU = (wp.constant(wp.float64(v)) for v in (9.8, 0.5, 0.02))
# Divided by the whole mass: the force, the pole's mass, and that times its half length.
FORCE_SHARE, POLE_SHARE, LENGTH_SHARE = (wp.constant(wp.float64(v / 1.1)) for v in (10.0, 0.1, 0.1 * 0.5))
FOUR_THIRDS = wp.constant(Doubles(4.0 / 3.0))
ONE, TWO = wp.constant(Doubles(1.0)), wp.constant(wp.float64(2.0))
X_LIMIT, THETA_LIMIT = wp.constant(Doubles(2.4)), wp.constant(Doubles(12 * 2 * np.pi / 360))
TIME_LIMIT = 500
LIMIT = wp.constant(TIME_LIMIT)
START_SPREAD = wp.constant(wp.float64(0.05))
"""First states are uniform in [-0.05, 0.05) in each of the four numbers."""
MIN_ENVS_PER_THREAD = 16_384
"""A smaller part is done before a second thread has woken up."""


@wp.struct
class Carts:
    """All that changes, for N carts: (N,), or (N / LANES,) of `LANES` each."""

    seed: wp.array(dtype=wp.uint32)
    episode: wp.array(dtype=wp.int32)
    key: wp.array(dtype=wp.uint32)
    x: wp.array(dtype=Doubles)
    """Position of the cart, m."""
    x_dot: wp.array(dtype=Doubles)
    theta: wp.array(dtype=Doubles)
    """Angle of the pole from upright, rad."""
    theta_dot: wp.array(dtype=Doubles)
    time: wp.array(dtype=Ints)


@wp.struct
class Answer:
    """What a step answers, and the log of ended episodes."""

    terminal: wp.array(dtype=Bytes)
    episode_end: wp.array(dtype=Bytes)
    ended: wp.array(dtype=wp.int32)
    """(N,) episodes that ended since the log was last read, see `envs.device.endings`."""
    ended_time: wp.array2d(dtype=wp.int32)
    ended_key: wp.array2d(dtype=wp.uint32)


@wp.func
def series(square: Doubles, a: wp.float64, b: wp.float64, c: wp.float64, d: wp.float64, e: wp.float64) -> Doubles:
    """1 - y/a (1 - y/b (1 - y/c (1 - y/d (1 - y/e)))) for y = `square`, the divisors given as their inverses."""
    rest = ONE - square * e
    rest = ONE - wp.cw_mul(square * d, rest)
    rest = ONE - wp.cw_mul(square * c, rest)
    rest = ONE - wp.cw_mul(square * b, rest)
    return ONE - wp.cw_mul(square * a, rest)


@wp.func
def sine_ratio(square: Doubles) -> Doubles:
    """sin(x) / x by its series, from x squared: exact to a bit or two for |x| below 0.3, where poles still stand."""
    return series(
        square,
        wp.float64(1.0 / 6.0),
        wp.float64(1.0 / 20.0),
        wp.float64(1.0 / 42.0),
        wp.float64(1.0 / 72.0),
        wp.float64(1.0 / 110.0),
    )


@wp.func
def cosine(square: Doubles) -> Doubles:
    """cos(x) by its series, from x squared."""
    return series(
        square,
        wp.float64(1.0 / 2.0),
        wp.float64(1.0 / 12.0),
        wp.float64(1.0 / 30.0),
        wp.float64(1.0 / 56.0),
        wp.float64(1.0 / 90.0),
    )


@wp.func
def first_value(key: wp.uint32, k: int) -> wp.float64:
    """Number k of the first state of an episode."""
    unit = wp.float64(draw(instant(key, 0), 0, k)) * wp.float64(2.3283064365386963e-10)  # 2**-32
    return (unit * TWO - wp.float64(1.0)) * START_SPREAD


@wp.func
def observed(x: Doubles, x_dot: Doubles, theta: Doubles, theta_dot: Doubles) -> Observations:
    a, b, c, d = Floats(x), Floats(x_dot), Floats(theta), Floats(theta_dot)
    obs = Observations()
    for lane in range(LANES):
        obs[lane, 0] = a[lane]
        obs[lane, 1] = b[lane]
        obs[lane, 2] = c[lane]
        obs[lane, 3] = d[lane]
    return obs


@wp.kernel
def reset(first: int, carts: Carts) -> None:
    """Begins the episodes that seeds and episode numbers name."""
    i = first + wp.tid()
    x, x_dot, theta, theta_dot = Doubles(), Doubles(), Doubles(), Doubles()
    for lane in range(LANES):
        cart = i * CARTS_A_THREAD + lane
        key = episode_key(carts.seed[cart], carts.episode[cart])
        carts.key[cart] = key
        x[lane] = first_value(key, 0)
        x_dot[lane] = first_value(key, 1)
        theta[lane] = first_value(key, 2)
        theta_dot[lane] = first_value(key, 3)
    carts.x[i] = x
    carts.x_dot[i] = x_dot
    carts.theta[i] = theta
    carts.theta_dot[i] = theta_dot
    carts.time[i] = Ints()


@wp.kernel
def observe(first: int, carts: Carts, obs: wp.array(dtype=Observations)) -> None:
    i = first + wp.tid()
    obs[i] = observed(carts.x[i], carts.x_dot[i], carts.theta[i], carts.theta_dot[i])


@wp.kernel
def step(
    first: int,
    carts: Carts,
    action: wp.array(dtype=Longs),
    answer: Answer,
    next_obs: wp.array(dtype=Observations),
    obs: wp.array(dtype=Observations),
) -> None:
    """One step; where it ends the episode the next one begins. `next_obs` is the true one, `obs` what to act on."""
    i = first + wp.tid()
    x = carts.x[i]
    x_dot = carts.x_dot[i]
    theta = carts.theta[i]
    theta_dot = carts.theta_dot[i]
    square = wp.cw_mul(theta, theta)
    cos_theta = cosine(square)
    sin_theta = wp.cw_mul(theta, sine_ratio(square))
    force = (Doubles(action[i]) * TWO - ONE) * FORCE_SHARE
    temp = force + wp.cw_mul(wp.cw_mul(theta_dot, theta_dot), sin_theta) * LENGTH_SHARE
    theta_acc = wp.cw_div(
        sin_theta * GRAVITY - wp.cw_mul(cos_theta, temp),
        (FOUR_THIRDS - wp.cw_mul(cos_theta, cos_theta) * POLE_SHARE) * LENGTH,
    )
    x_acc = temp - wp.cw_mul(theta_acc, cos_theta) * LENGTH_SHARE
    x = x + x_dot * TAU
    x_dot = x_dot + x_acc * TAU
    theta = theta + theta_dot * TAU
    theta_dot = theta_dot + theta_acc * TAU
    time = carts.time[i] + Ints(1)
    seen = observed(x, x_dot, theta, theta_dot)
    next_obs[i] = seen
    # Stored here and, where an episode ends, again: then the usual case never leaves the registers.
    carts.x[i] = x
    carts.x_dot[i] = x_dot
    carts.theta[i] = theta
    carts.theta_dot[i] = theta_dot
    carts.time[i] = time
    obs[i] = seen

    terminal, ends = Bytes(), Bytes()
    beyond = wp.max(wp.abs(x) - X_LIMIT, wp.abs(theta) - THETA_LIMIT)
    for lane in range(LANES):
        terminal[lane] = wp.where(beyond[lane] > wp.float64(0.0), wp.uint8(1), wp.uint8(0))
        ends[lane] = wp.where(time[lane] >= LIMIT, wp.uint8(1), terminal[lane])
    answer.terminal[i] = terminal
    answer.episode_end[i] = ends
    if wp.max(ends) != wp.uint8(0):
        for lane in range(LANES):
            if ends[lane] != wp.uint8(0):
                cart = i * CARTS_A_THREAD + lane
                slot = answer.ended[cart] % SLOTS
                answer.ended_time[cart, slot] = time[lane]
                answer.ended_key[cart, slot] = carts.key[cart]
                answer.ended[cart] += 1
                carts.episode[cart] += 1
                key = episode_key(carts.seed[cart], carts.episode[cart])
                carts.key[cart] = key
                x[lane] = first_value(key, 0)
                x_dot[lane] = first_value(key, 1)
                theta[lane] = first_value(key, 2)
                theta_dot[lane] = first_value(key, 3)
                time[lane] = 0
                seen[lane, 0] = wp.float32(x[lane])
                seen[lane, 1] = wp.float32(x_dot[lane])
                seen[lane, 2] = wp.float32(theta[lane])
                seen[lane, 3] = wp.float32(theta_dot[lane])
        carts.x[i] = x
        carts.x_dot[i] = x_dot
        carts.theta[i] = theta
        carts.theta_dot[i] = theta_dot
        carts.time[i] = time
        obs[i] = seen


class CartPoleBatch:
    """N carts on one device, see `envs.device.vec.DeviceBatch`. If N is no multiple of `LANES`, up to seven more carts
    are stepped that nobody sees."""

    def __init__(self, num_envs: int, device: str = "cpu") -> None:
        self.num_envs, groups = num_envs, -(-num_envs // LANES)
        self.carts, self.answer = Carts(), Answer()
        for struct in (self.carts, self.answer):
            for name, var in struct._cls.vars.items():
                shape: tuple[int, ...] = (groups,) if wp.types.type_is_vector(var.type.dtype) else (groups * LANES,)
                if name in ("ended_time", "ended_key"):
                    shape = (*shape, KEPT)
                setattr(struct, name, wp.zeros(shape, dtype=var.type.dtype, device=device))
        action = wp.zeros(groups, dtype=Longs, device=device)

        def every_cart(array: wp.array) -> Tensor:
            return wp.to_torch(array).view(groups * LANES, *array.dtype._shape_[1:])[:num_envs]

        self.action_tensor = every_cart(action)
        self.terminal, self.episode_end = (
            every_cart(flags).view(torch.bool) for flags in (self.answer.terminal, self.answer.episode_end)
        )
        self.reward = torch.ones(num_envs, device=self.terminal.device)  # for every step, the last one too
        self.ended = wp.to_torch(self.answer.ended)[:num_envs]
        arrays = [wp.zeros(groups, dtype=Observations, device=device) for _ in range(3)]
        self._next_obs, *self._obs = [every_cart(array) for array in arrays]
        self._turn = 0  # which of the two holds the observation to act on
        self._slices = Slices(groups, MIN_ENVS_PER_THREAD // LANES, device)

        def launches(kernel: Any, inputs: list[Any]) -> list[Launches]:
            return [[record(kernel, count, [first, *inputs], device)] for first, count in self._slices.parts]

        self._reset = launches(reset, [self.carts])
        self._observe = [launches(observe, [self.carts, out]) for out in arrays[1:]]
        self._step = [launches(step, [self.carts, action, self.answer, arrays[0], out]) for out in arrays[1:]]

    @property
    def obs(self) -> dict[str, Tensor]:
        return {"obs": self._obs[self._turn]}

    @property
    def next_obs(self) -> dict[str, Tensor]:
        return {"obs": self._next_obs}

    def reset(self, seed: NDArray[np.uint32] | None = None, episode: NDArray[np.int32] | None = None) -> None:
        for name, values in (("seed", seed), ("episode", episode)):
            if values is not None:
                self._assign(name, values)
        self._slices.run(self._reset)
        self._slices.run(self._observe[self._turn])

    def step_and_reset(self) -> None:
        self._turn = 1 - self._turn
        self._slices.run(self._step[self._turn])

    def state_dict(self) -> dict[str, NDArray[Any]]:
        return {name: getattr(self.carts, name).numpy().reshape(-1)[: self.num_envs].copy() for name in Carts.vars}

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        for name in Carts.vars:
            self._assign(name, np.asarray(state[name]))
        self._slices.run(self._observe[self._turn])

    def _assign(self, name: str, values: NDArray[Any]) -> None:
        """Sets one number of every cart."""
        array = getattr(self.carts, name)
        everyone = array.numpy().copy()
        everyone.reshape(-1)[: self.num_envs] = values
        array.assign(everyone)

    def close(self) -> None:
        self._slices.close()


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
