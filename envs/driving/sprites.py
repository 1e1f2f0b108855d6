"""Drawings of everything that moves or stands in a city, and of the city itself, in plain NumPy.

Shapes are signed distance functions: negative inside, in units of a cell. A pixel's coverage follows from its distance
to the edge, which is what makes the edges smooth.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.driving.maps import BUILDING, CROSSWALK, JUNCTION, PARK, ROAD, ROADWORKS, STEPS, VERGE, City

Image = NDArray[np.floating]
Colour = Any
"""Red, green and blue in [0, 1], as a tuple or an array."""
SUPERSAMPLING = 2


def rgb(code: str) -> Colour:
    """`#rrggbb` -> three numbers in [0, 1]."""
    return int(code[1:3], 16) / 255, int(code[3:5], 16) / 255, int(code[5:7], 16) / 255


ASPHALT, JUNCTION_ASPHALT = rgb("#4a4e57"), rgb("#50545d")
PAVEMENT, KERB = rgb("#c3bfb5"), rgb("#a19d94")
GRASS, MEADOW, PLOT = rgb("#8dba6c"), rgb("#a3c47c"), rgb("#b9b4a8")
WHITE, YELLOW = rgb("#eceff1"), rgb("#f2c14e")
ROOFS = [rgb(c) for c in ("#b5654a", "#8c8f99", "#c98f5e", "#7d8ca3", "#a8a095")]
PAINTS = [rgb(c) for c in ("#3d7dca", "#e8e8ea", "#2f9e77", "#8f5fc0", "#39424e", "#e3b23c")]
EGO_PAINT = rgb("#ff5a36")
ROUTE, TRAIL = rgb("#3fa9ff"), rgb("#ff8a5c")
RED, GREEN = rgb("#ff3b30"), rgb("#34d058")
WORKS_ORANGE = rgb("#f28c28")


class Canvas:
    """An RGBA picture of `rows` x `columns` cells, painted at `pixels * SUPERSAMPLING` per cell."""

    def __init__(self, rows: int, columns: int, pixels: int, ground: Colour | None = None) -> None:
        self.pixels = pixels
        self.scale = pixels * SUPERSAMPLING
        self.image = np.zeros((rows * self.scale, columns * self.scale, 4), np.float32)
        if ground is not None:
            self.image[...] = (*ground, 1.0)

    def region(self, top: float, left: float, bottom: float, right: float) -> tuple[slice, slice, Image, Image]:
        """The part of the picture within these bounds (in cells), and the (y, x) of its pixels."""
        height, width = self.image.shape[:2]
        y0, y1 = max(0, int(top * self.scale)), min(height, int(np.ceil(bottom * self.scale)))
        x0, x1 = max(0, int(left * self.scale)), min(width, int(np.ceil(right * self.scale)))
        y = ((np.arange(y0, y1) + 0.5) / self.scale).astype(np.float32)[:, None]
        x = ((np.arange(x0, x1) + 0.5) / self.scale).astype(np.float32)[None, :]
        return slice(y0, y1), slice(x0, x1), y, x

    def paint(self, rows: slice, columns: slice, distance: Image, colour: Colour, alpha: float = 1.0) -> None:
        """Blends `colour` in wherever `distance` is negative."""
        part = self.image[rows, columns]
        cover = (np.clip(0.5 - distance * self.scale, 0, 1) * alpha)[..., None]
        part[..., :3] = part[..., :3] * (1 - cover) + np.asarray(colour, np.float32) * cover
        part[..., 3:] = part[..., 3:] * (1 - cover) + cover

    def box(
        self, top: float, left: float, bottom: float, right: float, colour: Colour, radius: float = 0.0,
        alpha: float = 1.0,
    ) -> None:  # fmt: skip
        """A rectangle with round corners, in cells."""
        rows, columns, y, x = self.region(top - 0.05, left - 0.05, bottom + 0.05, right + 0.05)
        dy = np.abs(y - (top + bottom) / 2) - (bottom - top) / 2 + radius
        dx = np.abs(x - (left + right) / 2) - (right - left) / 2 + radius
        outside = np.sqrt(np.maximum(dy, 0) ** 2 + np.maximum(dx, 0) ** 2)
        self.paint(rows, columns, outside + np.minimum(np.maximum(dy, dx), 0) - radius, colour, alpha)

    def disc(self, y: float, x: float, radius: float, colour: Colour, alpha: float = 1.0) -> None:
        rows, columns, ys, xs = self.region(y - radius - 0.05, x - radius - 0.05, y + radius + 0.05, x + radius + 0.05)
        self.paint(rows, columns, np.sqrt((ys - y) ** 2 + (xs - x) ** 2) - radius, colour, alpha)

    def ring(self, y: float, x: float, radius: float, width: float, colour: Colour, alpha: float = 1.0) -> None:
        reach = radius + width
        rows, columns, ys, xs = self.region(y - reach, x - reach, y + reach, x + reach)
        self.paint(rows, columns, np.abs(np.sqrt((ys - y) ** 2 + (xs - x) ** 2) - radius) - width / 2, colour, alpha)

    def line(
        self, a: tuple[float, float], b: tuple[float, float], width: float, colour: Colour, alpha: float = 1.0
    ) -> None:
        """A straight line with round ends from (y, x) `a` to `b`."""
        reach = width / 2 + 0.05
        rows, columns, y, x = self.region(
            min(a[0], b[0]) - reach, min(a[1], b[1]) - reach, max(a[0], b[0]) + reach, max(a[1], b[1]) + reach
        )
        dy, dx = b[0] - a[0], b[1] - a[1]
        along = np.clip(((y - a[0]) * dy + (x - a[1]) * dx) / max(dy * dy + dx * dx, 1e-9), 0, 1)
        distance = np.sqrt((y - a[0] - along * dy) ** 2 + (x - a[1] - along * dx) ** 2) - width / 2
        self.paint(rows, columns, distance, colour, alpha)

    def finish(self) -> Image:
        """(rows * pixels, columns * pixels, 4) float32 in [0, 1]: the supersampled picture averaged down."""
        k = SUPERSAMPLING
        height, width = self.image.shape[0] // k, self.image.shape[1] // k
        weighted = self.image.copy()
        weighted[..., :3] *= weighted[..., 3:]
        small = weighted.reshape(height, k, width, k, 4).mean(axis=(1, 3))
        small[..., :3] /= np.maximum(small[..., 3:], 1e-6)
        return small


def car(pixels: int, paint: Colour, braking: bool = False, ego: bool = False) -> Image:
    """A car seen from above, heading north: (pixels, pixels, 4)."""
    c = Canvas(1, 1, pixels)
    dark = tuple(0.62 * v for v in paint)
    glass = rgb("#1f2a36")
    if ego:
        c.box(0.02, 0.14, 0.98, 0.86, WHITE, 0.24, 0.9)
    c.box(0.09, 0.235, 0.97, 0.815, (0, 0, 0), 0.16, 0.35)  # shadow
    c.box(0.05, 0.21, 0.94, 0.79, dark, 0.17)
    c.box(0.065, 0.235, 0.925, 0.765, paint, 0.15)
    c.box(0.28, 0.27, 0.47, 0.73, glass, 0.07)
    c.box(0.73, 0.29, 0.85, 0.71, glass, 0.05)
    c.box(0.41, 0.285, 0.77, 0.715, tuple(min(1.0, 1.12 * v + 0.03) for v in paint), 0.07)
    for x in (0.30, 0.70):
        c.disc(0.09, x, 0.055, rgb("#fff6c8"))
        c.box(0.885, x - 0.07, 0.93, x + 0.07, rgb("#ff2d20") if braking else rgb("#9c2b25"), 0.02)
    if ego:
        c.box(0.1, 0.46, 0.27, 0.54, WHITE, 0.03)
        c.box(0.44, 0.46, 0.74, 0.54, WHITE, 0.03)
    if braking:
        for x in (0.30, 0.70):
            c.disc(0.93, x, 0.1, rgb("#ff2d20"), 0.35)
    return c.finish()


def person(pixels: int, child: bool = False) -> Image:
    """A pedestrian, or a child after a ball."""
    c = Canvas(1, 1, pixels)
    size = 0.75 if child else 1.0
    coat, y = (rgb("#ffd23f"), 0.55) if child else (rgb("#d9418c"), 0.5)
    c.disc(y + 0.05, 0.54, 0.22 * size, (0, 0, 0), 0.35)
    c.box(y - 0.13 * size, 0.5 - 0.27 * size, y + 0.13 * size, 0.5 + 0.27 * size, coat, 0.12 * size)
    c.disc(y, 0.5, 0.135 * size, rgb("#5b3a29"))
    c.disc(y - 0.02, 0.5, 0.09 * size, rgb("#7a4f38"))
    if child:
        c.disc(0.24, 0.3, 0.1, RED)
        c.disc(0.22, 0.28, 0.04, WHITE)
    return c.finish()


def barrier(pixels: int) -> Image:
    """What closes a lane: a striped board between two cones."""
    c = Canvas(1, 1, pixels)
    c.box(0.42, 0.1, 0.66, 0.94, (0, 0, 0), 0.03, 0.35)
    c.box(0.38, 0.08, 0.6, 0.92, WHITE, 0.03)
    rows, columns, y, x = c.region(0.38, 0.08, 0.6, 0.92)
    stripe = np.abs((x + y * 0.8 + 0.02) % 0.28 - 0.14) - 0.07
    c.paint(rows, columns, np.maximum(stripe, np.abs(y - 0.49) - 0.1), RED)
    for cx in (0.16, 0.84):
        c.disc(0.49, cx, 0.12, WORKS_ORANGE)
        c.disc(0.49, cx, 0.07, WHITE)
        c.disc(0.49, cx, 0.04, WORKS_ORANGE)
    return c.finish()


def lamp(pixels: int, green: bool) -> Image:
    """A traffic light beside the lane of a car heading north, at the far right corner of its cell."""
    c = Canvas(1, 1, pixels)
    colour = GREEN if green else RED
    c.box(0.0, 0.06, 0.07, 0.94, colour, 0.02, 0.85)  # the stop line glows
    c.disc(0.14, 0.86, 0.2, colour, 0.25)
    c.box(0.0, 0.72, 0.28, 1.0, rgb("#15181c"), 0.08)
    c.disc(0.14, 0.86, 0.095, colour)
    c.disc(0.115, 0.84, 0.03, WHITE, 0.7)
    return c.finish()


def goal(pixels: int) -> Image:
    """A chequered target."""
    c = Canvas(1, 1, pixels)
    c.disc(0.5, 0.5, 0.48, GREEN, 0.35)
    c.ring(0.5, 0.5, 0.44, 0.07, GREEN)
    c.disc(0.5, 0.5, 0.36, WHITE)
    rows, columns, y, x = c.region(0.1, 0.1, 0.9, 0.9)
    inside = np.sqrt((y - 0.5) ** 2 + (x - 0.5) ** 2) - 0.35
    odd = (np.floor((y - 0.5) / 0.175) + np.floor((x - 0.5) / 0.175)) % 2
    c.paint(rows, columns, np.where(odd == 1, inside, 1.0).astype(np.float32), rgb("#20252b"))
    return c.finish()


def arrow(pixels: int, move: int) -> Image:
    """The navigator's arrow for the next manoeuvre: 1 straight on, 2 left, 3 right."""
    c = Canvas(1, 1, pixels)
    turn = {1: (0.0, -1.0), 2: (-1.0, 0.0), 3: (1.0, 0.0)}[move]
    tip = (0.5 + 0.3 * turn[1], 0.5 + 0.3 * turn[0])
    c.disc(0.5, 0.5, 0.46, ROUTE, 0.9)
    if move != 1:
        c.line((0.78, 0.5), (0.5, 0.5), 0.14, WHITE)
    c.line((0.78, 0.5) if move == 1 else (0.5, 0.5), tip, 0.14, WHITE)
    for side in (-1, 1):
        back = (tip[0] - 0.2 * turn[1] + 0.2 * side * turn[0], tip[1] - 0.2 * turn[0] + 0.2 * side * turn[1])
        c.line(tip, back, 0.12, WHITE)
    return c.finish()


