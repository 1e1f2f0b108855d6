"""What the ego perceives, as Warp kernels: numbers with a radar, a semantic grid, a camera.

Everything is egocentric: "ahead" is up, whatever the ego's heading. What lies beyond `view_range` is not perceived.
"""

from __future__ import annotations

from typing import Any

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
    along,
    eastward,
    is_green,
    kind_of,
    moment_of,
    permits,
    route_length,
    southward,
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

AHEAD = wp.constant(3)
"""How many environments earlier tables are asked for what one will see."""
AT_ONCE = wp.constant(8)
Eight = wp.types.vector(AT_ONCE, wp.uint8)
NOT_NEGATIVE = wp.constant(2**31 - 1)
CELL_BITS, CELL_MASK = wp.constant(20), wp.constant(2**20 - 1)
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
    wall: wp.array3d(dtype=wp.uint8)
    """(M * 4 headings, cells, 16 rays): what a ray meets in an empty city: the cells to there, + 128 if it is a cell
    that cannot be driven on rather than the end of the view."""
    ray: wp.array(dtype=wp.vec4f)
    """(256,): by such an entry, the four features of the ray. To divide took longer than to look them up."""
    light: wp.array2d(dtype=wp.uint16)
    """(M, poses): the next light ahead, 0 for none in view: its signal, + 256 * the cells before its junction."""
    reach: wp.int32
    """More than the largest difference between the numbers of the ego's cell and of one that it sees."""
    beams: wp.array2d(dtype=wp.int32)
    """(4 headings, 2 * reach + 1): by that difference, the rays that meet the cell: 9 bits each, the ray (4) and the
    cells to there (5), none if these are 0."""
    place: wp.array2d(dtype=wp.uint16)
    """(4 headings, 2 * reach + 1): by that difference, the place of the cell in the window; where it is outside, the
    ego's own, which is filled last: to write what nobody sees costs less than to ask."""
    window_rows: wp.int32
    window_columns: wp.int32
    look: wp.array2d(dtype=wp.uint8)
    """(M * 4 headings, cells + AT_ONCE): the window's code of each cell as it is without goal and occupants; lights are
    red. The maps are turned so that their rows are the window's."""
    look_row: wp.array(dtype=wp.int32)
    """(4,): cells in a row of a map so turned."""
    corner: wp.array2d(dtype=wp.int32)
    """(4, cells): where the window's first cell is in it, by the ego's cell."""
    lit: wp.array2d(dtype=wp.int32)
    """(M, any): cells in junctions with lights, row by row: the cell, + 2**CELL_BITS * its signal."""
    lit_from: wp.array2d(dtype=wp.int32)
    """(M, rows + 1): where in `lit` a row begins."""
    rows_north: wp.array(dtype=wp.int32)
    """(4 headings,): rows of the map that the window shows north of the ego; south of it, those of the other way."""


@wp.func_native("""
#ifndef __CUDACC__
    __builtin_prefetch(&index(table, row, pose));
#endif
""")
def prefetch(table: wp.array2d(dtype=Any), row: int, pose: int) -> None:
    """Asks for an entry that is soon to be read, because it misses the cache. On a GPU other threads fill the wait."""
    ...


@wp.func_native("""
#ifndef __CUDACC__
    __builtin_prefetch(&index(wall, row, cell, 0));
#endif
""")
def prefetch_walls(wall: wp.array3d(dtype=wp.uint8), row: int, cell: int) -> None:
    """As `prefetch`, for what the rays from a cell meet."""
    ...


@wp.func
def knows_route(guidance: int, ground: int) -> bool:
    """Whether the route is known on a cell of this ground."""
    if guidance == ROUTE_AT_SIGNS:
        return (ground >> SIGN_BIT) != 0
    return guidance == ROUTE_ALWAYS


@wp.func
def within(reach: int, difference: int) -> int:
    """Where the tables have a difference; all that is out of sight has the places at their ends. No branch: whether a
    car is near, a processor could not predict."""
    return (wp.clamp(difference, -reach, reach) + reach) & NOT_NEGATIVE


@wp.func
def meet(out: wp.array2d(dtype=wp.float32), i: int, beams: int, kind: int, view_range: int) -> None:
    """The rays in `beams` end at something of this kind, unless they end before it."""
    while beams != 0:
        distance = float(beams & 31) / float(view_range)
        at = NUM_SCALARS + 4 * ((beams >> 5) & 15)
        if distance <= out[i, at]:
            out[i, at] = distance
            out[i, at + 1] = 0.0
            out[i, at + 2] = 0.0
            out[i, at + 3] = 0.0
            out[i, at + kind] = 1.0
        beams = beams >> 9


