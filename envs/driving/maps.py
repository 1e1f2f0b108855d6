"""Cities: read from ASCII drawings, or generated from a seed.

One character is one cell. Traffic keeps to the right.

    ^ > v <   a lane and its direction
    +         junction; it takes the directions of the lanes that meet in it
    *         junction with traffic lights
    =         crosswalk, with the direction of the lane that it interrupts
    G S ?     a lane with the goal, with the start, with a signpost
    o         turning place: every direction is permitted
    ,         verge: drivable, but off the lanes
    R         roadworks: blocked
    # T       building, park

A `Cell` that a drawing marks `+ * = G S ?` permits a direction if a lane of this direction leads into it or out of it,
other such cells in between notwithstanding.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from faults import ConfigError, closest

NORTH, EAST, SOUTH, WEST = range(4)
STEPS = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""(row, column) of one cell ahead, by heading."""
BUILDING, PARK, VERGE, ROAD, JUNCTION, CROSSWALK, ROADWORKS = range(7)
"""What a cell is. Only VERGE, ROAD, JUNCTION and CROSSWALK can be entered."""
FIRST_DRIVABLE, LAST_DRIVABLE = VERGE, CROSSWALK

CITIES = Path(__file__).parent / "cities"
MAX_CELLS = 256
_ARROWS = {"^": NORTH, ">": EAST, "v": SOUTH, "<": WEST}
_KINDS = {"#": BUILDING, "T": PARK, ",": VERGE, "+": JUNCTION, "*": JUNCTION, "o": JUNCTION, "=": CROSSWALK}
_KINDS |= {"R": ROADWORKS} | dict.fromkeys("^>v<GS?", ROAD)
_DERIVED = "+*=GS?"
Streets = list[tuple[int, dict[str, str]]]
"""The position of each street's first lane, and its lanes from there if it ran along either axis."""


@dataclass(frozen=True)
class City:
    """A map of H x W cells. Positions are (row, column) from the north-west corner."""

    kind: NDArray[np.uint8]
    """(H, W): BUILDING to ROADWORKS."""
    lanes: NDArray[np.uint8]
    """(H, W): bit `1 << heading` is set where that heading is permitted; 0 off the lanes."""
    signal: NDArray[np.uint8]
    """(H, W): 0, or in junctions with lights 1 to 255: where in its cycle the junction starts."""
    sign: NDArray[np.bool_]
    """(H, W): signposts."""
    goals: NDArray[np.int32]
    """(K, 2): drawn goals; none if goals are drawn at random."""
    starts: NDArray[np.int32]
    """(K, 3): drawn starts as row, column, heading; none if starts are drawn at random."""
    crossings: NDArray[np.int32]
    """(X, 4): crosswalks as row, column of the first cell, direction to walk (EAST or SOUTH), number of cells."""


def shift(plane: NDArray, heading: int) -> NDArray:
    """Moves a plane one cell along `heading`; zeros come in: the value at x is that of the cell behind x."""
    moved = np.zeros_like(plane)
    dr, dc = STEPS[heading]
    h, w = plane.shape
    moved[max(dr, 0) : h + min(dr, 0), max(dc, 0) : w + min(dc, 0)] = plane[
        max(-dr, 0) : h + min(-dr, 0), max(-dc, 0) : w + min(-dc, 0)
    ]
    return moved