@lru_cache(maxsize=8)
def all_sprites(pixels: int) -> dict[str, Image]:
    """Every sprite by name, heading north."""
    sprites = {f"car{k}": car(pixels, paint) for k, paint in enumerate(PAINTS)}
    sprites |= {f"ego{speed}": car(pixels, EGO_PAINT, braking=speed == 0, ego=True) for speed in range(3)}
    sprites |= {"stopped": car(pixels, rgb("#c9ccd1"), braking=True), "barrier": barrier(pixels)}
    sprites |= {"person": person(pixels), "child": person(pixels, child=True), "goal": goal(pixels)}
    sprites |= {"red": lamp(pixels, False), "green": lamp(pixels, True)}
    sprites |= {f"arrow{move}": arrow(pixels, move) for move in (1, 2, 3)}
    return sprites


def draw_city(city: City, pixels: int) -> NDArray[np.uint8]:
    """The picture of a city without traffic: (H * pixels, W * pixels, 3) uint8."""
    height, width = city.kind.shape
    c = Canvas(height, width, pixels, PLOT)
    drivable = (city.kind >= VERGE) & (city.kind <= ROADWORKS)
    paved = drivable & (city.kind != VERGE)
    for r, column in np.argwhere(city.kind == PARK):
        _park(c, int(r), int(column))
    for r, column in np.argwhere(drivable):
        ground = {VERGE: MEADOW, JUNCTION: JUNCTION_ASPHALT}.get(int(city.kind[r, column]), ASPHALT)
        c.box(r, column, r + 1, column + 1, ground)
        if ground is MEADOW:
            for y, x in ((0.25, 0.3), (0.6, 0.7), (0.8, 0.25)):
                c.disc(r + y, column + x, 0.05, GRASS)
    for r, column in np.argwhere(~drivable):
        _pavement(c, paved, int(r), int(column))
    for top, left, bottom, right in _roofs(city.kind == BUILDING, drivable):
        _roof(c, top, left, bottom, right)
    for r, column in np.argwhere(drivable):
        _markings(c, city, int(r), int(column))
    return np.rint(c.finish()[..., :3] * 255).astype(np.uint8)


