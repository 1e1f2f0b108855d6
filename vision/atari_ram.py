"""Frames of real Atari play, labelled with the true state of the game, which is read from the console's memory.

An image is what an agent sees: the last four of the frames that follow `frame_skip` emulator frames each, grey, the
brighter of the last two emulator frames, averaged down to 84 x 84. A label is what the newest frame shows: the centre
of an object, of that part of it which is in the playing field, in pixels from the upper left corner (the centre of the
first pixel is 0.5). An object out of sight has no position.

Sources:
    Anand et al. 2019, "Unsupervised State Representation Learning in Atari", arXiv:1906.08226: which byte says what.
    How the bytes become pixels was measured on the screen, by the colours of the objects, and is tested there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from faults import EnvError, check_choice, check_range
from vision.data import Amounts, Classes, Head, ImageData

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
HEIGHT, WIDTH, SIZE = 210, 160, 84
"""Of the screen, and of the images."""
MAX_START_NOOPS = 60


class Box(NamedTuple):
    """Where an object is on the screen, in its pixels: (M,) each, or one number for all."""

    left: Ints | int
    top: Ints | int
    width: int
    height: int


class Scene(NamedTuple):
    """What M memories say."""

    objects: dict[str, Box]
    """For each position that is labelled, `<object>_x` or `<object>_y`."""
    score: dict[str, Ints]
    ball: str | None = None
    """The position that an image without a ball lacks: whether it has one is a class."""


@dataclass(frozen=True)
class Game:
    """What is known of a game."""

    read: Callable[[Ints], Scene]
    """(M, 128) memory -> what it says."""
    field: tuple[int, int, int, int]
    """First and one past last column, first and one past last row of the playing field."""
    follow: Callable[[Ints], int]
    """One memory (128,) -> which of the game's actions a fair player takes."""
    scale: float
    """Of its scores."""
    lives: int = 0


def decimal(byte: Ints) -> Ints:
    """Two decimal digits, four bits each -> their number."""
    number: Ints = (byte >> 4) * 10 + (byte & 15)
    return number


def read_pong(ram: Ints) -> Scene:
    """Bytes 49 and 54: ball; 50: the opponent; 51: the player; 13 and 14: the score."""
    ball = Box(ram[:, 49] - 49, ram[:, 54] - 14, 2, 4)
    objects = {
        "ball_x": ball,
        "ball_y": ball,
        "player_y": Box(140, ram[:, 51] - 14, 4, 16),
        "opponent_y": Box(16, ram[:, 50] - 15, 4, 16),
    }
    return Scene(objects, {"player": ram[:, 14], "opponent": ram[:, 13]}, "ball_x")


def read_breakout(ram: Ints) -> Scene:
    """Bytes 99 and 101: ball; 72: the paddle; 76 and 77: the score."""
    top = np.where(ram[:, 101] > 0, ram[:, 101] + 9, HEIGHT)
    ball = Box(ram[:, 99] - 49, top, 2, 4)
    objects = {"ball_x": ball, "ball_y": ball, "player_x": Box(ram[:, 72] - 47, 189, 16, 4)}
    return Scene(objects, {"player": ram[:, 76] % 16 * 100 + decimal(ram[:, 77])}, "ball_x")


def read_freeway(ram: Ints) -> Scene:
    """Byte 14: the left chicken, counted from below; 108 to 117: the cars from the lowest lane up; 103: the score."""
    cars = {f"car{lane}_x": Box(ram[:, 117 - lane] - 3, 28 + 16 * lane, 8, 8) for lane in range(10)}
    return Scene({"chicken_y": Box(44, 193 - ram[:, 14], 6, 8), **cars}, {"player": decimal(ram[:, 103])})


GAMES = {
    "pong": Game(read_pong, (0, 160, 34, 194), lambda ram: 2 if ram[54] < ram[51] + 2 else 3, 10.0),
    "breakout": Game(
        read_breakout,
        (8, 152, 32, 195),
        lambda ram: 1 if ram[101] == 0 else 3 if ram[99] < ram[72] + 8 else 2,
        100.0,
        5,
    ),
    "freeway": Game(read_freeway, (8, 160, 14, 201), lambda ram: 1, 10.0),
}
"""Pong's actions are none, fire, up, down and the last two with fire; Breakout's none, fire, right, left; Freeway's
none, up, down."""
PLAYERS = ("random", "mixed")