@wp.func
def sense_features(
    i: int,
    maps: Maps,
    rules: Rules,
    senses: Senses,
    state: State,
    out: wp.array2d(dtype=wp.float32),
    rays: wp.array2d(dtype=wp.vec4f),
) -> None:
    """What environment i perceives."""
    city = state.city[i]
    pose = state.pose[i]
    cell = pose >> 2
    heading = pose & 3
    soon = wp.min(i + AHEAD, state.pose.shape[0] - 1)
    next_city, next_pose = state.city[soon], state.pose[soon]
    prefetch(maps.route, next_city * maps.goal.shape[1] + state.goal[soon], next_pose)
    prefetch_walls(senses.wall, next_city * 4 + (next_pose & 3), next_pose >> 2)
    prefetch(senses.light, next_city, next_pose)
    here = int(maps.ground[city, cell])
    k = int(0)
    while k < NUM_SCALARS:
        out[i, k] = 0.0
        k += 1
    out[i, state.speed[i]] = 1.0
    out[i, 3 + heading] = 1.0
    for side in range(4):
        out[i, 7 + side] = wp.where(permits(here, (heading + side) & 3), 1.0, 0.0)
    task = city * maps.goal.shape[1] + state.goal[i]
    if knows_route(senses.guidance, here):
        route = maps.route[task, pose]
        advice = int(route >> wp.uint32(16))  # manoeuvre (bits 0-1) and the cells before it
        if (advice & 3) > 0:
            out[i, 10 + (advice & 3)] = 1.0
            out[i, 14] = 1.0 / float(1 + (advice >> 2))
        if senses.guidance == ROUTE_ALWAYS:
            out[i, 15] = float(wp.min(route_length(route), 100)) / 100.0
            goal = maps.goal[city, state.goal[i]]
            south = maps.row[goal] - maps.row[cell]
            east = goal - cell - south * maps.width
            out[i, 16] = float(south * southward(heading) + east * eastward(heading)) / float(senses.size)
            out[i, 17] = float(south * eastward(heading) - east * southward(heading)) / float(senses.size)
    if kind_of(here) == 4:
        out[i, 21] = 1.0

    light = int(senses.light[city, pose])
    seen = wp.where(light > 0, 1.0, 0.0)
    moment = moment_of(rules.green_steps, rules.clear_steps, state.tally[i, TIME])
    green = is_green(rules.green_steps, rules.clear_steps, light & 255, heading, moment)
    out[i, wp.where(green, 19, 18)] = seen
    out[i, 20] = seen - float(light >> 8) / float(senses.view_range)

    row = city * 4 + heading
    for r in range(NUM_RAYS):
        rays[i, r] = senses.ray[int(senses.wall[row, cell, r])]
    j = int(0)
    while j < state.car.shape[1]:
        difference = wp.where(state.car[i, j] >= 0, (state.car[i, j] >> 2) - cell, senses.reach)
        meet(out, i, senses.beams[heading, within(senses.reach, difference)], 2, senses.view_range)
        j += 1
    j = int(0)
    while j < state.walker.shape[1]:
        crossing = state.walker[i, j, 0]
        place = state.walker[i, j, 1]
        which = wp.max(crossing, 0)
        on_road = wp.min(wp.min(crossing, place), maps.crossing[city, which, 2] - 1 - place) >= 0
        difference = wp.where(on_road, along(maps.crossing, city, which, place) - cell, senses.reach)
        meet(out, i, senses.beams[heading, within(senses.reach, difference)], 3, senses.view_range)
        j += 1
    if state.event[i, 0] != NO_EVENT:
        kind = int(2)
        if state.event[i, 0] == CLOSURE:
            kind = 1
        elif state.event[i, 0] == CHILD:
            kind = 3
        difference = (state.event[i, 1] >> 2) - cell
        meet(out, i, senses.beams[heading, within(senses.reach, difference)], kind, senses.view_range)


@wp.kernel
def observe_features(
    first: int,
    last: int,
    lanes: int,
    maps: Maps,
    rules: Rules,
    senses: Senses,
    state: State,
    only: wp.array(dtype=wp.bool),
    all_of_them: int,
    out: wp.array2d(dtype=wp.float32),
    rays: wp.array2d(dtype=wp.vec4f),
    pairs: wp.array2d(dtype=wp.vec2f),
    also: wp.array2d(dtype=wp.vec2f),
) -> None:
    """Writes (N, NUM_FEATURES) float32; where `all_of_them` is 0, rows that `only` marks. `rays` (N, 16) is the part of
    `out` that the radar fills, and `pairs` are the numbers of `out` two by two: the same memory. `also` gets a copy of
    each row while it is in the cache, if it has a width."""
    i = first + wp.tid()
    while i < last:
        if all_of_them != 0 or only[i]:
            sense_features(i, maps, rules, senses, state, out, rays)
            k = int(0)
            while k < also.shape[1]:
                also[i, k] = pairs[i, k]
                k += 1
        i += lanes