def _pavement(c: Canvas, paved: NDArray[np.bool_], r: int, column: int) -> None:
    """A pavement along every street."""
    height, width = paved.shape
    strip = 0.16
    for dr in (-1, 0, 1):
        for dc in (-1, 0, 1):
            if (dr or dc) and 0 <= r + dr < height and 0 <= column + dc < width and paved[r + dr, column + dc]:
                top, bottom = (r, r + strip) if dr < 0 else (r + 1 - strip, r + 1) if dr > 0 else (r, r + 1)
                left, right = (
                    (column, column + strip)
                    if dc < 0
                    else (column + 1 - strip, column + 1)
                    if dc > 0
                    else (column, column + 1)
                )
                c.box(top, left, bottom, right, PAVEMENT)
    for heading, (dr, dc) in enumerate(STEPS):
        if 0 <= r + dr < height and 0 <= column + dc < width and paved[r + dr, column + dc]:
            y, x = r + (dr > 0), column + (dc > 0)
            if heading % 2 == 0:
                c.box(y - 0.02, column, y + 0.02, column + 1, KERB)
            else:
                c.box(r, x - 0.02, r + 1, x + 0.02, KERB)


def _roofs(building: NDArray[np.bool_], drivable: NDArray[np.bool_]) -> list[tuple[int, int, int, int]]:
    """Joins building cells into houses of up to 2 x 3 cells: (top, left, bottom, right)."""
    free = building.copy()
    height, width = free.shape
    houses = []
    for r, column in np.argwhere(building):
        if not free[r, column]:
            continue
        shapes = [(2, 3), (2, 2), (1, 2), (2, 1), (1, 1)]
        shapes = shapes[(r * 7 + column * 3) % 3 :]
        h, w = next(
            s for s in shapes
            if r + s[0] <= height and column + s[1] <= width and free[r : r + s[0], column : column + s[1]].all()
        )  # fmt: skip
        free[r : r + h, column : column + w] = False
        houses.append((int(r), int(column), int(r + h), int(column + w)))
    return houses