@dataclass(frozen=True)
class AtariRam:
    """The options of the set."""

    game: str = "pong"
    """pong, breakout, freeway."""
    num_images: int = 12_000
    player: str = "mixed"
    """random: an action drawn uniformly each step; mixed: in each game another part of the steps, all to none of them,
    is random, and the others follow the ball, so that good and bad play are seen."""
    steps_between_images: int = 4
    """Environment steps from one image to the next."""
    repeat_action_probability: float = 0.25
    """Sticky actions: the chance, per emulator frame, that the last action is repeated."""
    frame_skip: int = 4
    """Emulator frames per environment step."""
    frame_stack: int = 4
    """Frames in an image, newest last; those before a game's first are zero."""

    def __post_init__(self) -> None:
        check_choice("data.game", self.game, GAMES)
        check_range("data.num_images", self.num_images, 1, 10_000_000)
        check_choice("data.player", self.player, PLAYERS)
        check_range("data.steps_between_images", self.steps_between_images, 1, 10_000)
        check_range("data.repeat_action_probability", self.repeat_action_probability, 0, 1)
        check_range("data.frame_skip", self.frame_skip, 1, 60)
        check_range("data.frame_stack", self.frame_stack, 1, 32)

    def load(self, seed: int) -> ImageData:
        """Plays until there are enough images."""
        images, ram, lives, episode = play(self, seed)
        return ImageData(
            images=torch.from_numpy(images),
            targets={name: torch.from_numpy(target) for name, target in labels(GAMES[self.game], ram, lives).items()},
            heads=heads(GAMES[self.game]),
            group=torch.from_numpy(episode),
        )


def heads(game: Game) -> dict[str, Head]:
    """What is labelled in a game: positions, the score, whether there is a ball, lives."""
    scene = game.read(np.zeros((1, 128), np.int64))
    found: dict[str, Head] = {
        "position": Amounts(tuple(scene.objects), "pixels", scale=SIZE / 4),
        "score": Amounts(tuple(scene.score), "points", game.scale),
    }
    if scene.ball is not None:
        found["ball"] = Classes(("absent", "present"))
    if game.lives:
        found["lives"] = Classes(tuple(str(n) for n in range(game.lives + 1)))
    return found


def labels(game: Game, ram: Ints, lives: Ints) -> dict[str, NDArray[np.generic]]:
    """The targets of M frames from their memories (M, 128) and the lives (M,)."""
    scene = game.read(ram)
    position = np.stack([centre(game, name, box, len(ram)) for name, box in scene.objects.items()], axis=1)
    found: dict[str, NDArray[np.generic]] = {
        "position": position,
        "score": np.stack(list(scene.score.values()), axis=1).astype(np.float32),
    }
    if scene.ball is not None:
        found["ball"] = (~np.isnan(position[:, list(scene.objects).index(scene.ball)])).astype(np.int64)
    if game.lives:
        found["lives"] = lives
    return found


def centre(game: Game, name: str, box: Box, count: int) -> Floats:
    """(M,): the centre of the visible part of an object along the axis that its name ends in, in pixels of the small
    image; NaN if nothing of it is in the field. Of a car that drives in or out at the side it is NaN, too: it wraps
    around."""
    left, right, top, bottom = game.field
    x0, x1 = np.maximum(box.left, left), np.minimum(box.left + box.width, right)
    y0, y1 = np.maximum(box.top, top), np.minimum(box.top + box.height, bottom)
    visible = np.broadcast_to((x0 < x1) & (y0 < y1), (count,))
    if name.startswith("car"):
        visible = visible & (x1 - x0 == box.width)
    middle = (x0 + x1) / 2 * SIZE / WIDTH if name.endswith("_x") else (y0 + y1) / 2 * SIZE / HEIGHT
    return np.where(visible, middle, np.nan).astype(np.float32)


