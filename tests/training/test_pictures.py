"""Pictures of tables."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from matplotlib.figure import Figure

from contract import Inspection
from envs.settings import register_environments
from envs.tables import tabular_model
from rules.planning import value_iteration
from rules.tabular import epsilon_greedy
from training.pictures import _moves, _way, draw_curves, draw_table, draw_value_map, table_picture


def cliff() -> tuple[np.ndarray, object]:
    model = tabular_model(gym.make("CliffWalking-v1"), None)
    return value_iteration(model, 1.0)[0], model


def test_a_grid_is_drawn_with_its_visits(tmp_path: Path) -> None:
    q, model = cliff()
    visits = np.ones(q.shape, np.int64)
    assert draw_table(q, model, tmp_path / "table.png", visits=visits)
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    picture = table_picture(Inspection({}, q, epsilon_greedy(q, 0.0), visits), model)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert np.ptp(picture) > 100


def test_what_is_no_grid_is_not_drawn(tmp_path: Path) -> None:
    model = tabular_model(gym.make("Taxi-v4"), None)
    q = np.zeros((500, 6))
    assert not draw_table(q, model, tmp_path / "table.png")
    assert table_picture(Inspection({}, q, q, q.astype(np.int64)), model) is None
    assert table_picture(Inspection({}, q, q, q.astype(np.int64)), None) is None


def test_arrows_point_along_the_policy() -> None:
    q, model = cliff()
    axes = Figure().subplots()
    draw_value_map(axes, q, model)
    arrows = {(round(t.xyann[0]), round(t.xyann[1])): t for t in axes.texts if t.get_text() == ""}
    start = arrows[0, 3]
    assert start.xy[1] < start.xyann[1]  # up from the start
    assert start.xy[0] == start.xyann[0]
    along = arrows[5, 2]
    assert along.xy[0] > along.xyann[0]  # right along the edge
    numbers = {t.get_text() for t in axes.texts}
    assert "-13" in numbers


UP, DOWN, LEFT, RIGHT = [-1, 0], [1, 0], [0, -1], [0, 1]


@pytest.mark.parametrize(
    ("env_id", "moves"),
    [
        ("CliffWalking-v1", [UP, RIGHT, DOWN, LEFT]),
        ("FrozenLake-v1", [LEFT, DOWN, RIGHT, UP]),  # slippery: each action leads to three cells alike
        ("FrozenLake8x8-v1", [LEFT, DOWN, RIGHT, UP]),
        ("Textbook/WindyGridworld-v0", [UP, RIGHT, DOWN, LEFT]),  # the wind carries all of them upwards
    ],
)
def test_arrows_are_the_moves_that_are_meant(env_id: str, moves: list) -> None:
    register_environments()
    assert _moves(tabular_model(gym.make(env_id), None)).tolist() == moves


def test_the_way_from_the_start() -> None:
    q, model = cliff()
    assert _way(model, epsilon_greedy(q, 0.0)) == [36, *range(24, 36), 47]
    assert _way(model, np.tile([0.0, 1.0, 0.0, 0.0], (48, 1))) == [36, 36]  # into the cliff and back
    assert _way(model, np.full((48, 4), 0.25)) == [36]  # no preference, no way
    lake = tabular_model(gym.make("FrozenLake-v1"), None)
    assert _way(lake, np.tile([1.0, 0.0, 0.0, 0.0], (16, 1))) == [0]  # chance decides


def test_the_cliff_shows_what_it_costs() -> None:
    q, model = cliff()
    axes = Figure().subplots()
    q[model.terminal.all(axis=(1, 2))] = 0.0
    unvisited = np.arange(48) > 36
    q[unvisited] = 0.0
    draw_value_map(axes, q, model)
    shown = {(round(t.get_position()[0]), round(t.get_position()[1] - 0.33)): t.get_text() for t in axes.texts}
    assert [shown[c, 3] for c in range(1, 12)] == ["-100"] * 10 + ["-1"]


def test_cells_where_nothing_is_known_are_left_grey() -> None:
    _, model = cliff()
    axes = Figure().subplots()
    draw_value_map(axes, np.zeros((48, 4)), model)
    assert np.isnan(axes.images[0].get_array().filled(np.nan)).all()
    assert not axes.texts


def test_curves_have_a_mean_and_a_band() -> None:
    axes = Figure().subplots()
    values = np.array([[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]])
    draw_curves(axes, [1, 2, 3], {"a": values, "one seed": values[:1]})
    draw_curves(axes, [1, 2, 3], {"b": values}, band="quartiles")
    assert axes.lines[0].get_ydata().tolist() == [1.0, 2.0, 3.0]
    assert len(axes.collections) == 3
    assert axes.collections[2].get_paths()[0].vertices[:, 1].min() == 0.5
