"""The egocentric camera, as a Warp kernel: 84 x 84 pixels, 7 x 7 cells, the ego in the last row but one, ahead is up.

The cities are drawn once (`sprites.draw_city`) and cut into cells; equal cells share one tile. A frame is 49 tiles,
copied four bytes at a time, with sprites blended over them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import warp as wp
from numpy.typing import NDArray

from envs.driving import sprites
from envs.driving.rules import (
    NO_EVENT,
    TIME,
    Maps,
    Rules,
    State,
    along,
    is_green,
    moment_of,
    signal_of,
    step_towards,
)
from envs.driving.senses import Senses, knows_route
from envs.driving.tables import Tables

wp.set_module_options({"enable_backward": False, "fuse_fp": False, "max_unroll": 4, "optimization_level": 3})

CELL_PIXELS, CELLS, ROWS_AHEAD = 12, 7, 5
SIZE = CELL_PIXELS * CELLS
PIXELS, COUNT, AHEAD, HALF = (
    wp.constant(CELL_PIXELS),
    wp.constant(CELLS),
    wp.constant(ROWS_AHEAD),
    wp.constant(CELLS // 2),
)
ROW_WORDS, TILE_WORDS = wp.constant(SIZE * 3 // 4), wp.constant(CELL_PIXELS * 3 // 4)
ROW_BYTES = wp.constant(SIZE * 3)
NAMES = (
    "ego0", "ego1", "ego2", "car0", "car1", "car2", "car3", "car4", "car5", "person", "stopped", "barrier", "child",
    "goal", "red", "green", "arrow1", "arrow2", "arrow3",
)  # fmt: skip
EGO, CAR, PERSON, EVENT, GOAL, LAMP, ARROW = (
    wp.constant(NAMES.index(name)) for name in ("ego0", "car0", "person", "stopped", "goal", "red", "arrow1")
)
PAINTS = wp.constant(6)


@wp.struct
class Film:
    """What the camera needs of the cities."""

    tile: wp.array2d(dtype=wp.uint16)
    """(M, cells): which tile shows a cell."""
    approach: wp.array2d(dtype=wp.uint8)
    """(M, cells): 0, or 1 + the heading in which a car waits here for a light."""
    atlas: wp.array2d(dtype=wp.uint32)
    """(tiles * 4, pixels): each tile as seen under the four headings, four bytes to a word."""
    sprite: wp.array2d(dtype=wp.uint8)
    """(sprites * 4, pixels * 4): each sprite with the four relative headings, RGBA."""
    patch: wp.array2d(dtype=wp.int32)
    """(4 headings, 49): difference between the ego's cell and the cells of the picture."""


@wp.func
def view_place(width: int, ego_cell: int, heading: int, cell: int) -> int:
    """Which of the 49 places shows a cell, -1 for none."""
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
    row = AHEAD - ahead
    column = right + HALF
    if row < 0 or row >= COUNT or column < 0 or column >= COUNT:
        return -1
    return row * COUNT + column