def play(options: AtariRam, seed: int) -> tuple[NDArray[np.uint8], Ints, Ints, Ints]:
    """Plays whole games, one after the other.

    Args:
        options: the game and how it is played.
        seed: of the emulator and the player.

    Returns:
        Images (M, frame_stack, 84, 84), memories (M, 128), lives (M,) and the number of the game (M,).

    Raises:
        EnvError: if the emulator cannot run the game.
    """
    rng = np.random.default_rng(seed)
    emulator = Emulator(options, int(rng.integers(2**31)))
    follow = GAMES[options.game].follow
    stack = np.zeros((options.frame_stack, SIZE, SIZE), np.uint8)
    images = np.zeros((options.num_images, *stack.shape), np.uint8)
    ram = np.zeros((options.num_images, 128), np.int64)
    lives, episode = np.zeros((2, options.num_images), np.int64)
    taken, played = 0, 0
    while taken < options.num_images:
        emulator.reset(int(rng.integers(1, MAX_START_NOOPS)))
        stack[:] = 0
        chance = rng.random() if options.player == "mixed" else 1.0
        steps = int(rng.integers(options.steps_between_images))
        while taken < options.num_images and not emulator.over:
            drawn, action = rng.random() < chance, int(rng.integers(emulator.num_actions))
            emulator.step(action if drawn else follow(emulator.ram))
            stack[:-1], stack[-1] = stack[1:], emulator.frame
            steps += 1
            if steps % options.steps_between_images == 0:
                images[taken], ram[taken] = stack, emulator.ram
                lives[taken], episode[taken] = emulator.lives, played
                taken += 1
        played += 1
    return images, ram, lives, episode


class Emulator:
    """One game, seen as agents see it, and its memory beside."""

    def __init__(self, options: AtariRam, seed: int) -> None:
        from ale_py import ALEInterface, LoggerMode, roms

        ALEInterface.setLoggerMode(LoggerMode.Error)
        self._ale = ALEInterface()
        self._ale.setFloat("repeat_action_probability", options.repeat_action_probability)
        self._ale.setInt("random_seed", seed)
        rom = roms.get_rom_path(options.game)
        if rom is None:
            raise EnvError(f"{options.game}: there is no ROM; ROMs come with the package ale-py, reinstall it")
        self._ale.loadROM(rom)
        self._actions = self._ale.getMinimalActionSet()
        self._skip = options.frame_skip
        self.num_actions = len(self._actions)

    def reset(self, noops: int) -> None:
        """Begins a game, with some frames of doing nothing."""
        self._ale.reset_game()
        for _ in range(noops):
            self._ale.act(self._actions[0])
        self._look(self._ale.getScreenGrayscale())

    def step(self, action: int) -> None:
        """Takes an action for `frame_skip` emulator frames."""
        before = self._ale.getScreenGrayscale()
        for k in range(self._skip):
            if k == self._skip - 1:
                before = self._ale.getScreenGrayscale()
            self._ale.act(self._actions[action])
        self._look(np.maximum(before, self._ale.getScreenGrayscale()))

    def _look(self, screen: NDArray[np.uint8]) -> None:
        self.frame = shrink(screen)
        self.ram: Ints = self._ale.getRAM().astype(np.int64)
        self.lives: int = self._ale.lives()
        self.over: bool = self._ale.game_over()


def averages(size: int, out: int) -> Floats:
    """(out, size): the weights with which `out` equal intervals average over `size` pixels."""
    edges = np.linspace(0, size, out + 1)
    low, high = edges[:-1, None], edges[1:, None]
    pixel = np.arange(size)
    cover = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None)
    weights: Floats = (cover / (high - low)).astype(np.float32)
    return weights


DOWN, ACROSS = averages(HEIGHT, SIZE), averages(WIDTH, SIZE).T


def shrink(screen: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(210, 160) -> (84, 84) by area averaging, as in ALE's vector environment (which lets OpenCV do it)."""
    small: NDArray[np.uint8] = np.rint(DOWN @ (screen.astype(np.float32) @ ACROSS)).astype(np.uint8)
    return small
