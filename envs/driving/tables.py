"""The cities of an environment and everything that is known of them beforehand, stacked into arrays for the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from envs.driving.config import DrivingConfig
from envs.driving.maps import BUILDING, EAST, ROAD, STEPS, City, draw_city, load_city, read_city
from envs.driving.routes import UNREACHABLE, distances, goal_poses, legal_moves, manoeuvres, strong_component
from faults import ConfigError

MIN_MARGIN = 6
STARTS, SPAWNS = 64, 256
"""Start poses kept per goal, and poses kept per city where cars begin."""
MIN_CONNECTED = 0.85
"""A generated city is drawn again if less than this part of its lanes is in one strongly connected piece."""


@dataclass(frozen=True)
class Tables:
    """M cities of H x W cells with a margin of blocked cells, K goals each. `rules.Maps` explains the arrays."""

    cities: list[City]
    """Without their margins."""
    margin: int
    height: int
    """With the margin."""
    width: int
    row: NDArray[np.int32]
    ground: NDArray[np.uint16]
    ways: NDArray[np.uint8]
    goal: NDArray[np.int32]
    start: NDArray[np.int32]
    spawn: NDArray[np.int32]
    crossings: NDArray[np.int32]
    crossing: NDArray[np.int32]
    distance: NDArray[np.int16]
    """(M * K, poses): length of the shortest route, what `route` says as well."""
    route: NDArray[np.uint32]

    def position(self, cell: int) -> tuple[int, int]:
        """Cell number with the margin -> (row, column) without."""
        return cell // self.width - self.margin, cell % self.width - self.margin


@lru_cache(maxsize=256)
def generate_city(city_seed: int, size: int) -> City:
    """The city of a seed: drawn again until its lanes hang together, the last time without dead ends and gaps."""
    for attempt in range(4):
        rng = np.random.default_rng([city_seed, size, attempt])
        city = read_city(draw_city(rng, size, wildness=1 - attempt / 3))
        if connected_poses(city).sum() >= MIN_CONNECTED * lane_poses(city).sum():
            break
    return city


def lane_poses(city: City) -> NDArray[np.bool_]:
    """(H*W*4,) bool: poses in lane on plain roads, where episodes can begin and end."""
    heading = np.arange(4)
    on_road = (city.kind == ROAD)[..., None] & ((city.lanes[..., None] >> heading & 1) > 0)
    return on_road.reshape(-1)


def reachable_poses(city: City) -> NDArray[np.bool_]:
    """(H*W*4,) bool: the lane poses that goals are drawn from: the largest number that can all reach each other; all,
    if no two can."""
    left = lanes = lane_poses(city)
    largest = np.zeros_like(lanes)
    while left.sum() > largest.sum():
        first = int(np.argmax(left))
        found = lanes & strong_component(city, first)
        if found.sum() > largest.sum():
            largest = found
        left = left & ~found
        left[first] = False
    return largest if largest.sum() > 1 else lanes


def connected_poses(city: City) -> NDArray[np.bool_]:
    """(H*W*4,) bool: the lane poses that can all reach each other, counted from the city's first lane."""
    lanes = lane_poses(city)
    return lanes & strong_component(city, int(np.argmax(lanes)))


@lru_cache(maxsize=8)
def make_tables(config: DrivingConfig) -> Tables:
    """Builds the tables of a configuration.

    Raises:
        ConfigError: if no start of a drawn map can reach a goal.
    """
    generated = config.city == "generated"
    if generated:
        rng = np.random.default_rng(config.city_seed)
        cities = [generate_city(int(seed), config.size) for seed in rng.integers(2**32, size=config.num_cities)]
    else:
        cities = [load_city(config.city)]
    margin = max(MIN_MARGIN, config.view_range)
    height, width = (n + 2 * margin for n in cities[0].kind.shape)
    padded = [_with_margin(city, margin) for city in cities]
    num_goals = len(cities[0].goals) or config.num_goals
    if config.obs == "state" and num_goals != 1:
        raise ConfigError(
            f"obs=state does not say which goal is meant, and {config.city} has {num_goals}: use a map with one G, "
            "num_goals=1 on a map without, or another obs"
        )
    columns = [
        _one_city(city, config, num_goals, np.random.default_rng([config.city_seed, m, 1]), generated)
        for m, city in enumerate(padded)
    ]
    goal, start, spawn, distance, route = (np.stack(column) for column in zip(*columns, strict=True))
    crossings = np.array([len(city.crossings) for city in padded], np.int32)
    crossing = np.zeros((len(cities), max(1, int(crossings.max())), 3), np.int32)
    for m, city in enumerate(padded):
        for x, (r, c, walk, length) in enumerate(city.crossings):
            dr, dc = STEPS[walk]
            crossing[m, x] = ((r - dr) * width + c - dc, 1 if walk == EAST else width, length)
    planes = [
        city.kind.astype(np.uint16)
        | city.lanes.astype(np.uint16) << 3
        | (city.signal.astype(np.uint16) << 7) * config.lights
        | city.sign.astype(np.uint16) << 15
        for city in padded
    ]
    ground = np.stack(planes).reshape(len(cities), -1).astype(np.uint16)
    return Tables(
        cities=cities,
        margin=margin,
        height=height,
        width=width,
        row=np.arange(height * width, dtype=np.int32) // width,
        ground=ground,
        ways=ways_of_cars(ground, width),
        goal=goal,
        start=start,
        spawn=spawn,
        crossings=crossings,
        crossing=crossing,
        distance=distance.reshape(len(cities) * num_goals, -1),
        route=route.reshape(len(cities) * num_goals, -1),
    )


