"""Pictures of an episode: the whole city as an image, or as text."""

from __future__ import annotations

import itertools
from collections import deque

import numpy as np
from numpy.typing import NDArray

from envs.driving import sprites
from envs.driving.batch import DrivingBatch
from envs.driving.maps import BUILDING, CROSSWALK, JUNCTION, PARK, ROADWORKS, STEPS, VERGE
from envs.driving.routes import UNREACHABLE, legal_moves
from envs.driving.rules import CHILD, CLOSURE, NO_EVENT, STOPPED_CAR

PICTURE_PIXELS = 768
"""About the longer side of a frame."""
TRAIL_LENGTH = 14


class Painter:
    """Draws environment 0 of a batch, frame by frame."""

    def __init__(self, batch: DrivingBatch) -> None:
        self._batch, self._tables = batch, batch.tables
        self._pixels = int(np.clip(PICTURE_PIXELS // max(self._tables.cities[0].kind.shape), 6, 64))
        self._sprites = sprites.all_sprites(self._pixels)
        self._background: dict[int, NDArray[np.uint8]] = {}
        self._moves: dict[int, NDArray[np.int32]] = {}
        self._approaches: dict[int, list[tuple[int, int, int, int]]] = {}
        self.begin()

    def begin(self) -> None:
        """Forgets the trail."""
        self._trail: deque[tuple[float, float]] = deque(maxlen=TRAIL_LENGTH)

    def frame(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8: the city as it is now."""
        state = {name: array[0] for name, array in self._batch.state_dict().items()}
        city = int(state["city"])
        if city not in self._background:
            self._background[city] = sprites.draw_city(self._tables.cities[city], self._pixels)
            self._approaches[city] = self._find_approaches(city)
        picture = self._background[city].astype(np.float32) / np.float32(255)
        self._draw_route(picture, city, int(state["goal"]), int(state["pose"]))
        self._draw_trail(picture, int(state["pose"]))
        for r, c, heading, signal in self._approaches[city]:
            green = self._is_green(signal, heading, int(state["tally"][0]))
            self._paste(picture, "green" if green else "red", (r, c), heading)
        self._paste(picture, "goal", self._tables.position(int(self._tables.goal[city, state["goal"]])), 0)
        for j, pose in enumerate(state["car"]):
            if pose >= 0:
                self._paste(
                    picture, f"car{j % len(sprites.PAINTS)}", self._tables.position(int(pose) >> 2), int(pose) & 3
                )
        for crossing, place, direction in state["walker"]:
            if crossing >= 0:
                first, step, length = self._tables.crossing[city, crossing]
                heading = (1 if step == 1 else 2) + (0 if direction > 0 else 2)
                r, c = self._tables.position(int(first + (place + 1) * step))
                kerb = 0.36 * (int(place < 0) - int(place == length))  # who waits stands at the edge of the road
                self._paste(picture, "person", (r + kerb * (step != 1), c + kerb * (step == 1)), heading % 4)
        event, pose, _ = (int(x) for x in state["event"])
        if event != NO_EVENT:
            name = {STOPPED_CAR: "stopped", CLOSURE: "barrier", CHILD: "child"}[event]
            self._paste(picture, name, self._tables.position(pose >> 2), pose & 3)
        ego = int(state["pose"])
        self._paste(picture, f"ego{int(state['speed'])}", self._tables.position(ego >> 2), ego & 3)
        return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)

    def _is_green(self, signal: int, heading: int, time: int) -> bool:
        green, clear = self._batch.config.green_steps, self._batch.config.clear_steps
        phase = (time + (signal - 1) * 2 * (green + clear) // 255) % (2 * (green + clear))
        return 0 <= phase - (green + clear) * (heading % 2) < green

    def _find_approaches(self, city: int) -> list[tuple[int, int, int, int]]:
        """Where cars wait for lights: row, column, heading, signal."""
        drawn = self._tables.cities[city]
        if not self._batch.config.lights:
            return []
        found = []
        for r, c in np.argwhere((drawn.lanes > 0) & (drawn.signal == 0)):
            for heading, (dr, dc) in enumerate(STEPS):
                y, x = r + dr, c + dc
                inside = 0 <= y < len(drawn.lanes) and 0 <= x < len(drawn.lanes[0])
                if drawn.lanes[r, c] >> heading & 1 and inside and drawn.signal[y, x]:
                    found.append((int(r), int(c), heading, int(drawn.signal[y, x])))
        return found

    def _draw_route(self, picture: sprites.Image, city: int, goal: int, pose: int) -> None:
        """The shortest route from here, as a band along the lanes."""
        if city not in self._moves:
            lanes = ((self._tables.ground[city] >> 3) & 15).astype(np.uint8)
            self._moves[city] = legal_moves(lanes.reshape(self._tables.height, self._tables.width))
        length = self._tables.distance[city * self._tables.goal.shape[1] + goal]
        here = self._centre(pose)
        while 0 < length[pose] < UNREACHABLE or (length[pose] == UNREACHABLE and here == self._centre(pose)):
            after = [p for p in self._moves[city][pose] if p >= 0 and length[p] < UNREACHABLE]
            if not after:
                return
            pose = int(min(after, key=lambda p: length[p]))
            there = self._centre(pose)
            self._line(picture, here, there, 0.2, sprites.ROUTE, 0.75)
            here = there

    def _draw_trail(self, picture: sprites.Image, pose: int) -> None:
        here = self._centre(pose)
        if not self._trail or self._trail[-1] != here:
            self._trail.append(here)
        points = list(self._trail)
        for k, (a, b) in enumerate(itertools.pairwise(points)):
            self._line(picture, a, b, 0.14, sprites.TRAIL, 0.15 + 0.75 * (k + 1) / TRAIL_LENGTH)

    def _centre(self, pose: int) -> tuple[float, float]:
        r, c = self._tables.position(pose >> 2)
        return r + 0.5, c + 0.5

    def _line(
        self, picture: sprites.Image, a: tuple[float, float], b: tuple[float, float], width: float,
        colour: sprites.Colour, alpha: float,
    ) -> None:  # fmt: skip
        """A band from `a` to `b`, in cells, without its far cap, so that joined bands do not overlap much."""
        size = self._pixels
        y0, x0 = int(min(a[0], b[0]) * size - size), int(min(a[1], b[1]) * size - size)
        y1, x1 = int(max(a[0], b[0]) * size + size), int(max(a[1], b[1]) * size + size)
        y0, x0 = max(y0, 0), max(x0, 0)
        part = picture[y0:y1, x0:x1]
        y = ((np.arange(part.shape[0]) + y0 + 0.5) / size)[:, None]
        x = ((np.arange(part.shape[1]) + x0 + 0.5) / size)[None, :]
        dy, dx = b[0] - a[0], b[1] - a[1]
        along = np.clip(((y - a[0]) * dy + (x - a[1]) * dx) / max(dy * dy + dx * dx, 1e-9), 0, 1)
        distance = np.sqrt((y - a[0] - along * dy) ** 2 + (x - a[1] - along * dx) ** 2) - width / 2
        cap = width / 2 - np.sqrt((y - a[0]) ** 2 + (x - a[1]) ** 2)  # already painted by the band before
        distance = np.maximum(distance, cap)
        cover = (np.clip(0.5 - distance * size, 0, 1) * alpha)[..., None]
        part[...] = part * (1 - cover) + np.asarray(colour, np.float32) * cover

    def _paste(self, picture: sprites.Image, name: str, position: tuple[float, float], heading: int) -> None:
        size = self._pixels
        sprite = np.rot90(self._sprites[name], -heading)
        y, x = (round(p * size) for p in position)
        part = picture[y : y + size, x : x + size]
        if part.shape[:2] == sprite.shape[:2]:
            part[...] = part * (1 - sprite[..., 3:]) + sprite[..., :3] * sprite[..., 3:]


def draw_ansi(batch: DrivingBatch) -> str:
    """Environment 0 of a batch as text: the ego `A > V <`, cars `^ > v <`, people `i`, events `X`, the goal `$`."""
    state = {name: array[0] for name, array in batch.state_dict().items()}
    tables, city = batch.tables, int(state["city"])
    drawn = tables.cities[city]
    marks = {BUILDING: "█", PARK: "♣", VERGE: ",", JUNCTION: "+", CROSSWALK: "=", ROADWORKS: "#"}
    lanes = {1: "↑", 2: "→", 4: "↓", 8: "←"}
    text = [
        [marks.get(int(k), lanes.get(int(b), "+")) for k, b in zip(*row, strict=True)]
        for row in zip(drawn.kind, drawn.lanes, strict=True)
    ]

    def put(cell: int, mark: str) -> None:
        r, c = tables.position(cell)
        if 0 <= r < len(text) and 0 <= c < len(text[0]):
            text[r][c] = mark

    put(int(tables.goal[city, state["goal"]]), "\x1b[32;1m$\x1b[0m")
    for pose in state["car"]:
        if pose >= 0:
            put(int(pose) >> 2, f"\x1b[36m{'^>v<'[int(pose) & 3]}\x1b[0m")
    for crossing, place, _ in state["walker"]:
        if crossing >= 0:
            first, step, _ = tables.crossing[city, crossing]
            put(int(first + (place + 1) * step), "\x1b[35mi\x1b[0m")
    if state["event"][0] != NO_EVENT:
        put(int(state["event"][1]) >> 2, "\x1b[33mX\x1b[0m")
    put(int(state["pose"]) >> 2, f"\x1b[31;1m{'A>V<'[int(state['pose']) & 3]}\x1b[0m")
    time, path = int(state["tally"][0]), int(state["tally"][1])
    return "\n".join("".join(row) for row in text) + f"\nspeed {int(state['speed'])}  time {time}  path {path}\n"
