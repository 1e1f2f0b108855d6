"""The driving environments as Gymnasium has them: one (`gym.make`), and many at once (`gym.make_vec`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.utils import EzPickle
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.device.endings import entries, read_log
from envs.driving.batch import ACTIONS, DrivingBatch
from envs.driving.config import make_config
from envs.driving.oracle import Table, tabular_model
from envs.driving.render import Painter, draw_ansi
from envs.driving.rules import TALLIES
from faults import ConfigError


class DrivingEnv(gym.Env[Any, Any], EzPickle):
    """Drives a car through a city to a goal.

    ## Description

    A city is a grid of cells: lanes with a permitted direction, junctions (some with traffic lights), crosswalks,
    verges, roadworks, buildings. The ego has a position, a heading and a speed of 0 to 2 cells per step, and enters the
    cells on its way one by one. Other cars follow their lanes, obey lights, queue and turn at random; pedestrians use
    the crosswalks; unannounced, a car may stop ahead, a lane may be closed, a child may run out. The rules are written
    once, as Warp kernels (`envs/driving/rules.py`); this environment is a batch of one.

    | id | task |
    |---|---|
    | `Driving/Tabular-v0` | a village without traffic; observes its state; exposes `P[s][a]` |
    | `Driving/Route-v0` | path planning in generated cities without traffic |
    | `Driving/Traffic-v0` | the same with cars, lights and pedestrians |
    | `Driving/LaneKeep-v0` | a winding highway on which the car drifts |
    | `Driving/Events-v0` | traffic, and the unexpected |

    ## Action Space

    `Discrete(5)`: 0 keep the speed, 1 left, 2 right, 3 accelerate, 4 brake. Left and right drive one cell to that side:
    where the ego's cell permits this direction the car turns with it, elsewhere it changes lane.

    ## Observation Space

    | `obs` | space |
    |---|---|
    | `state` | `Discrete(H * W * 12)`: `((row * W + column) * 4 + heading) * 3 + speed` |
    | `features` | `Box(-1, 1, (86,))`: speed, heading, lane, route, light and a 16-ray radar (`senses.NUM_FEATURES`) |
    | `window` | `Box(0, 31, (view_range + 3, about the same), uint8)`: codes of the cells ahead (`senses.NUM_CODES`) |
    | `camera` | `Box(0, 255, (84, 84, 3), uint8)`: 7 x 7 cells in colour, 5 ahead, whatever `view_range` |
    | `fusion` | `Dict(camera, map, radar)`: `camera`, `window` and `features` at once |

    `features` and `window` are egocentric like the camera (ahead is up) and reach `view_range` cells.

    ## Rewards

    The sum of `reward_time` for the step, `reward_goal`, `reward_collision`, `reward_red_light` (each entry into a
    junction on red), `reward_wrong_way` and `reward_off_lane` (each cell), and of the potential-based shaping term
    `shaping * (shaping_gamma * Phi(s') - Phi(s))` (Ng, Harada and Russell 1999), which is off by default.

    ## Starting State

    A city, a goal and a start in lane at speed 0, at least `min_route` cells from the goal, all drawn from the seed.
    The seed decides the whole episode, on any device and in any batch.

    ## Episode End

    Termination: the goal is reached, or the ego runs into something. Truncation: after `time_limit` steps.

    ## Information

    `reset` and `step` return `time`, `path_length`, `shortest_length`, `red_light`, `wrong_way`, `off_lane`, `success`,
    `collision` (counts of the episode so far; lengths in cells), and `spl`, success weighted by path length:
    `success * shortest_length / max(path_length, shortest_length)` (Anderson et al. 2018, arXiv:1807.06757).

    ## Arguments

    Every field of `envs.driving.config.DrivingConfig`, by keyword: `gym.make("Driving/Traffic-v0", cars=20,
    obs="window")`. `render_mode` is `rgb_array` or `ansi`.

    ## Version History

    * v0: first version.
    """

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 8}  # noqa: RUF012 - Gymnasium's own form

    def __init__(self, env_id: str = "Driving/Traffic-v0", render_mode: str | None = None, **parameters: Any) -> None:
        """Builds the environment.

        Args:
            env_id: whose parameters hold where none are given.
            render_mode: None, `rgb_array` or `ansi`.
            parameters: see Arguments.

        Raises:
            ConfigError: one line for a parameter or a map that cannot be used.
        """
        EzPickle.__init__(self, env_id, render_mode, **parameters)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(f"render_mode must be rgb_array or ansi, got {render_mode!r}")
        self.render_mode = render_mode
        self.batch = DrivingBatch(make_config(env_id, parameters), 1)
        self.observation_space = self.batch.space
        self.action_space = Discrete(len(ACTIONS))
        self._first_obs, self._obs = (
            {name: tensor.numpy() for name, tensor in parts.items()} for parts in (self.batch.obs, self.batch.next_obs)
        )
        self._action, self._tally = self.batch.action.numpy(), self.batch.state.tally.numpy()
        self._seed, self._episode = self.batch.state.seed.numpy(), self.batch.state.episode.numpy()
        self._reward, self._end = self.batch.outcome.reward.numpy(), self.batch.outcome.episode_end.numpy()
        self._terminal = self.batch.outcome.terminal.numpy()
        self._painter: Painter | None = None
        if self.batch.config.obs == "state":
            self.P: Table = tabular_model(self.batch).table()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        key = seed if seed is not None else int(self.np_random.integers(2**31))
        self._seed[0], self._episode[0] = key % 2**32, 0
        self.batch.reset()
        if self._painter is not None:
            self._painter.begin()
        return _row(self._first_obs), self._info()

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not 0 <= action < len(ACTIONS):
            raise gym.error.InvalidAction(f"actions are 0 to {len(ACTIONS) - 1}, got {action}")
        self._action[0] = action
        self.batch.step()
        terminated = bool(self._terminal[0])
        return (
            _row(self._obs),
            float(self._reward[0]),
            terminated,
            bool(self._end[0]) and not terminated,
            self._info(),
        )

    def render(self) -> NDArray[np.uint8] | str | None:
        if self.render_mode == "ansi":
            return draw_ansi(self.batch)
        if self.render_mode == "rgb_array":
            if self._painter is None:
                self._painter = Painter(self.batch)
            return self._painter.frame()
        return None

    def _info(self) -> dict[str, Any]:
        info = dict(zip(TALLIES, self._tally[0].tolist(), strict=True))
        info["spl"] = info["success"] * info["shortest_length"] / max(info["path_length"], info["shortest_length"], 1)
        return info


def _row(parts: dict[str, NDArray[Any]]) -> Any:
    """The observation of a batch of one, copied; a number if it is one."""
    if len(parts) > 1:
        return {name: array[0].copy() for name, array in parts.items()}
    (array,) = parts.values()
    return array[0].copy() if array.ndim > 1 else int(array[0])


class DrivingVectorEnv(gym.vector.VectorEnv[Any, Any, Any]):
    """`num_envs` driving environments stepped together; see `DrivingEnv`.

    Episodes restart within the step that ends them (`AutoresetMode.SAME_STEP`): `info["final_obs"]` and
    `info["final_info"]` hold the ended episodes' last observations and figures, with masks as Gymnasium has them.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - Gymnasium's own form

    def __init__(self, num_envs: int = 1, env_id: str = "Driving/Traffic-v0", **parameters: Any) -> None:
        """Builds the environments; `parameters` are those of `DrivingEnv`.

        Raises:
            ConfigError: one line for a parameter or a map that cannot be used.
        """
        self.num_envs = num_envs
        if num_envs < 1:
            raise ConfigError(f"num_envs must be at least 1, got {num_envs}")
        parameters.pop("render_mode", None)
        self.batch = DrivingBatch(make_config(env_id, parameters), num_envs)
        self.single_observation_space = self.batch.space
        self.single_action_space = Discrete(len(ACTIONS))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=int(seed) if isinstance(seed, int | np.integer) else None)
        seeds = self.np_random.integers(2**31, size=self.num_envs)
        if isinstance(seed, int | np.integer):
            seeds = np.arange(self.num_envs) + seed
        elif seed is not None:
            given = list(seed)
            if len(given) != self.num_envs:
                raise ConfigError(f"reset takes {self.num_envs} seeds, one for each environment, got {len(given)}")
            seeds = np.array([drawn if own is None else own for own, drawn in zip(given, seeds, strict=True)])
        self.batch.reset(seeds.astype(np.uint32), np.zeros(self.num_envs, np.int32))
        return self._observation(self.batch.obs), {}

    def step(self, actions: Any) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        actions = np.asarray(actions)
        if actions.min() < 0 or actions.max() >= len(ACTIONS):
            raise gym.error.InvalidAction(f"actions are 0 to {len(ACTIONS) - 1}, got {actions}")
        self.batch.action.numpy()[:] = actions
        self.batch.step_and_reset()
        terminated = self.batch.terminal.numpy().copy()
        ended = self.batch.episode_end.numpy().copy()
        info: dict[str, Any] = {}
        if ended.any():
            last = self._observation(self.batch.next_obs)
            rows = np.empty(self.num_envs, object)
            for i in np.flatnonzero(ended):
                rows[i] = {name: part[i] for name, part in last.items()} if isinstance(last, dict) else last[i]
            tally = np.zeros((self.num_envs, len(TALLIES)), np.int32)
            env, slot = read_log(self.batch.ended)
            tally[env] = entries(self.batch.outcome.ended_tally, env, slot)
            figures = dict(zip(TALLIES, tally.T, strict=True)) | {f"_{name}": ended for name in TALLIES}
            info = {"final_obs": rows, "_final_obs": ended, "final_info": figures, "_final_info": ended}
        reward = self.batch.reward.numpy().copy()
        return self._observation(self.batch.obs), reward, terminated, ended & ~terminated, info

    def close_extras(self, **kwargs: Any) -> None:
        self.batch.close()

    def _observation(self, parts: dict[str, Any]) -> Any:
        copies = {name: tensor.numpy().copy() for name, tensor in parts.items()}
        return copies if len(copies) > 1 else next(iter(copies.values()))