def read_city(text: str, name: str = "map") -> City:
    """Reads a drawing.

    Raises:
        ConfigError: one line for a drawing that is empty, ragged, too large or disconnected, or has unknown characters.
    """
    rows = [line.rstrip() for line in text.strip("\n").splitlines()]
    if not rows or not rows[0]:
        raise ConfigError(f"{name}: the map is empty")
    if max(len(rows), len(rows[0])) > MAX_CELLS:
        raise ConfigError(
            f"{name}: maps have at most {MAX_CELLS} x {MAX_CELLS} cells, this one {len(rows)} x {len(rows[0])}"
        )
    for r, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ConfigError(f"{name}: line {r + 1} has {len(row)} cells, line 1 has {len(rows[0])}")
        unknown = set(row) - set(_KINDS)
        if unknown:
            raise ConfigError(f"{name}: line {r + 1} has unknown cells {sorted(unknown)}; known are {' '.join(_KINDS)}")
    drawing = np.array([list(row) for row in rows])
    kind = np.vectorize(_KINDS.get, otypes=[np.uint8])(drawing)
    lanes = _lane_directions(drawing)
    for r, c in np.argwhere(np.isin(drawing, list(_DERIVED)) & (lanes == 0)):
        raise ConfigError(f"{name}: '{drawing[r, c]}' in line {r + 1}, column {c + 1} is on no lane")
    starts = [(r, c, h) for r, c in np.argwhere(drawing == "S") for h in range(4) if lanes[r, c] >> h & 1]
    return City(
        kind=kind,
        lanes=lanes,
        signal=_signal_phases(drawing == "*"),
        sign=drawing == "?",
        goals=np.argwhere(drawing == "G").astype(np.int32),
        starts=np.array(starts, np.int32).reshape(-1, 3),
        crossings=_crossings(kind, lanes),
    )


def load_city(name: str) -> City:
    """A shipped map by its name, or an ASCII map by its path.

    Raises:
        ConfigError: if there is no such map, or it cannot be read.
    """
    shipped = {path.stem: path for path in CITIES.glob("*.txt")}
    path = shipped.get(name, Path(name))
    try:
        return read_city(path.read_text(), name)
    except (OSError, UnicodeDecodeError) as error:
        if "/" in name or name.endswith(".txt"):
            raise ConfigError(f"cannot read the map '{name}': {error}") from None
        raise ConfigError(f"unknown city '{name}'.{closest(name, [*shipped, 'generated'])}") from None


def _lane_directions(drawing: NDArray[np.str_]) -> NDArray[np.uint8]:
    """(H, W) characters -> (H, W) permitted headings; flow spreads through derived cells both ways along a heading."""
    derived = np.isin(drawing, list(_DERIVED))
    lanes = np.zeros(drawing.shape, np.uint8)
    for arrow, heading in _ARROWS.items():
        flow_in = flow_out = drawing == arrow
        while True:
            wider_in = flow_in | (derived & shift(flow_in, heading))
            wider_out = flow_out | (derived & shift(flow_out, (heading + 2) % 4))
            if (wider_in == flow_in).all() and (wider_out == flow_out).all():
                break
            flow_in, flow_out = wider_in, wider_out
        lanes |= ((flow_in | flow_out).astype(np.uint8) << heading).astype(np.uint8)
    lanes[drawing == "o"] = 0b1111
    return lanes


