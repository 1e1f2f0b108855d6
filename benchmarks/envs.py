"""How fast our environments step, beside their peers, in one run.

    python -m benchmarks.envs               # everything; writes benchmarks/results/envs.json
    python -m benchmarks.envs seconds=0.3   # shorter windows

MiniGrid and highway-env are left out where they are not installed: `pip install --target peers minigrid highway-env`,
then `PYTHONPATH=peers python -m benchmarks.envs`.

Random actions throughout. `batch` rows step the device batch (auto-reset included, episodes left on the device), `vec`
rows go through `contract.VecEnv` (after every step the finished episodes are handed over as objects), `launched` rows
through `contract.StepsOnDevice` (after every 32 steps), `single` rows through `gym.make`.
Each row is the median of three windows; kernels are compiled and caches warm before the first.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import gymnasium as gym
import numpy as np
import torch

import envs.driving
from benchmarks.record import write_result
from contract import StepsOnDevice, Streams
from envs.device.cartpole import CartPoleBatch
from envs.driving.batch import ACTIONS, DrivingBatch
from envs.driving.config import make_config
from envs.make import make_env
from envs.settings import DrivingSettings

WINDOWS = 3
ACTION_SETS = 64


def rate(step: Callable[[int], object], steps_per_call: int, seconds: float) -> float:
    """Environment steps per second: the median of three windows, after a warm-up."""
    for k in range(3):
        step(k)
    found = []
    for _ in range(WINDOWS):
        calls, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            step(calls)
            calls += 1
        found.append(calls * steps_per_call / elapsed)
    return statistics.median(found)


def random_actions(num_actions: int, num_envs: int) -> list[torch.Tensor]:
    """ACTION_SETS tensors (num_envs,) int64."""
    return list(torch.randint(0, num_actions, (ACTION_SETS, num_envs), generator=torch.Generator().manual_seed(0)))


def batch_rate(env_id: str, num_envs: int, seconds: float, **parameters: Any) -> float:
    """Steps per second of a device batch."""
    batch = DrivingBatch(make_config(env_id, parameters), num_envs)
    batch.reset(np.arange(num_envs, dtype=np.uint32), np.zeros(num_envs, np.int32))
    actions = random_actions(len(ACTIONS), num_envs)

    def step(k: int) -> None:
        batch.action_tensor.copy_(actions[k % ACTION_SETS])
        batch.step_and_reset()

    result = rate(step, num_envs, seconds)
    batch.close()
    return result


def vec_rate(env_id: str, num_envs: int, seconds: float, obs: str) -> float:
    """Steps per second through our contract."""
    env = make_env(DrivingSettings(env_id, obs=obs), num_envs, Streams(0), "train")
    actions = random_actions(len(ACTIONS), num_envs)
    env.reset()
    result = rate(lambda k: env.step(actions[k % ACTION_SETS]), num_envs, seconds)
    env.close()
    return result


def launched_rate(env_id: str, num_envs: int, seconds: float, obs: str) -> float:
    """Steps per second through `contract.StepsOnDevice`: 32 steps with nobody looking, then the list of episodes."""
    env = make_env(DrivingSettings(env_id, obs=obs), num_envs, Streams(0), "train")
    assert isinstance(env, StepsOnDevice)
    actions = random_actions(len(ACTIONS), num_envs)
    env.reset()

    def rollout(_: int) -> None:
        for k in range(32):
            env.launch(actions[k])
        env.drain()

    result = rate(rollout, 32 * num_envs, seconds)
    env.close()
    return result


def single_rate(env: gym.Env[Any, Any], seconds: float) -> float:
    """Steps per second of one Gymnasium environment, resets included."""
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(4096)]

    def step(k: int) -> None:
        *_, terminated, truncated, _ = env.step(actions[k % 4096])
        if terminated or truncated:
            env.reset()

    result = rate(step, 1, seconds)
    env.close()
    return result


def cartpole_rate(num_envs: int, seconds: float) -> float:
    batch = CartPoleBatch(num_envs)
    batch.reset(np.arange(num_envs, dtype=np.uint32), np.zeros(num_envs, np.int32))
    actions = random_actions(2, num_envs)

    def step(k: int) -> None:
        batch.action_tensor.copy_(actions[k % ACTION_SETS])
        batch.step_and_reset()

    result = rate(step, num_envs, seconds)
    batch.close()
    return result


def gymnasium_cartpole_rate(num_envs: int, seconds: float) -> float:
    env = gym.make_vec("CartPole-v1", num_envs, vectorization_mode="vector_entry_point")
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, 2, (ACTION_SETS, num_envs))
    return rate(lambda k: env.step(actions[k % ACTION_SETS]), num_envs, seconds)


def peer_rate(package: str, env_id: str, seconds: float) -> float | None:
    """Steps per second of another project's environment, None (with one line) if it is not installed."""
    try:
        module = __import__(package)
    except ImportError as error:
        print(f"{env_id}: left out, {package} is not installed ({error})")
        return None
    gym.register_envs(module)
    return single_rate(gym.make(env_id), seconds)


