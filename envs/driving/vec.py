"""The driving environments behind our contract."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from torch import Tensor

from contract import EnvSpec, Episode
from envs.device.endings import entries
from envs.device.vec import DeviceVecEnv, require
from envs.driving.batch import ACTIONS, DrivingBatch
from envs.driving.config import DrivingConfig
from envs.driving.oracle import steps_to_goal, tabular_model
from envs.driving.rules import TALLIES
from envs.tables import TabularModel


class PrivilegedView:
    """What planners may know and learners may not: the exact time to the goal, and what each action would do."""

    def __init__(self, batch: DrivingBatch) -> None:
        self._batch = batch
        self._steps_to_goal: NDArray[np.int16] | None = None

    def prospects(self) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
        """For every environment and action, if nothing else moved.

        Returns:
            steps: (N, 5) int16: the least number of steps from there to the goal; 0 at the goal.
            safe: (N, 5) bool: whether the action breaks no rule, hits nothing and leaves the ego able to stop.
        """
        if self._steps_to_goal is None:
            self._steps_to_goal = steps_to_goal(self._batch.tables, self._batch.config.top_speed)
        after, arrives, safe = self._batch.foresee()
        state = self._batch.state
        task = state.city.numpy() * self._batch.tables.goal.shape[1] + state.goal.numpy()
        steps = self._steps_to_goal[task[:, None], after[..., 0] * 3 + after[..., 1]]
        return np.where(arrives, 0, steps).astype(np.int16), safe


def make_driving(
    env_id: str, config: DrivingConfig, num_envs: int, seeds: NDArray[np.uint32], device: str
) -> DeviceVecEnv:
    """Builds `num_envs` driving environments whose episodes follow from `seeds` (N,).

    Raises:
        ConfigError: if the device or a map cannot be used.
    """
    require(device)
    batch = DrivingBatch(config, num_envs, device)
    spec = EnvSpec(
        env_id=env_id,
        observation_space=agent_space(batch.space),
        action_space=Discrete(len(ACTIONS)),
        num_envs=num_envs,
        family="driving",
        max_episode_steps=config.time_limit,
        protocol={"env_id": env_id, **asdict(config), "reward": "raw"},
        model=known_model(batch) if config.obs == "state" else PrivilegedView(batch),
    )
    return DeviceVecEnv(batch, spec, seeds, partial(finished_episodes, batch))


def known_model(batch: DrivingBatch) -> TabularModel:
    """The table of a city without traffic: its outcomes are certain, and an episode begins, standing, at one of the
    drawn starts, each as likely as the others."""
    process, tables = tabular_model(batch), batch.tables
    width = tables.cities[0].kind.shape[1]
    cell, heading = np.divmod(tables.start[0, 0].astype(np.int64), 4)
    row, column = cell // tables.width - tables.margin, cell % tables.width - tables.margin
    start = np.bincount((row * width + column) * 12 + heading * 3, minlength=len(process.reward)).astype(np.float64)
    return TabularModel.from_outcomes(process.table(), start / start.sum(), batch.config.time_limit)


def agent_space(space: gym.Space[Any]) -> gym.Space[Any]:
    """The space as agents see it: pictures are channels-first."""
    if isinstance(space, gym.spaces.Dict):
        return gym.spaces.Dict({name: agent_space(part) for name, part in space.items()})
    if isinstance(space, Box) and len(space.shape) == 3:
        return Box(0, 255, (space.shape[2], *space.shape[:2]), np.uint8)
    return space


def finished_episodes(batch: DrivingBatch, env: Tensor, slot: Tensor) -> list[Episode]:
    """The episodes of the log that `envs.device.endings.read_log` names."""
    log = batch.outcome
    counts = dict(zip(TALLIES, entries(log.ended_tally, env, slot).T, strict=True))
    time, success = counts.pop("time").tolist(), counts.pop("success") > 0
    shortest, path = counts["shortest_length"], counts["path_length"]
    spl = success * shortest / np.maximum(np.maximum(path, shortest), 1)
    names = [*counts, "spl"]
    returns, keys = (entries(part, env, slot).tolist() for part in (log.ended_return, log.ended_key))
    extras = zip(*(column.tolist() for column in (*counts.values(), spl)), strict=True)
    rows = zip(env.tolist(), returns, time, success.tolist(), extras, keys, strict=True)
    return [Episode(i, r, t, won, dict(zip(names, e, strict=True)), key) for i, r, t, won, e, key in rows]