@wp.func
def sense_window(
    i: int,
    maps: Maps,
    rules: Rules,
    senses: Senses,
    state: State,
    look_by_eight: wp.array2d(dtype=Eight),
    out: wp.array2d(dtype=wp.uint8),
    out_by_eight: wp.array2d(dtype=Eight),
) -> None:
    """What environment i perceives."""
    pose = state.pose[i]
    cell = pose >> 2
    heading = pose & 3
    city = state.city[i]
    row = city * 4 + heading
    moment = moment_of(rules.green_steps, rules.clear_steps, state.tally[i, TIME])
    soon = wp.min(i + AHEAD, state.pose.shape[0] - 1)
    prefetch(maps.route, state.city[soon] * maps.goal.shape[1] + state.goal[soon], state.pose[soon])
    width = senses.window_columns
    at, k = int(senses.corner[heading, cell]), int(0)
    while k < width * senses.window_rows:
        column = int(0)
        while column + AT_ONCE <= width:
            out_by_eight[i, k + column] = look_by_eight[row, at + column]
            column += AT_ONCE
        while column < width:
            out[i, k + column] = senses.look[row, at + column]
            column += 1
        at += senses.look_row[heading]
        k += width
    ego_row = maps.row[cell]
    k = int(senses.lit_from[city, ego_row - senses.rows_north[heading]])
    last_lit = int(senses.lit_from[city, ego_row + senses.rows_north[(heading + 2) & 3] + 1])
    while k < last_lit:
        lit = senses.lit[city, k]
        green = is_green(rules.green_steps, rules.clear_steps, lit >> CELL_BITS, heading, moment)
        place = int(senses.place[heading, within(senses.reach, (lit & CELL_MASK) - cell)])
        out[i, place] = wp.where(green, GREEN, RED)
        k += 1
    out[i, int(senses.place[heading, within(senses.reach, maps.goal[city, state.goal[i]] - cell)])] = GOAL
    advice = int(0)
    if knows_route(senses.guidance, int(maps.ground[city, cell])):
        advice = int(maps.route[city * maps.goal.shape[1] + state.goal[i], pose] >> wp.uint32(16))
        if (advice & 3) > 0 and (advice >> 2) <= senses.view_range:
            turn = (senses.view_range - (advice >> 2)) * width + width // 2
            out[i, turn] = TURN + wp.uint8((advice & 3) - 1)
    j = int(0)
    while j < state.car.shape[1]:
        car = state.car[i, j]
        if car >= 0:
            place = int(senses.place[heading, within(senses.reach, (car >> 2) - cell)])
            out[i, place] = VEHICLE + wp.uint8((car - heading) & 3)
        j += 1
    j = int(0)
    while j < state.walker.shape[1]:
        if state.walker[i, j, 0] >= 0:
            walker = along(maps.crossing, city, state.walker[i, j, 0], state.walker[i, j, 1])
            out[i, int(senses.place[heading, within(senses.reach, walker - cell)])] = PERSON
        j += 1
    event = state.event[i, 0]
    if event != NO_EVENT:
        code = wp.uint8(WORKS)
        if event == STOPPED_CAR:
            code = VEHICLE + wp.uint8((state.event[i, 1] - heading) & 3)
        if event == CHILD:
            code = PERSON
        out[i, int(senses.place[heading, within(senses.reach, (state.event[i, 1] >> 2) - cell)])] = code
    out[i, senses.view_range * width + width // 2] = EGO + wp.uint8(4 * state.speed[i] + (advice & 3))


@wp.kernel
def observe_window(
    first: int,
    last: int,
    lanes: int,
    maps: Maps,
    rules: Rules,
    senses: Senses,
    state: State,
    only: wp.array(dtype=wp.bool),
    all_of_them: int,
    look_by_eight: wp.array2d(dtype=Eight),
    out: wp.array2d(dtype=wp.uint8),
    out_by_eight: wp.array2d(dtype=Eight),
) -> None:
    """Writes (N, rows * columns) uint8 codes; where `all_of_them` is 0, rows that `only` marks.

    The arrays `by_eight` are the bytes of the others, at each place the eight that begin there. Moved one by one, they
    made a look take a quarter longer.
    """
    i = first + wp.tid()
    while i < last:
        if all_of_them != 0 or only[i]:
            sense_window(i, maps, rules, senses, state, look_by_eight, out, out_by_eight)
        i += lanes


@wp.func
def sense_state(
    i: int,
    maps: Maps,
    state: State,
    margin: int,
    map_width: int,
    out: wp.array2d(dtype=wp.int64),
) -> None:
    """Where environment i is."""
    cell = state.pose[i] >> 2
    row = cell // maps.width - margin
    column = cell % maps.width - margin
    out[i, 0] = wp.int64((((row * map_width + column) * 4) + (state.pose[i] & 3)) * 3 + state.speed[i])


@wp.kernel
def observe_state(
    first: int,
    last: int,
    lanes: int,
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
    while i < last:
        if all_of_them != 0 or only[i]:
            sense_state(i, maps, state, margin, map_width, out)
        i += lanes
