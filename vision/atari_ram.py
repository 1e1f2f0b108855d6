"""Frames of real Atari play, labelled with the true state of the game, which is read from the console's memory.

Sources:
    Anand et al. 2019, "Unsupervised State Representation Learning in Atari", arXiv:1906.08226: the RAM addresses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from ale_py import ALEInterface, LoggerMode, roms
from numpy.typing import NDArray

from faults import check_choice, check_range
from vision.data import Amounts, Classes, Head, ImageData

SIZE = 84
GAMES = ("pong",)
FRAME_SKIP = 4
EPISODE_FRAMES = 200


@dataclass(frozen=True)
class AtariRam:
    """The options of the set."""

    game: str = "pong"
    num_images: int = 10_000
    sticky: float = 0.25
    frame_stack: int = 1

    def __post_init__(self) -> None:
        check_choice("data.game", self.game, GAMES)
        check_range("data.num_images", self.num_images, 1, 10_000_000)
        check_range("data.sticky", self.sticky, 0, 1)

    def load(self, seed: int) -> ImageData:
        rng = np.random.default_rng(seed)
        ale = ALEInterface()
        ale.setLoggerMode(LoggerMode.Error)
        ale.setFloat("repeat_action_probability", self.sticky)
        ale.setInt("random_seed", int(rng.integers(2**31)))
        ale.loadROM(roms.get_rom_path(self.game))  # type: ignore[arg-type]
        actions = ale.getMinimalActionSet()
        images: list[NDArray[np.uint8]] = []
        ram, episode = [], []
        count = 0
        while len(images) < self.num_images:
            ale.reset_game()
            for _ in range(rng.integers(60)):
                ale.act(actions[0])
            for _ in range(EPISODE_FRAMES):
                action = actions[rng.integers(len(actions))]
                for _ in range(FRAME_SKIP):
                    ale.act(action)
                if ale.game_over():
                    break
                images.append(shrink(ale.getScreenGrayscale().astype(np.float32)))
                ram.append(ale.getRAM())
                episode.append(count)
            count += 1
        n = self.num_images
        memory = np.array(ram[:n]).astype(np.float32)
        present = (memory[:, 54] > 0).astype(np.int64)
        where = np.stack([memory[:, k] for k in (54, 49, 51, 50)], axis=1) * np.float32(0.4)
        where[present == 0, :2] = np.nan
        heads: dict[str, Head] = {
            "ball": Classes(("absent", "present")),
            "position": Amounts(("ball_y", "ball_x", "player_y", "enemy_y"), "pixels", SIZE / 4),
        }
        return ImageData(
            images=torch.from_numpy(np.stack(images[:n])[:, None]),
            targets={"ball": torch.from_numpy(present), "position": torch.from_numpy(where)},
            heads=heads,
            group=torch.tensor(episode[:n]),
        )


def averages(size: int, out: int) -> NDArray[np.float32]:
    """(out, size): the weights with which `out` equal intervals average over `size` pixels."""
    edges = np.linspace(0, size, out + 1)
    low, high = edges[:-1, None], edges[1:, None]
    pixel = np.arange(size)
    cover = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None)
    weights: NDArray[np.float32] = (cover / (high - low)).astype(np.float32)
    return weights


DOWN, ACROSS = averages(210, SIZE), averages(160, SIZE).T


def shrink(frame: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(210, 160) -> (84, 84) by area averaging."""
    small: NDArray[np.uint8] = np.rint(DOWN @ frame @ ACROSS).astype(np.uint8)
    return small
