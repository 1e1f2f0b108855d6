"""Camera images of the driving grid, labelled with what can be seen in them.

The ego drives through generated cities, each step by a random action of those that are safe, and looks at them every
few steps. All labels follow from what lies topmost in each cell of the picture:

    cells    what each of the 7 x 7 cells shows; the ego's own cell has no label
    scene    the nearest thing straight ahead that is not plain road, from the light at the ego's own cell on
    counts   cars and people in the picture, without the ego
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from envs.driving.batch import DrivingBatch
from envs.driving.camera import CELLS, ROWS_AHEAD, approaches, patch
from envs.driving.config import MAX_SIZE, MIN_SIZE, DrivingConfig
from envs.driving.maps import BUILDING, CROSSWALK, JUNCTION, PARK, ROAD, ROADWORKS
from envs.driving.rules import CHILD, CLOSURE, STOPPED_CAR, TIME
from faults import check_range
from vision.data import MISSING, Amounts, Classes, ImageData

CELL_NAMES = (
    "outside", "building", "park", "road", "junction", "crosswalk", "roadworks",
    "red light", "green light", "goal", "arrow", "car", "person", "barrier",
)  # fmt: skip
OUTSIDE, RED, GREEN, GOAL, ARROW, CAR, PERSON, CLOSED = (
    CELL_NAMES.index(n) for n in ("outside", "red light", "green light", "goal", "arrow", "car", "person", "barrier")
)
GROUND = {
    BUILDING: "building", PARK: "park", ROAD: "road", JUNCTION: "junction", CROSSWALK: "crosswalk",
    ROADWORKS: "roadworks",
}  # fmt: skip
"""Name of each kind of cell that generated cities have."""
SCENE_NAMES = (
    "open road", "road end", "junction", "crosswalk", "red light", "green light", "goal", "car", "person", "barrier",
)  # fmt: skip
_MEANS = {"arrow": "open road", "road": "open road"} | dict.fromkeys(
    ("outside", "building", "park", "roadworks"), "road end"
)
MEANING = np.array([SCENE_NAMES.index(_MEANS.get(name, name)) for name in CELL_NAMES])
"""What each content of a cell is, if it is the nearest thing ahead."""
EGO = ROWS_AHEAD * CELLS + CELLS // 2
"""The place of the ego among the 49 cells."""
STEPS_BETWEEN_IMAGES = 5
Ints = NDArray[np.integer]


@dataclass(frozen=True)
class DrivingScenes:
    """The options of the set."""

    num_images: int = 20_000
    num_cities: int = 100
    """Generated cities, each about as often in the images."""
    size: int = 24
    """Height and width of a city, in cells."""
    cars: int = 16
    """Other cars in a city."""
    pedestrians: int = 12

    def __post_init__(self) -> None:
        check_range("data.num_images", self.num_images, 1, 10_000_000)
        check_range("data.num_cities", self.num_cities, 1, 4096)
        check_range("data.size", self.size, MIN_SIZE, MAX_SIZE)
        check_range("data.cars", self.cars, 0, 1024)
        check_range("data.pedestrians", self.pedestrians, 0, 1024)

    def load(self, seed: int) -> ImageData:
        """Drives and looks."""
        config = DrivingConfig(
            size=self.size,
            num_cities=self.num_cities,
            city_seed=seed,
            cars=self.cars,
            pedestrians=self.pedestrians,
            lights=True,
            walk_chance=0.2,
            event_chance=0.1,
            obs="camera",
        )
        return drive(config, self.num_images, np.random.default_rng(seed))


def drive(config: DrivingConfig, num_images: int, rng: np.random.Generator) -> ImageData:
    """Images of `num_images` moments of random safe driving, with labels.

    Args:
        config: of the environment; its cities are generated, its observation is the camera.
        num_images: M.
        rng: of the actions and the episodes.
    """
    num_envs = min(256, num_images)
    batch = DrivingBatch(config, num_envs)
    episode_seeds = rng.integers(2**32, size=num_envs, dtype=np.uint32)
    batch.reset(episode_seeds, np.zeros(num_envs, np.int32))
    look = Labels(batch)
    images: list[torch.Tensor] = []
    labels = []
    while len(images) * num_envs < num_images:
        for _ in range(STEPS_BETWEEN_IMAGES):
            safe = batch.foresee()[2]
            action = np.argmax(rng.random(safe.shape) * (0.001 + safe), axis=1)
            batch.action_tensor.copy_(torch.from_numpy(action))
            batch.step_and_reset()
        images.append(batch.obs["camera"].clone())
        labels.append(look.labels())
    batch.close()
    scene, cells, counts, city = (
        torch.from_numpy(np.concatenate(part)[:num_images]) for part in zip(*labels, strict=True)
    )
    return ImageData(
        images=torch.cat(images)[:num_images].permute(0, 3, 1, 2).contiguous(),
        targets={"scene": scene, "cells": cells, "counts": counts},
        heads={
            "scene": Classes(SCENE_NAMES),
            "cells": Classes(CELL_NAMES, (CELLS, CELLS)),
            "counts": Amounts(("cars", "people"), "objects", scale=2.0),
        },
        group=city,
    )


class Labels:
    """Says of every environment of a batch what its camera shows now."""

    def __init__(self, batch: DrivingBatch) -> None:
        self._batch = batch
        tables = batch.tables
        self._patch = patch(tables.width)  # (4, 49)
        self._approach = approaches(tables)  # (M, cells): 0, or 1 + the heading in which a car waits here for a light
        height, width = tables.cities[0].kind.shape
        inside = np.pad(np.ones((height, width), bool), tables.margin).ravel()
        names = [CELL_NAMES.index(GROUND[kind]) if kind in GROUND else OUTSIDE for kind in range(8)]
        self._ground = np.where(inside, np.array(names, np.int64)[tables.ground & 7], OUTSIDE)

    def labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        """Scene (N,), cells (N, 7, 7), counts (N, 2) and city (N,)."""
        state = self._batch.state_dict()
        city, pose = state["city"].astype(np.int64)[:, None], state["pose"][:, None]
        shown = (pose >> 2) + self._patch[pose[:, 0] & 3]  # (N, 49)
        ground = self._ground[city, shown]
        lamp, own = self._lamps(state, city, shown, pose & 3)
        things = self._things(state, city, shown)
        cells = np.where(things > 0, things, np.where(lamp > 0, lamp, ground))
        scene = scenes(ground, np.where(own, lamp, 0), things)
        cells[:, EGO] = MISSING
        counts = np.stack([(cells == CAR).sum(axis=1), (cells == PERSON).sum(axis=1)], axis=1)
        return scene, cells.reshape(-1, CELLS, CELLS), counts.astype(np.float32), city[:, 0]

    def _lamps(
        self, state: dict[str, NDArray[Any]], city: Ints, shown: Ints, heading: Ints
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(N, 49): RED, GREEN or 0, and whether the lamp is for the ego's heading."""
        config, width = self._batch.config, self._batch.tables.width
        approach = self._approach[city, shown].astype(np.int64) * config.lights
        towards = approach - 1
        ahead = shown + np.array([-width, 1, width, -1])[towards]
        signal = (self._batch.tables.ground[city, ahead] >> 7 & 255).astype(np.int64)
        cycle = 2 * (config.green_steps + config.clear_steps)
        phase = (state["tally"][:, TIME, None] + (signal - 1) * cycle // 255) % cycle - cycle // 2 * (towards % 2)
        green = (phase >= 0) & (phase < config.green_steps)
        return np.where(approach > 0, np.where(green, GREEN, RED), 0), (approach > 0) & (towards == heading)

    def _things(self, state: dict[str, NDArray[Any]], city: Ints, shown: Ints) -> NDArray[np.int64]:
        """(N, 49): the topmost of goal, arrow, car, person and barrier; 0 for none."""
        tables = self._batch.tables
        things = np.zeros(shown.shape, np.int64)
        goal = state["goal"][:, None]
        things[shown == tables.goal[city, goal]] = GOAL
        route = tables.route[city * tables.goal.shape[1] + goal, state["pose"][:, None]]
        advice = route.astype(np.int64) >> 16  # a manoeuvre (bits 0-1) and the cells before it
        far = ROWS_AHEAD - (advice >> 2)
        row, column = np.divmod(np.arange(CELLS * CELLS), CELLS)
        things[((advice & 3) > 1) & (row == far) & (column == CELLS // 2)] = ARROW
        _put(things, shown, np.where(state["car"] >= 0, state["car"] >> 2, -1), CAR)
        crossing, place = state["walker"][..., 0], state["walker"][..., 1]
        first, step, _ = np.moveaxis(tables.crossing[city, crossing], -1, 0)
        _put(things, shown, np.where(crossing >= 0, first + (place + 1) * step, -1), PERSON)
        for event, thing in ((STOPPED_CAR, CAR), (CLOSURE, CLOSED), (CHILD, PERSON)):
            happens = state["event"][:, 0] == event
            _put(things, shown, np.where(happens, state["event"][:, 1] >> 2, -1)[:, None], thing)
        return things


def scenes(ground: NDArray[np.int64], own_lamp: NDArray[np.int64], things: NDArray[np.int64]) -> NDArray[np.int64]:
    """The nearest thing straight ahead that is not plain road. A car that waits at a light hides it; an arrow hides
    nothing.

    Args:
        ground: (N, 49): what the cells show without lamps and things.
        own_lamp: (N, 49): RED or GREEN where a light is for the ego's heading, else 0.
        things: (N, 49): GOAL to CLOSED, or 0.

    Returns:
        (N,) index into `SCENE_NAMES`.
    """
    seen = np.where((things > 0) & (things != ARROW), things, np.where(own_lamp > 0, own_lamp, ground))
    ahead = MEANING[seen.reshape(-1, CELLS, CELLS)[:, ROWS_AHEAD::-1, CELLS // 2]]  # (N, 6), from the ego's cell on
    ego = own_lamp[:, EGO]
    ahead[:, 0] = np.where(ego > 0, MEANING[ego], 0)
    nearest: NDArray[np.int64] = ahead[np.arange(len(ahead)), np.argmax(ahead > 0, axis=1)]
    return nearest


def _put(things: NDArray[np.int64], shown: Ints, cells: Ints, thing: int) -> None:
    """Lays a thing over the places (N, 49) that show one of the cells (N, K), of which -1 is nowhere; in place."""
    things[(shown[:, :, None] == cells[:, None, :]).any(axis=2)] = thing