def main(arguments: list[str]) -> int:
    seconds = float(dict(a.split("=", 1) for a in arguments).get("seconds", 1.0))
    torch.set_num_threads(1)
    envs.driving.register()
    rows: list[dict[str, Any]] = []

    def add(name: str, value: float | None, **about: Any) -> None:
        if value is not None:
            rows.append({"name": name, "env_steps_per_s": round(value), **about})
            print(f"{name:58s} {value:>14,.0f} steps/s")

    traffic = "Driving/Traffic-v0"
    for obs, n in (("features", 4096), ("window", 4096), ("camera", 1024), ("fusion", 1024)):
        add(f"{traffic} {obs} batch of {n}", batch_rate(traffic, n, seconds, obs=obs), num_envs=n, obs=obs)
    for obs, n in (("features", 4096), ("camera", 1024)):
        add(f"{traffic} {obs} vec of {n}", vec_rate(traffic, n, seconds, obs), num_envs=n, obs=obs)
        add(f"{traffic} {obs} launched {n}", launched_rate(traffic, n, seconds, obs), num_envs=n, obs=obs)
    for obs in ("features", "window", "camera"):
        add(f"{traffic} {obs} single", single_rate(gym.make(traffic, obs=obs), seconds), num_envs=1, obs=obs)
    add("Driving/Route-v0 features batch of 4096", batch_rate("Driving/Route-v0", 4096, seconds), num_envs=4096)

    add("MiniGrid-Empty-8x8-v0 single", peer_rate("minigrid", "MiniGrid-Empty-8x8-v0", seconds))
    add("MiniGrid-FourRooms-v0 single", peer_rate("minigrid", "MiniGrid-FourRooms-v0", seconds))
    add("highway-fast-v0 single", peer_rate("highway_env", "highway-fast-v0", seconds))
    add("intersection-v0 single", peer_rate("highway_env", "intersection-v0", seconds))

    add("CartPole-v1 ours batch of 4096", cartpole_rate(4096, seconds), num_envs=4096)
    add("CartPole-v1 CartPoleVectorEnv of 4096", gymnasium_cartpole_rate(4096, seconds), num_envs=4096)
    add("CartPole-v1 single", single_rate(gym.make("CartPole-v1"), seconds), num_envs=1)

    for n in (1, 16, 256, 4096, 65_536):
        add(f"{traffic} features by number of environments: {n}", batch_rate(traffic, n, seconds), num_envs=n)
    for size in (8, 16, 32, 64, 128, 256):
        value = batch_rate(traffic, 4096, seconds, size=size, num_cities=4)
        add(f"{traffic} features by map size: {size}", value, size=size)
    for cars in (0, 4, 16, 64):
        add(f"{traffic} features by cars: {cars}", batch_rate(traffic, 4096, seconds, cars=cars), cars=cars)

    found = {row["name"]: row["env_steps_per_s"] for row in rows}
    ours = found[f"{traffic} features batch of 4096"]
    ratios = {
        f"batch of 4096 / {peer}": round(ours / found[f"{peer} single"], 1)
        for peer in ("MiniGrid-Empty-8x8-v0", "MiniGrid-FourRooms-v0", "highway-fast-v0", "intersection-v0")
        if f"{peer} single" in found
    }
    ratios["CartPole ours / CartPoleVectorEnv"] = round(
        found["CartPole-v1 ours batch of 4096"] / found["CartPole-v1 CartPoleVectorEnv of 4096"], 2
    )
    for name, value in ratios.items():
        print(f"{name:58s} {value:>14,.2f} times")
    peers = {package: version for package in ("minigrid", "highway-env") if (version := installed(package))}
    write_result("envs", {"peers": peers, "seconds_per_window": seconds, "rows": rows, "ratios": ratios})
    return 0


def installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