def ways_of_cars(ground: NDArray[np.uint16], width: int) -> NDArray[np.uint8]:
    """Where a car may go from each pose, for `rules.Maps.ways`.

    Args:
        ground: (M, cells), as in `rules.Maps`.
        width: cells in a row.

    Returns:
        (M, cells * 4) uint8.
    """
    lanes, signal = ground >> 3 & 15, ground >> 7 & 255
    ways = np.zeros((*ground.shape, 4), np.uint8)
    steps = [-width, 1, width, -1]
    for heading in range(4):
        for k, side in enumerate((0, 1, 3)):
            direction = (heading + side) % 4
            ahead = [np.roll(plane, -steps[direction], axis=1) for plane in (lanes, signal)]
            leads = (lanes >> direction & 1) & (ahead[0] >> direction & 1)
            ways[..., heading] |= (leads << k | (leads & (signal == 0) & (ahead[1] > 0)) << k + 3).astype(np.uint8)
    return ways.reshape(len(ground), -1)


def _with_margin(city: City, margin: int) -> City:
    def pad(plane: NDArray) -> NDArray:
        return np.pad(plane, margin, constant_values=BUILDING)

    return City(
        kind=pad(city.kind),
        lanes=pad(city.lanes),
        signal=pad(city.signal),
        sign=pad(city.sign),
        goals=city.goals + margin,
        starts=city.starts + np.array([margin, margin, 0], np.int32),
        crossings=city.crossings + np.array([margin, margin, 0, 0], np.int32),
    )


def _one_city(
    city: City, config: DrivingConfig, num_goals: int, rng: np.random.Generator, generated: bool
) -> tuple[NDArray, ...]:
    """Goals (K,), starts (K, STARTS), car poses (SPAWNS,), distances (K, P) and routes (K, P) of one city."""
    height, width = city.kind.shape
    lanes = lane_poses(city)
    usable = connected_poses(city) if generated else lanes
    poses = np.flatnonzero(usable)
    if not len(poses):
        raise ConfigError(f"{config.city}: the map has no lanes")
    if len(city.goals):
        goals = city.goals
    else:
        goal_cells = rng.choice(poses if generated else np.flatnonzero(reachable_poses(city)), num_goals) // 4
        goals = np.stack([goal_cells // width, goal_cells % width], axis=1).astype(np.int32)
    moves = legal_moves(city.lanes)
    distance = distances(moves, goal_poses(goals, (height, width), 4))
    drawn = np.array([(r * width + c) * 4 + h for r, c, h in city.starts], np.int64)
    starts = []
    for k, length in enumerate(distance):
        candidates = drawn if len(drawn) else poses
        reach = candidates[(length[candidates] < UNREACHABLE) & (length[candidates] > 0)]
        if not len(reach):
            r, c = goals[k] - max(MIN_MARGIN, config.view_range)
            raise ConfigError(f"{config.city}: no start can reach the goal in line {r + 1}, column {c + 1}")
        far = reach[length[reach] >= min(config.min_route, int(length[reach].max()))]
        starts.append(rng.choice(far, STARTS))
    move, cells = manoeuvres(moves, distance)
    return (
        (goals[:, 0] * width + goals[:, 1]).astype(np.int32),
        np.array(starts, np.int32),
        rng.choice(poses, SPAWNS).astype(np.int32),
        distance,
        distance.astype(np.uint32) | move.astype(np.uint32) << 16 | cells.astype(np.uint32) << 18,
    )
