"""What the ego perceives, as Warp kernels: numbers with a radar, a semantic grid, a camera.

Everything is egocentric: "ahead" is up, whatever the ego's heading. What lies beyond `view_range` is not perceived.
"""

from __future__ import annotations

import warp as wp

from envs.driving.rules import (
    CHILD,
    CLOSURE,
    NO_EVENT,
    STOPPED_CAR,
    TIME,
    Maps,
    Rules,
    State,
    is_drivable,
    is_green,
    is_taken,
    kind_of,
    permits,
    signal_of,
    step_towards,
    walker_cell,
)

wp.set_module_options({"enable_backward": False, "fuse_fp": False, "max_unroll": 4, "optimization_level": 3})

NUM_RAYS = 16
NUM_SCALARS = 22
NUM_FEATURES = NUM_SCALARS + 4 * NUM_RAYS
"""`features` are, in this order: speed (3, one-hot), heading (4, one-hot: north, east, south, west), directions that
the lane permits (4: ahead, right, behind, left), the next manoeuvre (3, one-hot: straight on, left, right), its
nearness, the length of the route / 100, the goal's offset (2: ahead, right, in map sizes), the next light (2: red,
green), its nearness, whether the ego is in a junction; then for each of the 16 rays, clockwise from ahead: distance /
view_range, and whether it ends at something fixed, a vehicle, a person (one-hot; all 0 if it meets nothing)."""

BLOCKED, WORKS, BESIDE, LANE, MANY_WAYS, ZEBRA, RED, GREEN, GOAL, VEHICLE, PERSON, TURN, EGO = (
    wp.constant(wp.uint8(i)) for i in (0, 1, 2, 3, 7, 8, 9, 10, 11, 12, 16, 17, 20)
)
NUM_CODES = 32
"""Codes of `window`: 0 blocked, 1 roadworks or a closure, 2 verge, 3-6 lane (its direction relative to the ego's: same,
to the right, oncoming, to the left), 7 several directions, 8 crosswalk, 9 red and 10 green light for the ego's heading,
11 goal, 12-15 vehicle (by relative heading), 16 person, 17-19 here the route goes straight on to the goal, left, right,
20-31 the ego (20 + 4 * speed + next manoeuvre: none known, straight on, left, right)."""

SIGN_BIT = wp.constant(15)
ROUTE_ALWAYS, ROUTE_AT_SIGNS = wp.constant(0), wp.constant(1)


@wp.struct
class Senses:
    """How the ego perceives."""

    view_range: wp.int32
    guidance: wp.int32
    """0 always, 1 at signposts, 2 never."""
    size: wp.int32
    """The larger side of the maps, in cells."""
    ray: wp.array3d(dtype=wp.int32)
    """(4 headings, 16 rays, view_range): difference between the ego's cell and the cells along each ray."""
    patch: wp.array2d(dtype=wp.int32)
    """(4 headings, rows * columns): the same for the cells of the window, row by row from far ahead."""
    patch_width: wp.int32
    """Columns of the window."""
    look: wp.array2d(dtype=wp.uint8)
    """(M * 4 headings, cells): the window's code of each cell as it is without goal and occupants; lights are red."""


@wp.func
def knows_route(maps: Maps, senses: Senses, state: State, i: int) -> bool:
    if senses.guidance == ROUTE_AT_SIGNS:
        return (int(maps.ground[state.city[i], state.pose[i] >> 2]) >> SIGN_BIT) != 0
    return senses.guidance == ROUTE_ALWAYS


@wp.func
def advice_of(maps: Maps, state: State, i: int) -> int:
    """Manoeuvre (bits 0-1) and the cells before it."""
    return int(maps.advice[state.city[i] * maps.goal.shape[1] + state.goal[i], state.pose[i]])