def _roof(c: Canvas, top: int, left: int, bottom: int, right: int) -> None:
    """A house: shadow, walls, a roof with a ridge or a flat roof with its plant."""
    pick = (top * 3 + left * 5 + (bottom - top) * 7) % len(ROOFS)
    roof = np.asarray(ROOFS[pick], np.float32)
    gap = 0.2
    a, b, d, e = top + gap, left + gap, bottom - gap, right - gap
    c.box(a + 0.09, b + 0.09, d + 0.1, e + 0.1, (0, 0, 0), 0.05, 0.3)
    c.box(a, b, d, e, tuple(roof * 0.72), 0.04)
    c.box(a + 0.035, b + 0.035, d - 0.035, e - 0.035, tuple(roof), 0.03)
    if pick % 2 == 0:  # a ridge: the southern side lies in the shade
        middle = (a + d) / 2
        c.box(middle, b + 0.035, d - 0.035, e - 0.035, tuple(roof * 0.85), 0.03)
        c.line((middle, b + 0.05), (middle, e - 0.05), 0.03, tuple(np.minimum(roof * 1.2, 1)))
    else:
        c.box(a + 0.1, b + 0.1, d - 0.1, e - 0.1, tuple(np.minimum(roof * 1.1, 1)), 0.03)
        c.box(a + 0.2, b + 0.2, a + 0.36, b + 0.38, tuple(roof * 0.65), 0.02)


