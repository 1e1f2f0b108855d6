"""Numbers as bins and as tiles."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from hypothesis import given
from hypothesis import strategies as st

from contract import Streams, Tilings
from envs.discretize import Bins, Tiles
from envs.make import make_env
from envs.settings import GymnasiumSettings
from faults import ConfigError

UNIT = Box(np.array([0.0, -1.0], np.float32), np.array([1.0, 1.0], np.float32))


def test_bins_are_equal_and_outliers_count_to_the_outer_ones() -> None:
    bins = Bins(UNIT, "test", [4, 2])
    obs = torch.tensor([[0.0, -1.0], [0.24, -0.01], [0.25, 0.0], [0.99, 1.0], [1.0, 5.0], [-3.0, -5.0]])
    assert bins(obs).tolist() == [[0, 0], [0, 0], [1, 1], [3, 1], [3, 1], [0, 0]]
    assert bins.space.nvec.tolist() == [4, 2]


def test_one_count_serves_all_numbers_and_bounds_can_be_given() -> None:
    bins = Bins(UNIT, "test", [10], low=[0.4, 0.0], high=[0.6, 0.1])
    assert bins(torch.tensor([[0.5, 0.05], [0.59, 0.5]])).tolist() == [[5, 5], [9, 9]]


@pytest.mark.parametrize(
    ("space", "counts", "low", "message"),
    [
        (Discrete(3), [4], None, r"env.discretize needs a vector of numbers; test has Discrete\(3\)"),
        (UNIT, [4, 4, 4], None, "env.bins must have 2 entries for test, got 3"),
        (UNIT, [4], [0.0], "env.low must have 2 entries for test, got 1"),
        (Box(-np.inf, np.inf, (2,)), [4], None, "test has unbounded observations, so env.low and env.high must say"),
    ],
)
def test_what_cannot_be_cut_is_one_line(space: object, counts: list, low: list | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Bins(space, "test", counts, low)


def test_mountain_car_becomes_discrete() -> None:
    env = make_env(GymnasiumSettings("MountainCar-v0", discretize="bins", bins=[20, 10]), 3, Streams(0), "train")
    obs = env.reset()
    assert env.spec.observation_space.nvec.tolist() == [20, 10]
    assert obs.dtype == torch.int64
    assert obs.shape == (3, 2)
    step = env.step(torch.tensor([0, 1, 2]))
    assert step.transition.next_obs.max() < 20
    env.close()


def test_unknown_way_to_discretize() -> None:
    with pytest.raises(ConfigError, match=r"env\.discretize must be one of bins, tiles, got 'clusters'"):
        GymnasiumSettings("CartPole-v1", discretize="clusters")


def test_the_number_of_tilings_has_a_range() -> None:
    with pytest.raises(ConfigError, match=r"env\.tilings must be in \[1, 1024\], got 0"):
        GymnasiumSettings("CartPole-v1", discretize="tiles", tilings=0)


def test_four_tilings_of_two_tiles_by_hand() -> None:
    """One number in [0, 1] cut in two: tiling k is shifted by k / 4 of a tile and has a third tile for the overhang."""
    line = Box(0.0, 1.0, (1,))
    tiles = Tiles(line, "test", [2], tilings=4)
    obs = torch.tensor([[0.0], [0.2], [0.3], [0.49], [0.5], [1.0], [-7.0]])
    # in tiles: 0, 0.4, 0.6, 0.98, 1, 2, 0; shifted by 0, 0.25, 0.5, 0.75
    assert tiles(obs).tolist() == [
        [0, 0, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 1, 1],
        [0, 1, 1, 1],
        [1, 1, 1, 1],
        [1, 2, 2, 2],
        [0, 0, 0, 0],
    ]
    assert isinstance(tiles.space, Tilings)
    assert tiles.space.nvec.tolist() == [3] * 4


def test_two_numbers_are_shifted_by_one_and_three() -> None:
    tiles = Tiles(UNIT, "test", [4, 2], tilings=4)
    # in tiles (2.4, 1.3); tiling 1 adds (1/4, 3/4) -> (2, 2), tiling 2 (2/4, 6/4 mod 1) -> (2, 1), tiling 3 (3/4, 9/4
    # mod 1) -> (3, 1); a tiling has 5 x 3 tiles, so (i, j) is number 3 i + j
    assert tiles(torch.tensor([[0.6, 0.3]])).tolist() == [[7, 8, 7, 10]]
    assert tiles.space.nvec.tolist() == [15] * 4


@given(st.lists(st.tuples(st.floats(-1, 2, width=32), st.floats(-2, 2, width=32)), min_size=1, max_size=20))
def test_one_tiling_is_bins(numbers: list[tuple[float, float]]) -> None:
    obs = torch.tensor(numbers)
    bins = Bins(UNIT, "test", [5, 3])(obs)
    assert Tiles(UNIT, "test", [5, 3], tilings=1)(obs)[:, 0].tolist() == (bins[:, 0] * 3 + bins[:, 1]).tolist()


@given(st.integers(1, 4), st.integers(0, 3), st.lists(st.floats(-0.5, 1.5), min_size=4, max_size=4))
def test_every_tile_lies_in_its_tiling(size: int, log_tilings: int, numbers: list[float]) -> None:
    tiles = Tiles(Box(0.0, 1.0, (size,)), "test", [3], tilings=2**log_tilings)
    active = tiles(torch.tensor([numbers[:size]]))
    assert active.shape == (1, 2**log_tilings)
    assert tiles.space.contains(active[0].numpy())


def test_a_step_of_one_eighth_of_a_tile_changes_one_tiling_of_eight() -> None:
    tiles = Tiles(Box(0.0, 1.0, (1,)), "test", [10], tilings=8)
    obs = torch.arange(0.005, 1.0, 0.0125)[:, None]  # an eighth of a tile apart
    assert (tiles(obs)[1:] != tiles(obs)[:-1]).sum(dim=1).tolist() == [1] * (len(obs) - 1)


def test_mountain_car_in_tiles() -> None:
    env = make_env(GymnasiumSettings("MountainCar-v0", discretize="tiles", bins=[8], tilings=8), 3, Streams(0), "train")
    assert env.reset().shape == (3, 8)
    assert env.spec.observation_space.nvec.tolist() == [81] * 8
    assert env.spec.protocol["tilings"] == 8
    env.close()
