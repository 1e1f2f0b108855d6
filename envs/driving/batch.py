"""N driving environments as arrays on one device, stepped by recorded kernel launches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import gymnasium as gym
import numpy as np
import warp as wp
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from torch import Tensor

from envs.device.endings import KEPT
from envs.device.launches import Launch, Launches, record
from envs.device.slices import Slices
from envs.driving import camera, foresight, maps, rules, senses
from envs.driving.config import GUIDANCE, DrivingConfig
from envs.driving.tables import Tables, make_tables

MIN_ENVS_PER_THREAD = 256
"""A smaller part is done before a second thread has woken up."""
ACTIONS = ("keep", "left", "right", "accelerate", "brake")
ROWS_BEHIND = 2
"""Rows of the window behind the ego."""
SENSES_OF = {
    "state": {"state": "state"},
    "features": {"features": "features"},
    "window": {"window": "window"},
    "camera": {"camera": "camera"},
    "fusion": {"camera": "camera", "map": "window", "radar": "features"},
}
"""`obs` -> the names of its parts and the sense that fills each."""
Arrays = dict[str, Any]


class DrivingBatch:
    """The state of N environments and the launches that advance it.

    `step` takes `action`, advances every environment and leaves the result in `next_obs`, `obs` and `outcome`.
    `reset_ended` then begins new episodes where some have ended, and `obs` is what to act on next. Neither waits for
    the device, and both launch what was recorded when the batch was built.
    """

    def __init__(self, config: DrivingConfig, num_envs: int, device: str = "cpu") -> None:
        """Builds the cities and allocates everything.

        Args:
            config: the parameters.
            num_envs: N.
            device: cpu, cuda or cuda:<index>.
        """
        self.config, self.num_envs, self.device = config, num_envs, device
        self.tables = make_tables(config)
        self.space = observation_space(config, self.tables)
        self._maps = self._upload(rules.Maps(), vars(self.tables))
        self._rules = make_rules(config, self.tables)
        self._senses = self._upload(senses.Senses(), make_senses(config, self.tables))
        self.state = self._upload(rules.State(), _empty_state(config, self.tables, num_envs))
        self.outcome = self._upload(rules.Outcome(), _empty_outcome(num_envs))
        self.action = wp.zeros(num_envs, dtype=wp.int64, device=device)
        parts = SENSES_OF[config.obs]
        if "camera" in parts:
            self._film = self._upload(camera.Film(), _film_of(config))
        self._next_obs = {name: self._observation_array(sense) for name, sense in parts.items()}
        self._obs = [{name: self._observation_array(sense) for name, sense in parts.items()} for _ in range(2)]
        self._turn = 0  # which of the two holds the observation to act on
        self._slices = Slices(num_envs, MIN_ENVS_PER_THREAD, device)
        self._record()

    # What has been observed, shared with the kernels without a copy.

    @property
    def obs(self) -> dict[str, Tensor]:
        """What to act on next: part -> (N, ...)."""
        return self._torch_obs[self._turn]

    @property
    def next_obs(self) -> dict[str, Tensor]:
        """What the last step led to, also where an episode ended: part -> (N, ...)."""
        return self._torch_next_obs

    def reset(self, seed: NDArray[np.uint32] | None = None, episode: NDArray[np.int32] | None = None) -> None:
        """Begins an episode in every environment.

        Args:
            seed: (N,) what the episodes of each environment follow from; None keeps it.
            episode: (N,) which of its episodes to begin; None takes the running one.
        """
        for name, values in (("seed", seed), ("episode", episode)):
            if values is not None:
                getattr(self.state, name).assign(values)
        self._slices.run(self._reset_launches)
        self.observe()

    def observe(self) -> None:
        """Fills `obs` from the state."""
        self._slices.run(self._observe_launches[self._turn])

    def step(self) -> None:
        """Advances every environment by `action`."""
        self._turn = 1 - self._turn
        self._slices.run(self._step_launches[self._turn])

    def reset_ended(self) -> None:
        """Begins the next episode wherever one has ended."""
        self._slices.run(self._reset_ended_launches[self._turn])

    def step_and_reset(self) -> None:
        """`step`, then `reset_ended`, with one hand-over to the threads."""
        self._turn = 1 - self._turn
        self._slices.run(self._full_launches[self._turn])

    def close(self) -> None:
        self._slices.close()

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """All that the running episodes depend on, copied."""
        return {name: getattr(self.state, name).numpy().copy() for name in members(rules.State)}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        for name in members(rules.State):
            getattr(self.state, name).assign(np.asarray(state[name]))
        self.observe()

    def foresee(self) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.bool_]]:
        """What each action would do now if nothing else moved.

        Returns:
            after: (N, 5, 2) int32: the pose and the speed after it.
            arrives: (N, 5) bool: whether it reaches the goal.
            safe: (N, 5) bool: whether it is safe and legal (see `foresight.foresee`).
        """
        after = wp.zeros((self.num_envs, 5, 2), dtype=wp.int32, device=self.device)
        arrives, safe = (wp.zeros((self.num_envs, 5), dtype=wp.bool, device=self.device) for _ in range(2))
        inputs = [self._maps, self._rules, self.state, after, arrives, safe]
        wp.launch(foresight.foresee, self.num_envs, inputs=inputs, device=self.device)
        return after.numpy(), arrives.numpy(), safe.numpy()

    def _upload(self, struct: Any, values: Mapping[str, Any]) -> Any:
        """Fills a Warp struct: NumPy arrays become arrays on the device, numbers stay numbers."""
        for name, var in members(struct._cls).items():
            value = values[name]
            if isinstance(value, np.ndarray):
                value = wp.array(value, dtype=var.type.dtype, device=self.device)
            setattr(struct, name, value)
        return struct

    def _observation_array(self, sense: str) -> wp.array:
        shape, dtype = _FORM[sense][0](self.config), _FORM[sense][1]
        return wp.zeros((self.num_envs, *shape), dtype=dtype, device=self.device)

    def _record(self) -> None:
        """Records every launch once; see the class for what happens when."""
        self.reward = wp.to_torch(self.outcome.reward)
        self.terminal = wp.to_torch(self.outcome.terminal)
        self.episode_end = wp.to_torch(self.outcome.episode_end)
        self.ended = wp.to_torch(self.outcome.ended)
        self.action_tensor = wp.to_torch(self.action)
        self._torch_next_obs = {name: self._as_tensor(name, a) for name, a in self._next_obs.items()}
        self._torch_obs = [{name: self._as_tensor(name, a) for name, a in obs.items()} for obs in self._obs]

        self._reset_launches: list[Launches] = []
        by_turn: list[tuple[list[Launches], ...]] = [([], [], [], []) for _ in range(2)]
        for first, count in self._slices.parts:
            reset, reset_ended = (
                self._launch(rules.reset, first, count, [self._maps, self.state, self.outcome, everywhere])
                for everywhere in (1, 0)
            )
            step = self._launch(
                rules.step, first, count, [self._maps, self._rules, self.state, self.action, self.outcome]
            )
            self._reset_launches.append([reset])
            for obs, (observe, steps, resets, full) in zip(self._obs, by_turn, strict=True):
                observe.append(self._observe_launches_of(first, count, obs, everywhere=1))
                steps.append([step, *self._observe_launches_of(first, count, self._next_obs, everywhere=1, also=obs)])
                resets.append([reset_ended, *self._observe_launches_of(first, count, obs, everywhere=0)])
                full.append([*steps[-1], *resets[-1]])
        self._observe_launches, self._step_launches, self._reset_ended_launches, self._full_launches = zip(
            *by_turn, strict=True
        )

    def _launch(self, kernel: Any, first: int, count: int, inputs: list[Any]) -> Launch:
        lanes = 1 if self.device == "cpu" else count
        return record(kernel, lanes, [first, first + count, lanes, *inputs], self.device)

    def _observe_launches_of(
        self, first: int, count: int, out: Arrays, everywhere: int, also: Arrays | None = None
    ) -> Launches:
        """What fills the rows of `out`, and gives `also` the same."""
        launches: list[Launch] = []
        for name, sense in SENSES_OF[self.config.obs].items():
            if sense == "state":
                given = [self._maps, self.state, self.tables.margin, self.tables.cities[0].kind.shape[1]]
            else:
                given = [self._maps, self._rules, self._senses, self.state]
            kernel = _FORM[sense][2]
            inputs = [*given, self.outcome.episode_end, everywhere, out[name]]
            if sense == "camera":
                inputs[-1:] = [self._film, out[name], _bytes_of(out[name])]
            elif sense == "features":
                copied = wp.empty((0, 0), dtype=wp.vec2f, device=self.device) if also is None else _pairs_of(also[name])
                inputs += [_rays_of(out[name]), _pairs_of(out[name]), copied]
            elif sense == "window":
                inputs[-1:] = [_by_eight(self._senses.look), out[name], _by_eight(out[name])]
            launches.append(self._launch(kernel, first, count, inputs))
            if also is not None and sense != "features":
                launches.append(_copier(wp.to_torch(also[name]), wp.to_torch(out[name]), first, count))
        return launches

    def _as_tensor(self, name: str, array: wp.array) -> Tensor:
        """The array as agents and Gymnasium see it."""
        tensor = wp.to_torch(array)
        sense = SENSES_OF[self.config.obs][name]
        if sense == "state":
            return tensor[:, 0]
        if sense == "window":
            return tensor.view(-1, *window_shape(self.config.view_range))
        if sense == "camera":
            return wp.to_torch(_bytes_of(array)).view(-1, camera.SIZE, camera.SIZE, 3)
        return tensor


def members(struct: Any) -> dict[str, Any]:
    """The fields of a Warp struct, with their types."""
    return struct.vars


@lru_cache(maxsize=4)
def _film_of(config: DrivingConfig) -> Mapping[str, Any]:
    """What a camera needs; drawn once per process, for it takes half a second a city."""
    return camera.make_film(make_tables(config), config.lights)


def _copier(to: Tensor, source: Tensor, first: int, count: int) -> Launch:
    to, source = to[first : first + count], source[first : first + count]
    return lambda: to.copy_(source)


def _bytes_of(words: wp.array) -> wp.array:
    """(N, W) uint32 -> (N, 4 * W) uint8, the same memory."""
    n, count = words.shape
    return wp.array(
        ptr=words.ptr, dtype=wp.uint8, shape=(n, 4 * count), capacity=words.capacity, device=words.device, copy=False
    )


def _rays_of(features: wp.array) -> wp.array:
    """(N, NUM_FEATURES) float32 -> (N, 16) of four each: what the radar fills of it, the same memory."""
    return wp.array(
        ptr=features.ptr + 4 * senses.NUM_SCALARS,
        dtype=wp.vec4f,
        shape=(features.shape[0], senses.NUM_RAYS),
        strides=(features.strides[0], 16),
        device=features.device,
        copy=False,
    )


def _pairs_of(features: wp.array) -> wp.array:
    """(N, K) float32 -> (N, K / 2) of two each, the same memory."""
    n, count = features.shape
    return wp.array(ptr=features.ptr, dtype=wp.vec2f, shape=(n, count // 2), device=features.device, copy=False)


def _by_eight(codes: wp.array) -> wp.array:
    """(N, K) uint8 -> (N, K - 7) of eight each: those that begin at each place, the same memory."""
    n, count = codes.shape
    return wp.array(
        ptr=codes.ptr,
        dtype=senses.Eight,
        shape=(n, max(count - senses.AT_ONCE + 1, 0)),
        strides=codes.strides,
        device=codes.device,
        copy=False,
    )


def window_shape(view_range: int) -> tuple[int, int]:
    """Rows and columns of the window: `view_range` rows ahead of the ego's, two behind, about as many columns."""
    return view_range + 1 + ROWS_BEHIND, 2 * ((view_range + 2) // 2) + 1


_FORM: dict[str, tuple[Callable[[DrivingConfig], tuple[int, ...]], Any, Any]] = {
    "state": (lambda config: (1,), wp.int64, senses.observe_state),
    "features": (lambda config: (senses.NUM_FEATURES,), wp.float32, senses.observe_features),
    "window": (lambda config: (int(np.prod(window_shape(config.view_range))),), wp.uint8, senses.observe_window),
    "camera": (lambda config: (camera.SIZE * camera.SIZE * 3 // 4,), wp.uint32, camera.observe_camera),
}
"""Sense -> shape of its array, its type, and the kernel that fills it."""


def observation_space(config: DrivingConfig, tables: Tables) -> gym.Space[Any]:
    """The observation of one environment."""
    height, width = tables.cities[0].kind.shape
    spaces: dict[str, Callable[[], gym.Space[Any]]] = {
        "state": lambda: Discrete(height * width * 12),
        "features": lambda: Box(-1.0, 1.0, (senses.NUM_FEATURES,), np.float32),
        "window": lambda: Box(0, senses.NUM_CODES - 1, window_shape(config.view_range), np.uint8),
        "camera": lambda: Box(0, 255, (camera.SIZE, camera.SIZE, 3), np.uint8),
    }
    parts = {name: spaces[sense]() for name, sense in SENSES_OF[config.obs].items()}
    return gym.spaces.Dict(parts) if len(parts) > 1 else next(iter(parts.values()))


def make_rules(config: DrivingConfig, tables: Tables) -> Any:
    """The parameters as the kernels take them."""
    struct: Any = rules.Rules()
    for name in members(rules.Rules):
        if name.endswith("_chance"):
            setattr(struct, name, round(getattr(config, name) * 2**24))
        elif name != "far":
            setattr(struct, name, getattr(config, name))
    struct.far = 2 * sum(tables.cities[0].kind.shape)
    return struct


def make_senses(config: DrivingConfig, tables: Tables) -> Arrays:
    """What is seen from each cell, as far as it is known beforehand."""
    ahead = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])  # (row, column) by heading
    right = np.roll(ahead, -1, axis=0)
    distance = np.arange(1, config.view_range + 1)
    angle = 2 * np.pi * np.arange(senses.NUM_RAYS) / senses.NUM_RAYS
    ray_ahead, ray_right = (np.rint(np.outer(f(angle), distance)).astype(int) for f in (np.cos, np.sin))
    rows, columns = window_shape(config.view_range)
    patch_ahead, patch_right = np.divmod(np.arange(rows * columns), columns)
    patch_ahead, patch_right = config.view_range - patch_ahead, patch_right - columns // 2

    def cells(a: NDArray[Any], r: NDArray[Any]) -> NDArray[np.int32]:
        moved = np.multiply.outer(ahead, a) + np.multiply.outer(right, r)  # (4, 2, ...)
        return (moved[:, 0] * tables.width + moved[:, 1]).astype(np.int32)

    reach = max(config.view_range, ROWS_BEHIND) * (tables.width + 1) + 1
    patch, ray = cells(patch_ahead, patch_right), cells(ray_ahead, ray_right)
    place = np.full((4, 2 * reach + 1), config.view_range * columns + columns // 2, np.uint16)
    np.put_along_axis(place, patch + reach, np.arange(rows * columns, dtype=np.uint16)[None], axis=1)
    return {
        "view_range": config.view_range,
        "guidance": GUIDANCE.index(config.guidance),
        "size": max(tables.cities[0].kind.shape),
        "wall": make_walls(tables, ray),
        "ray": make_rays(config.view_range),
        "light": make_lights(tables, config.view_range),
        "reach": reach,
        "beams": make_beams(ray, reach),
        "place": place,
        "window_rows": rows,
        "window_columns": columns,
        **make_looks(tables, config.view_range),
        **make_lit(tables),
        "rows_north": np.array([config.view_range, columns // 2, ROWS_BEHIND, columns // 2], np.int32),
    }


def make_walls(tables: Tables, ray: NDArray[np.int32]) -> NDArray[np.uint8]:
    """(M * 4, cells, 16): how far each ray reaches in an empty city; `ray` (4, 16, view_range) as in `make_senses`."""
    kind = tables.ground & 7
    blocked = (kind < maps.FIRST_DRIVABLE) | (kind > maps.LAST_DRIVABLE)
    cell = np.arange(blocked.shape[1])
    walls = np.full((len(blocked), 4, len(cell), ray.shape[1]), ray.shape[2], np.uint8)
    for distance in range(ray.shape[2], 0, -1):
        seen = np.clip(cell[:, None] + ray[:, None, :, distance - 1], 0, len(cell) - 1)  # (4, cells, 16)
        walls[blocked[:, seen]] = 128 | distance
    return walls.reshape(-1, *walls.shape[2:])


def make_rays(view_range: int) -> NDArray[np.float32]:
    """(256, 4): the features of a ray by its entry in `make_walls`: distance, and whether it meets something fixed."""
    rays, wall = np.zeros((256, 4), np.float32), np.arange(256)
    rays[:, 0], rays[:, 1] = (wall & 31).astype(np.float32) / np.float32(view_range), wall >> 7
    return rays


def make_lights(tables: Tables, view_range: int) -> NDArray[np.uint16]:
    """(M, cells * 4): the next light ahead of each pose, see `senses.Senses.light`."""
    kind, signal = tables.ground & 7, tables.ground >> 7 & 255
    open_ = (kind >= maps.FIRST_DRIVABLE) & (kind <= maps.LAST_DRIVABLE)
    lights = np.zeros((*kind.shape, 4), np.uint16)
    for heading, step in enumerate((-tables.width, 1, tables.width, -1)):
        looking = signal == 0
        for cells in range(view_range):
            ahead, free = (np.roll(plane, -step * (cells + 1), axis=1) for plane in (signal, open_))
            found = looking & (ahead > 0)
            lights[found, heading] = ahead[found] | cells << 8
            looking &= free & (ahead == 0)
    return lights.reshape(len(kind), -1)


def make_beams(ray: NDArray[np.int32], reach: int) -> NDArray[np.int32]:
    """(4, 2 * reach + 1): which rays meet a cell, see `senses.Senses.beams`."""
    beams = np.zeros((4, 2 * reach + 1), np.int32)
    for heading in range(4):
        for r, along in enumerate(ray[heading]):
            differences, first = np.unique(along, return_index=True)
            beams[heading, differences + reach] = beams[heading, differences + reach] << 9 | r << 5 | first + 1
    return beams


def make_looks(tables: Tables, view_range: int) -> Arrays:
    """The maps as the window shows them, for an ego with each of the four headings; see `senses.Senses`."""
    kind, lanes, signal = tables.ground & 7, tables.ground >> 3 & 15, tables.ground >> 7 & 255
    cities, grid = len(kind), (tables.height, tables.width)
    _, columns = window_shape(view_range)
    look = np.zeros((cities, 4, kind.shape[1] + senses.AT_ONCE), np.uint8)
    look_row, corner = np.zeros(4, np.int32), np.zeros((4, kind.shape[1]), np.int32)
    for heading in range(4):
        relative = (lanes >> heading | lanes << (4 - heading)) & 15  # bit 0 is the ego's heading
        single = sum((relative == 1 << side) * (int(senses.LANE) + side) for side in range(4))
        code = np.select(
            [kind < maps.VERGE, kind == maps.ROADWORKS, signal > 0, kind == maps.CROSSWALK, lanes == 0, single > 0],
            [int(c) for c in (senses.BLOCKED, senses.WORKS, senses.RED, senses.ZEBRA, senses.BESIDE)] + [single],
            int(senses.MANY_WAYS),
        )
        turned = np.rot90(np.arange(kind.shape[1]).reshape(grid), heading)  # what lies ahead is on top
        look[:, heading, : turned.size] = code[:, turned.ravel()]
        look_row[heading] = turned.shape[1]
        corner[heading, turned.ravel()] = np.arange(turned.size) - view_range * turned.shape[1] - columns // 2
    return {"look": look.reshape(cities * 4, -1), "look_row": look_row, "corner": corner}


def make_lit(tables: Tables) -> Arrays:
    """The cells in junctions with lights; see `senses.Senses`."""
    signal = tables.ground.astype(np.int32) >> 7 & 255
    city, cell = np.nonzero(signal)
    counts = np.count_nonzero(signal.reshape(len(signal), tables.height, tables.width), axis=2)  # (M, rows)
    lit_from = np.pad(np.cumsum(counts, axis=1), ((0, 0), (1, 0))).astype(np.int32)
    lit = np.zeros((len(signal), lit_from[:, -1].max() + 1), np.int32)
    lit[np.arange(lit.shape[1]) < lit_from[:, -1:]] = cell | signal[city, cell] << int(senses.CELL_BITS)
    return {"lit": lit, "lit_from": lit_from}


def _empty_state(config: DrivingConfig, tables: Tables, n: int) -> Arrays:
    tallies, words = len(rules.TALLIES), (tables.height * tables.width + 31) // 32
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(members(rules.State), (n,)) | {
        "tally": (n, tallies),
        "car": (n, config.cars),
        "walker": (n, config.pedestrians, 3),
        "event": (n, 3),
        "taken": (n, words),
    }
    return {
        name: np.zeros(shape, wp.dtype_to_numpy(members(rules.State)[name].type.dtype))
        for name, shape in shapes.items()
    }


def _empty_outcome(n: int) -> Arrays:
    return {
        name: np.zeros((n, KEPT, len(rules.TALLIES))[: var.type.ndim], wp.dtype_to_numpy(var.type.dtype))
        for name, var in members(rules.Outcome).items()
    }