def _park(c: Canvas, r: int, column: int) -> None:
    """Grass with trees; four patterns."""
    c.box(r, column, r + 1, column + 1, GRASS)
    trees = [
        [(0.3, 0.35, 0.22), (0.72, 0.68, 0.2)],
        [(0.5, 0.5, 0.27)],
        [(0.28, 0.7, 0.18), (0.7, 0.3, 0.21), (0.74, 0.76, 0.13)],
        [(0.62, 0.4, 0.16)],
    ][(r * 5 + column * 3) % 4]
    for y, x, radius in trees:
        c.disc(r + y + 0.07, column + x + 0.07, radius, (0, 0, 0), 0.22)
        c.disc(r + y, column + x, radius, rgb("#4f8a4b"))
        c.disc(r + y - 0.05, column + x - 0.05, radius * 0.62, rgb("#66a35c"))


Place = Callable[[int, float, float], tuple[float, float]]
"""(heading, ahead, right) of a point, from the centre of a cell and in cells -> (y, x)."""


def _markings(c: Canvas, city: City, r: int, column: int) -> None:
    """Paint on the road."""
    kind, lanes = int(city.kind[r, column]), int(city.lanes[r, column])

    def place(heading: int, ahead: float, right: float) -> tuple[float, float]:
        (ay, ax), (ry, rx) = STEPS[heading], STEPS[(heading + 1) % 4]
        return r + 0.5 + ahead * ay + right * ry, column + 0.5 + ahead * ax + right * rx

    if kind == ROADWORKS:
        _roadworks(c, r, column)
    elif lanes in (1, 2, 4, 8):
        heading = lanes.bit_length() - 1
        for side in (1, 3):
            _lane_line(c, place, heading, side, lanes, *_neighbour(city, r, column, (heading + side) % 4))
        if kind == CROSSWALK:
            _zebra(c, place, heading)
        elif city.sign[r, column]:
            _signpost(c, place, heading)
        elif _neighbour(city, r, column, heading)[0] == ROAD and (r + 2 * column) % 3 == 0:
            for side in (-1, 1):
                c.line(place(heading, 0.12, 0), place(heading, -0.04, 0.15 * side), 0.06, WHITE, 0.35)


