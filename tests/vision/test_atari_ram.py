"""Labels against what is on the screen, images against what agents see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ale_py import ALEInterface, roms
from ale_py.vector_env import AtariVectorEnv
from numpy.typing import NDArray

from vision.atari_ram import GAMES, AtariRam, Emulator, averages, heads, labels
from vision.data import ImageData, load

COLOURS = {
    "pong": {"ball": (236, 236, 236), "player": (92, 186, 92), "opponent": (213, 130, 74)},
    "breakout": {"player": (200, 72, 72), "ball": (200, 72, 72)},
    "freeway": {
        "chicken": (252, 252, 84), "car0": (167, 26, 26), "car1": (180, 231, 117), "car2": (105, 105, 15),
        "car3": (228, 111, 111), "car4": (24, 26, 167), "car5": (162, 98, 33), "car6": (84, 92, 214),
        "car7": (184, 50, 50), "car8": (135, 183, 84), "car9": (210, 210, 64),
    },
}  # fmt: skip
WINDOWS = {  # columns and rows of the screen where nothing else has an object's colour
    "pong": dict.fromkeys(("ball", "player", "opponent"), (0, 160, 34, 194)),
    "breakout": {"player": (8, 152, 189, 193), "ball": (8, 152, 93, 189)},
    "freeway": {"chicken": (44, 50, 14, 201)} | {f"car{k}": (8, 160, 26 + 16 * k, 38 + 16 * k) for k in range(10)},
}


def play(game: str, steps: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Every fourth frame of play that mostly follows the ball: screens in colour, memories, lives, returns."""
    ale = ALEInterface()
    ale.setFloat("repeat_action_probability", 0.25)
    ale.setInt("random_seed", 3)
    ale.loadROM(roms.get_rom_path(game))
    actions, rng = ale.getMinimalActionSet(), np.random.default_rng(3)
    screens, ram, lives, returns = [], [], [], []
    total = 0.0
    for _ in range(30):
        ale.act(actions[0])
    for _ in range(steps):
        memory = ale.getRAM().astype(np.int64)
        action = GAMES[game].follow(memory) if rng.random() < 0.7 else int(rng.integers(len(actions)))
        total += sum(ale.act(actions[action]) for _ in range(4))
        if ale.game_over():
            break
        screens.append(ale.getScreenRGB())
        ram.append(ale.getRAM().astype(np.int64))
        lives.append(ale.lives())
        returns.append(total)
    return np.array(screens), np.array(ram), np.array(lives), np.array(returns)


def seen(game: str, name: str, screens: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(M, 2): x and y of the middle of what has the object's colour in its window, in pixels of the small image."""
    left, right, top, bottom = WINDOWS[game][name]
    mask = (screens[:, top:bottom, left:right] == COLOURS[game][name]).all(axis=-1)
    if name == "chicken":
        mask[:, [102 - top, 104 - top]] = False  # the line in the middle of the road
    middles = np.full((len(screens), 2), np.nan)
    for axis, (first, scale) in enumerate(((left, 84 / 160), (top, 84 / 210))):
        there = mask.any(axis=1 + axis)
        low, high = there.argmax(axis=1), there.shape[1] - there[:, ::-1].argmax(axis=1)
        middles[:, axis] = np.where(there.any(axis=1), (first + (low + high) / 2) * scale, np.nan)
    return middles


@pytest.mark.parametrize("game", GAMES)
def test_positions_are_where_the_colours_are(game: str) -> None:
    screens, ram, lives, _ = play(game, 250)
    found, names = labels(GAMES[game], ram, lives), heads(GAMES[game])["position"].names
    for k, name in enumerate(names):
        thing, axis = name.split("_")
        expected = seen(game, thing, screens)[:, "xy".index(axis)]
        stated = np.asarray(found["position"], np.float64)[:, k]
        both = ~np.isnan(expected) & ~np.isnan(stated)
        if game == "breakout":  # among the bricks the ball has their colours, beside the paddle the paddle's
            clear = (ram[:, 101] + 9 >= 93) & (ram[:, 101] + 13 <= 189)
            both &= clear
        assert both.sum() > 60, name
        assert np.abs(expected - stated)[both].max() <= 0.8, name
        if game == "pong":  # its objects are seen wherever they are said to be, and nowhere else
            assert np.array_equal(np.isnan(expected), np.isnan(stated)), name


def test_pong_without_a_ball_is_a_class() -> None:
    screens, ram, lives, _ = play("pong", 250)
    ball = np.asarray(labels(GAMES["pong"], ram, lives)["ball"])
    assert np.array_equal(ball == 1, ~np.isnan(seen("pong", "ball", screens)[:, 0]))
    assert 0.05 < (ball == 0).mean() < 0.95


@pytest.mark.parametrize("game", GAMES)
def test_scores_and_lives_are_the_emulators(game: str) -> None:
    _, ram, lives, returns = play(game, 400)
    found = labels(GAMES[game], ram, lives)
    score = np.asarray(found["score"], np.float64)
    shown = score[:, 0] - score[:, 1] if game == "pong" else score[:, 0]
    assert returns[-1] != 0
    assert np.array_equal(shown, returns)
    if game == "breakout":
        assert np.array_equal(np.asarray(found["lives"]), ram[:, 57])
        assert lives.min() < lives.max()


def test_images_are_those_of_the_vector_environment() -> None:
    env = AtariVectorEnv(
        "breakout", 1, repeat_action_probability=0.0, noop_max=1, use_fire_reset=False, stack_num=1, frameskip=4,
        maxpool=True, grayscale=True, img_height=84, img_width=84,
    )  # fmt: skip
    obs, _ = env.reset(seed=np.array([5]))
    emulator = Emulator(AtariRam("breakout", repeat_action_probability=0.0), 5)
    emulator.reset(0)
    rng = np.random.default_rng(0)
    for _ in range(60):
        difference = np.abs(obs[0, -1].astype(int) - emulator.frame)
        assert difference.max() <= 1  # a mean that lies between two grey levels may be rounded either way
        assert difference.sum() <= 2
        action = int(rng.integers(4))
        obs = env.step(np.array([action]))[0]
        emulator.step(action)


def test_area_averages_by_hand() -> None:
    weights = averages(5, 2)
    np.testing.assert_allclose(weights, np.array([[1, 1, 0.5, 0, 0], [0, 0, 0.5, 1, 1]]) / 2.5)
    np.testing.assert_allclose(averages(210, 84).sum(axis=1), 1, rtol=1e-6)


def make(**options: object) -> ImageData:
    return load("atari_ram", {"game": "breakout", "num_images": 60, "steps_between_images": 3, **options}, seed=1)


def test_the_set_follows_from_its_seed_and_is_whole_games() -> None:
    data, again = make(player="random"), make(player="random")
    assert data.images.shape == (60, 4, 84, 84)
    assert torch.equal(data.images, again.images)
    assert torch.equal(data.targets["position"].nan_to_num(), again.targets["position"].nan_to_num())
    assert not torch.equal(data.images, make().images)
    assert data.group[0] == 0
    assert torch.equal(data.group, data.group.sort().values)
    ends = data.targets["lives"][1:] > data.targets["lives"][:-1]
    assert torch.equal(ends, data.group[1:] > data.group[:-1])  # lives come back with a new game


def test_stacks_are_consecutive_frames_and_zero_before_a_game() -> None:
    single, stacked = (make(frame_stack=k, steps_between_images=1).images for k in (1, 3))
    assert torch.equal(stacked[:, 2], single[:, 0])
    assert torch.equal(stacked[1:, 1], single[:-1, 0])
    assert not stacked[0, :2].any()