@wp.func
def blend(
    out: wp.array2d(dtype=wp.uint8), sprite: wp.array2d(dtype=wp.uint8), i: int, which: int, turned: int, place: int
) -> None:
    """Lays a sprite, turned by quarters, over a place of the picture."""
    if place < 0:
        return
    row = which * 4 + (turned & 3)
    corner = (place // COUNT) * PIXELS * ROW_BYTES + (place % COUNT) * PIXELS * 3
    y = int(0)
    while y < PIXELS:
        x = int(0)
        while x < PIXELS:
            source = (y * PIXELS + x) * 4
            cover = int(sprite[row, source + 3])
            if cover > 0:
                at = corner + y * ROW_BYTES + x * 3
                for k in range(3):
                    mixed = int(sprite[row, source + k]) * cover + int(out[i, at + k]) * (255 - cover)
                    out[i, at + k] = wp.uint8((mixed + 127) // 255)
            x += 1
        y += 1


@wp.func
def sense_camera(
    i: int,
    maps: Maps,
    rules: Rules,
    senses: Senses,
    state: State,
    film: Film,
    words: wp.array2d(dtype=wp.uint32),
    out: wp.array2d(dtype=wp.uint8),
) -> None:
    """What environment i perceives."""
    city = state.city[i]
    cell = state.pose[i] >> 2
    heading = state.pose[i] & 3
    moment = moment_of(rules.green_steps, rules.clear_steps, state.tally[i, TIME])
    place = int(0)
    while place < COUNT * COUNT:
        tile = int(film.tile[city, cell + film.patch[heading, place]]) * 4 + heading
        corner = (place // COUNT) * PIXELS * ROW_WORDS + (place % COUNT) * TILE_WORDS
        source = int(0)
        y = int(0)
        while y < PIXELS:
            at = corner + y * ROW_WORDS
            x = int(0)
            while x < TILE_WORDS:
                words[i, at + x] = film.atlas[tile, source + x]
                x += 1
            source += TILE_WORDS
            y += 1
        place += 1
    place = int(0)
    while place < COUNT * COUNT:
        shown = cell + film.patch[heading, place]
        approach = int(film.approach[city, shown])
        if approach > 0:
            ahead = shown + step_towards(approach - 1, maps.width)
            signal = signal_of(int(maps.ground[city, ahead]))
            lamp = int(LAMP)
            if is_green(rules.green_steps, rules.clear_steps, signal, approach - 1, moment):
                lamp = LAMP + 1
            blend(out, film.sprite, i, lamp, approach - 1 - heading, place)
        place += 1
    blend(out, film.sprite, i, GOAL, 0, view_place(maps.width, cell, heading, maps.goal[city, state.goal[i]]))
    if knows_route(senses.guidance, int(maps.ground[city, cell])):
        advice = int(maps.route[city * maps.goal.shape[1] + state.goal[i], state.pose[i]] >> wp.uint32(16))
        if (advice & 3) > 1 and (advice >> 2) <= AHEAD:
            blend(out, film.sprite, i, ARROW + (advice & 3) - 1, 0, (AHEAD - (advice >> 2)) * COUNT + HALF)
    j = int(0)
    while j < state.car.shape[1]:
        if state.car[i, j] >= 0:
            place = view_place(maps.width, cell, heading, state.car[i, j] >> 2)
            blend(out, film.sprite, i, CAR + j % PAINTS, (state.car[i, j] & 3) - heading, place)
        j += 1
    j = int(0)
    while j < state.walker.shape[1]:
        if state.walker[i, j, 0] >= 0:
            walker = along(maps.crossing, city, state.walker[i, j, 0], state.walker[i, j, 1])
            place = view_place(maps.width, cell, heading, walker)
            blend(out, film.sprite, i, PERSON, 0, place)
        j += 1
    if state.event[i, 0] != NO_EVENT:
        place = view_place(maps.width, cell, heading, state.event[i, 1] >> 2)
        blend(out, film.sprite, i, EVENT + state.event[i, 0] - 1, (state.event[i, 1] & 3) - heading, place)
    blend(out, film.sprite, i, EGO + state.speed[i], 0, AHEAD * COUNT + HALF)


@wp.kernel
def observe_camera(
    first: int,
    last: int,
    lanes: int,
    maps: Maps,
    rules: Rules,
    senses: Senses,
    state: State,
    only: wp.array(dtype=wp.bool),
    all_of_them: int,
    film: Film,
    words: wp.array2d(dtype=wp.uint32),
    out: wp.array2d(dtype=wp.uint8),
) -> None:
    """Writes (N, 84 * 84 * 3) uint8; `words` is the same memory, four bytes at a time."""
    i = first + wp.tid()
    while i < last:
        if all_of_them != 0 or only[i]:
            sense_camera(i, maps, rules, senses, state, film, words, out)
        i += lanes


def make_film(tables: Tables, lights: bool) -> dict[str, NDArray[Any]]:
    """Draws the cities and cuts them up; the arrays of `Film`."""
    size = CELL_PIXELS
    blank = np.full((1, size, size, 3), np.rint(np.array(sprites.PLOT) * 255), np.uint8)
    cells, cuts = [], [blank]
    for city in tables.cities:
        height, width = city.kind.shape
        picture = sprites.draw_city(city, size)
        cuts.append(picture.reshape(height, size, width, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3))
    tiles, index = np.unique(np.concatenate(cuts).reshape(-1, size * size * 3), axis=0, return_inverse=True)
    tiles = tiles.reshape(-1, size, size, 3)
    offset = 1
    for city in tables.cities:
        shape = city.kind.shape
        inside = index[offset : offset + city.kind.size].reshape(shape)
        cells.append(np.pad(inside, tables.margin, constant_values=index[0]).ravel())
        offset += city.kind.size
    turned = np.stack([np.rot90(tiles, heading, axes=(1, 2)) for heading in range(4)], axis=1)  # (tiles, 4, 12, 12, 3)
    drawn = sprites.all_sprites(size)
    rgba = np.stack([np.stack([np.rot90(drawn[name], -turn) for turn in range(4)]) for name in NAMES])
    return {
        "tile": np.stack(cells).astype(np.uint16),
        "approach": approaches(tables) * np.uint8(lights),
        "atlas": np.ascontiguousarray(turned).reshape(len(tiles) * 4, -1).view(np.uint32),
        "sprite": np.rint(rgba * 255).astype(np.uint8).reshape(len(NAMES) * 4, -1),
        "patch": patch(tables.width),
    }


def patch(width: int) -> NDArray[np.int32]:
    """(4 headings, 49): the difference between the ego's cell and the cells of the picture, row by row from far ahead,
    on a map with `width` cells in a row."""
    ahead = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])
    right = np.roll(ahead, -1, axis=0)
    row, column = np.divmod(np.arange(CELLS * CELLS), CELLS)
    moved = np.multiply.outer(ahead, ROWS_AHEAD - row) + np.multiply.outer(right, column - CELLS // 2)  # (4, 2, 49)
    return (moved[:, 0] * width + moved[:, 1]).astype(np.int32)


def approaches(tables: Tables) -> NDArray[np.uint8]:
    """(M, cells): 0, or 1 + heading where the next cell of a lane belongs to a junction with lights."""
    lanes, signal = tables.ground >> 3 & 15, tables.ground >> 7 & 255
    found = np.zeros(lanes.shape, np.uint8)
    for heading, step in enumerate((-tables.width, 1, tables.width, -1)):
        waits = (lanes == 1 << heading) & (signal == 0) & (np.roll(signal, -step, axis=1) > 0)
        found[waits] = heading + 1
    return found