def _signal_phases(lit: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Every junction, however many cells it has, is one signal: its cells share a phase in 1 to 255."""
    label = np.where(lit, np.arange(1, lit.size + 1).reshape(lit.shape), 0)
    while True:
        spread = np.maximum.reduce([label, *(shift(label, h) for h in range(4))]) * lit
        if (spread == label).all():
            return np.where(lit, label * 97 % 255 + 1, 0).astype(np.uint8)
        label = spread


def _crossings(kind: NDArray[np.uint8], lanes: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Finds the crosswalks: runs of crosswalk cells across the direction of their lanes."""
    found = []
    for walk, lane_bits in ((EAST, 0b0101), (SOUTH, 0b1010)):
        cells = (kind == CROSSWALK) & (lanes & lane_bits > 0)
        for r, c in np.argwhere(cells & ~shift(cells, walk)):
            run = cells[r, c:] if walk == EAST else cells[r:, c]
            length = len(run) if run.all() else int(np.argmin(run))
            found.append((r, c, walk, length))
    return np.array(found, np.int32).reshape(-1, 4)


def draw_city(rng: np.random.Generator, size: int, wildness: float) -> str:
    """Draws one city of `size` x `size` cells as text.

    A ring road of two lanes surrounds a lattice of two-lane and one-way streets. Some segments of it are missing, end
    in a turning place, or are cut by roadworks; some junctions have lights, some streets crosswalks, some blocks parks.

    Args:
        rng: all randomness.
        size: cells, at least 8.
        wildness: 0 leaves the lattice whole; 1 removes, ends or cuts about a quarter of the inner segments.
    """
    drawing = np.full((size, size), "#")
    rows, columns = _streets(rng, size), _streets(rng, size)
    for top, bottom in _blocks(rows):
        for left, right in _blocks(columns):
            if rng.random() < 0.3:
                drawing[top:bottom, left:right] = "T"
    for first, arrows in rows:
        for i, arrow in enumerate(arrows["horizontal"]):
            drawing[first + i, 1:-1] = arrow
    for first, arrows in columns:
        for i, arrow in enumerate(arrows["vertical"]):
            column = drawing[1:-1, first + i]
            column[:] = np.where(np.isin(column, ["<", ">"]), "+", arrow)
    _furnish(rng, drawing, rows, _blocks(columns), wildness)
    _furnish(rng, drawing.T, columns, _blocks(rows), wildness)
    _light_junctions(rng, drawing, rows, columns)
    drawing[np.isin(drawing, list(_DERIVED)) & (_lane_directions(drawing) == 0)] = "#"  # junctions left without streets
    return "\n".join("".join(line) for line in drawing)


def _light_junctions(rng: np.random.Generator, drawing: NDArray[np.str_], rows: Streets, columns: Streets) -> None:
    """Gives lights to some of the junctions where three or four streets meet, in place."""
    for row, row_arrows in rows:
        for column, column_arrows in columns:
            height, width = len(row_arrows["vertical"]), len(column_arrows["vertical"])
            around = drawing[row - 1 : row + height + 1, column - 1 : column + width + 1]
            arms = [around[0, 1:-1], around[-1, 1:-1], around[1:-1, 0], around[1:-1, -1]]
            arms_left = sum(np.isin(arm, list("^>v<=")).all() for arm in arms)
            if arms_left >= 3 and rng.random() < 0.6:
                drawing[row : row + height, column : column + width] = "*"


def _streets(rng: np.random.Generator, size: int) -> Streets:
    """The streets that cross one axis: the position of the first lane, and the lanes if it ran along either axis."""
    two_way = {"horizontal": "<>", "vertical": "v^"}
    streets = [(1, two_way)]
    position = 3
    while True:
        position += int(rng.integers(3, 7))
        one_way = rng.random() < 0.3
        if position + 2 + 2 > size - 3:
            return [*streets, (size - 3, two_way)]
        k = int(rng.integers(2))
        streets.append((position, {"horizontal": "<>"[k], "vertical": "v^"[k]} if one_way else two_way))
        position += 1 if one_way else 2


def _blocks(streets: Streets) -> list[tuple[int, int]]:
    """First and one past last cell of the ground between two streets."""
    return [(a + len(arrows["vertical"]), b) for (a, arrows), (b, _) in itertools.pairwise(streets)]


def _furnish(
    rng: np.random.Generator,
    drawing: NDArray[np.str_],
    streets: Streets,
    blocks: list[tuple[int, int]],
    wildness: float,
) -> None:
    """Varies the segments of streets that run left to right, in place; the ring road stays whole."""
    for k, (first, arrows) in enumerate(streets):
        inner = 0 < k < len(streets) - 1
        for begin, end in blocks:
            segment = drawing[first : first + len(arrows["vertical"]), begin:end]
            _furnish_segment(rng, segment, wildness if inner else 0.0)


def _furnish_segment(rng: np.random.Generator, cells: NDArray[np.str_], wildness: float) -> None:
    """Removes, ends, cuts or crosses the street between two junctions, in place; `cells` is (lanes, length)."""
    lanes, length = cells.shape
    chance = rng.random() / max(wildness, 1e-9)
    if chance < 0.12:
        cells[:] = "#"
    elif chance < 0.2 and lanes == 2 and length >= 4:
        keep = length // 2
        kept = slice(0, keep) if rng.random() < 0.5 else slice(length - keep, length)
        street = cells[:, kept].copy()
        cells[:] = "#"
        cells[:, kept] = street
        cells[:, keep - 1 if kept.start == 0 else length - keep] = "o"
    elif chance < 0.26 and lanes == 2 and length >= 5:
        middle = length // 2
        cells[:, middle - 1 : middle + 2] = [["o", "R", "o"]] * 2
    elif length >= 3 and rng.random() < 0.45:
        cells[:, 0 if rng.random() < 0.5 else length - 1] = "="
