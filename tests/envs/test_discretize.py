"""Numbers as bins."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from contract import Streams
from envs.discretize import Bins
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
    with pytest.raises(ConfigError, match=r"env\.discretize must be one of bins"):
        GymnasiumSettings("CartPole-v1", discretize="clusters")