def _neighbour(city: City, r: int, column: int, heading: int) -> tuple[int, int]:
    """Kind and lanes of the next cell in this direction."""
    y, x = r + STEPS[heading][0], column + STEPS[heading][1]
    inside = 0 <= y < city.kind.shape[0] and 0 <= x < city.kind.shape[1]
    return (int(city.kind[y, x]), int(city.lanes[y, x])) if inside else (BUILDING, 0)


def _lane_line(c: Canvas, place: Place, heading: int, side: int, lanes: int, other: int, other_lanes: int) -> None:
    """Dashes between lanes of one direction, a yellow line between opposite ones, a white one at the road's edge."""
    edge = 0.5 if side == 1 else -0.5
    if other_lanes == lanes:
        if side == 1:
            c.line(place(heading, -0.22, edge), place(heading, 0.22, edge), 0.05, WHITE, 0.9)
    elif other in (ROAD, CROSSWALK):
        c.line(place(heading, -0.5, 0.94 * edge), place(heading, 0.5, 0.94 * edge), 0.035, YELLOW, 0.95)
    elif other in (BUILDING, PARK, VERGE):
        c.line(place(heading, -0.5, 0.91 * edge), place(heading, 0.5, 0.91 * edge), 0.03, WHITE, 0.55)


def _zebra(c: Canvas, place: Place, heading: int) -> None:
    for k in range(4):
        x = -0.375 + 0.25 * k
        a, b = place(heading, -0.36, x - 0.07), place(heading, 0.36, x + 0.07)
        c.box(min(a[0], b[0]), min(a[1], b[1]), max(a[0], b[0]), max(a[1], b[1]), WHITE, 0.02, 0.92)


def _signpost(c: Canvas, place: Place, heading: int) -> None:
    """A forked arrow on a board."""
    y, x = place(heading, 0, 0)
    c.box(y - 0.36, x - 0.36, y + 0.36, x + 0.36, ROUTE, 0.12)
    c.box(y - 0.3, x - 0.3, y + 0.3, x + 0.3, WHITE, 0.08)
    c.line(place(heading, -0.18, 0), place(heading, 0.05, 0), 0.1, ROUTE)
    for side in (-1, 1):
        c.line(place(heading, 0.05, 0), place(heading, 0.16, 0.17 * side), 0.1, ROUTE)


def _roadworks(c: Canvas, r: int, column: int) -> None:
    """Bare ground, a hatched board, cones at the corners."""
    c.box(r + 0.06, column + 0.06, r + 0.94, column + 0.94, rgb("#8a7560"), 0.1)
    rows, columns, y, x = c.region(r + 0.1, column + 0.1, r + 0.9, column + 0.9)
    hatch = np.abs((x + y) % 0.36 - 0.18) - 0.05
    frame = np.maximum(np.abs(y - r - 0.5), np.abs(x - column - 0.5)) - 0.36
    c.paint(rows, columns, np.maximum(hatch, frame), WORKS_ORANGE, 0.85)
    for dy, dx in ((0.16, 0.16), (0.16, 0.84), (0.84, 0.16), (0.84, 0.84)):
        c.disc(r + dy, column + dx, 0.1, WORKS_ORANGE)
        c.disc(r + dy, column + dx, 0.05, WHITE)