@wp.func
def is_person(maps: Maps, state: State, i: int, cell: int) -> bool:
    """Whether it is a person who stands on a taken cell."""
    if state.event[i, 0] == CHILD and (state.event[i, 1] >> 2) == cell:
        return True
    j = int(0)
    while j < state.walker.shape[1]:
        if state.walker[i, j, 0] >= 0:
            if walker_cell(maps, state, i, j) == cell:
                return True
        j += 1
    return False


@wp.kernel
def observe_features(
    first: int,
    maps: Maps,
    rules: Rules,
    senses: Senses,
    state: State,
    only: wp.array(dtype=wp.bool),
    all_of_them: int,
    out: wp.array2d(dtype=wp.float32),
) -> None:
    """Writes (N, NUM_FEATURES) float32; where `all_of_them` is 0, rows that `only` marks."""
    i = first + wp.tid()
    if all_of_them == 0 and not only[i]:
        return
    city = state.city[i]
    pose = state.pose[i]
    cell = pose >> 2
    heading = pose & 3
    here = int(maps.ground[city, cell])
    k = int(0)
    while k < NUM_SCALARS:
        out[i, k] = 0.0
        k += 1
    out[i, state.speed[i]] = 1.0
    out[i, 3 + heading] = 1.0
    for side in range(4):
        if permits(here, (heading + side) & 3):
            out[i, 7 + side] = 1.0
    if knows_route(maps, senses, state, i):
        advice = advice_of(maps, state, i)
        if (advice & 3) > 0:
            out[i, 10 + (advice & 3)] = 1.0
            out[i, 14] = 1.0 / float(1 + (advice >> 2))
        if senses.guidance == ROUTE_ALWAYS:
            task = city * maps.goal.shape[1] + state.goal[i]
            out[i, 15] = float(wp.min(int(maps.distance[task, pose]), 100)) / 100.0
            goal = maps.goal[city, state.goal[i]]
            south = float(goal // maps.width - cell // maps.width) / float(senses.size)
            east = float(goal % maps.width - cell % maps.width) / float(senses.size)
            if heading == 0:
                out[i, 16] = -south
                out[i, 17] = east
            elif heading == 1:
                out[i, 16] = east
                out[i, 17] = south
            elif heading == 2:
                out[i, 16] = south
                out[i, 17] = -east
            else:
                out[i, 16] = -east
                out[i, 17] = -south
    if kind_of(here) == 4:
        out[i, 21] = 1.0

    ahead = cell
    looking = signal_of(here) == 0
    k = int(0)
    while k < senses.view_range:
        if looking:
            ahead += step_towards(heading, maps.width)
            ground = int(maps.ground[city, ahead])
            looking = is_drivable(ground) and signal_of(ground) == 0
            if signal_of(ground) > 0:
                light = int(18)
                if is_green(rules.green_steps, rules.clear_steps, signal_of(ground), heading, state.tally[i, TIME]):
                    light = 19
                out[i, light] = 1.0
                out[i, 20] = 1.0 - float(k) / float(senses.view_range)
        k += 1

    r = int(0)
    while r < NUM_RAYS:
        at = NUM_SCALARS + 4 * r
        distance = int(0)
        kind = int(0)
        while kind == 0 and distance < senses.view_range:
            seen = cell + senses.ray[heading, r, distance]
            distance += 1
            if not is_drivable(int(maps.ground[city, seen])):
                kind = 1
            elif is_taken(state.taken, i, seen):
                kind = 2
                if state.event[i, 0] == CLOSURE and (state.event[i, 1] >> 2) == seen:
                    kind = 1
                elif is_person(maps, state, i, seen):
                    kind = 3
        out[i, at] = float(distance) / float(senses.view_range)
        out[i, at + 1] = 0.0
        out[i, at + 2] = 0.0
        out[i, at + 3] = 0.0
        if kind > 0:
            out[i, at + kind] = 1.0
        r += 1


@wp.func
def patch_place(view_range: int, columns: int, width: int, ego_cell: int, heading: int, cell: int) -> int:
    """The place of a cell in the window, -1 if it is outside."""
    south = cell // width - ego_cell // width
    east = cell % width - ego_cell % width
    ahead = -south
    right = east
    if heading == 1:
        ahead = east
        right = south
    elif heading == 2:
        ahead = south
        right = -east
    elif heading == 3:
        ahead = -east
        right = -south
    row = view_range - ahead
    column = right + columns // 2
    if row < 0 or row > view_range + 2 or column < 0 or column >= columns:
        return -1
    return row * columns + column


@wp.kernel
def observe_window(
    first: int,
    maps: Maps,
    rules: Rules,
    senses: Senses,
    state: State,
    only: wp.array(dtype=wp.bool),
    all_of_them: int,
    out: wp.array2d(dtype=wp.uint8),
) -> None:
    """Writes (N, rows * columns) uint8 codes; where `all_of_them` is 0, rows that `only` marks."""
    i = first + wp.tid()
    if all_of_them == 0 and not only[i]:
        return
    pose = state.pose[i]
    cell = pose >> 2
    heading = pose & 3
    city = state.city[i]
    time = state.tally[i, TIME]
    row = city * 4 + heading
    k = int(0)
    while k < senses.patch.shape[1]:
        seen = cell + senses.patch[heading, k]
        code = senses.look[row, seen]
        if code == RED:
            if is_green(rules.green_steps, rules.clear_steps, signal_of(int(maps.ground[city, seen])), heading, time):
                code = GREEN
        out[i, k] = code
        k += 1
    place = patch_place(
        senses.view_range, senses.patch_width, maps.width, cell, heading, maps.goal[city, state.goal[i]]
    )
    if place >= 0:
        out[i, place] = GOAL
    advice = int(0)
    if knows_route(maps, senses, state, i):
        advice = advice_of(maps, state, i)
        if (advice & 3) > 0 and (advice >> 2) <= senses.view_range:
            turn = (senses.view_range - (advice >> 2)) * senses.patch_width + senses.patch_width // 2
            out[i, turn] = TURN + wp.uint8((advice & 3) - 1)
    j = int(0)
    while j < state.car.shape[1]:
        if state.car[i, j] >= 0:
            place = patch_place(senses.view_range, senses.patch_width, maps.width, cell, heading, state.car[i, j] >> 2)
            if place >= 0:
                out[i, place] = VEHICLE + wp.uint8((state.car[i, j] - heading) & 3)
        j += 1
    j = int(0)
    while j < state.walker.shape[1]:
        if state.walker[i, j, 0] >= 0:
            place = patch_place(
                senses.view_range, senses.patch_width, maps.width, cell, heading, walker_cell(maps, state, i, j)
            )
            if place >= 0:
                out[i, place] = PERSON
        j += 1
    if state.event[i, 0] != NO_EVENT:
        place = patch_place(senses.view_range, senses.patch_width, maps.width, cell, heading, state.event[i, 1] >> 2)
        if place >= 0:
            code = wp.uint8(WORKS)
            if state.event[i, 0] == STOPPED_CAR:
                code = VEHICLE + wp.uint8((state.event[i, 1] - heading) & 3)
            if state.event[i, 0] == CHILD:
                code = PERSON
            out[i, place] = code
    ego_place = senses.view_range * senses.patch_width + senses.patch_width // 2
    out[i, ego_place] = EGO + wp.uint8(4 * state.speed[i] + (advice & 3))


@wp.kernel
def observe_state(
    first: int,
    maps: Maps,
    state: State,
    margin: int,
    map_width: int,
    only: wp.array(dtype=wp.bool),
    all_of_them: int,
    out: wp.array2d(dtype=wp.int64),
) -> None:
    """Writes (N, 1) int64: ((row * map_width + column) * 4 + heading) * 3 + speed, counted without the margin."""
    i = first + wp.tid()
    if all_of_them == 0 and not only[i]:
        return
    cell = state.pose[i] >> 2
    row = cell // maps.width - margin
    column = cell % maps.width - margin
    out[i, 0] = wp.int64((((row * map_width + column) * 4) + (state.pose[i] & 3)) * 3 + state.speed[i])
