"""Maps, shortest paths and exact answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.driving.batch import DrivingBatch
from envs.driving.config import make_config
from envs.driving.maps import CITIES, EAST, NORTH, SOUTH, WEST, load_city, read_city
from envs.driving.oracle import steps_to_goal, tabular_model, value_iteration
from envs.driving.routes import UNREACHABLE, distances, goal_poses, legal_moves, manoeuvres
from envs.driving.tables import MIN_CONNECTED, connected_poses, generate_city, lane_poses, make_tables
from faults import ConfigError

CROSS = """
#######
#..v..#
#<<++<#
#>>++>#
#..v^.#
#######
""".replace(".", "#")


def test_junctions_take_the_directions_of_the_lanes_that_meet_in_them():
    city = read_city(CROSS)
    north_west, south_east = city.lanes[2, 3], city.lanes[3, 4]
    assert north_west == 1 << SOUTH | 1 << WEST
    assert south_east == 1 << NORTH | 1 << EAST


def test_crosswalks_are_runs_across_their_lanes():
    city = load_city("crossing")
    assert city.crossings.tolist() == [[3, 5, EAST, 2], [8, 5, EAST, 2], [5, 3, SOUTH, 2], [5, 8, SOUTH, 2]]


def test_a_junction_with_lights_is_one_signal():
    signal = load_city("crossing").signal
    assert len(np.unique(signal[5:7, 5:7])) == 1
    assert signal[5, 5] > 0
    assert (signal > 0).sum() == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the map is empty"),
        ("####\n#>>#\n###", "line 3 has 3 cells, line 1 has 4"),
        ("####\n#>x#\n####", r"line 2 has unknown cells \['x'\]"),
        ("####\n##+#\n####", r"'\+' in line 2, column 3 is on no lane"),
        (("#" * 257 + "\n") * 3, "at most 256 x 256"),
    ],
)
def test_a_bad_drawing_is_refused_in_one_line(text, message):
    with pytest.raises(ConfigError, match=message) as error:
        read_city(text)
    assert "\n" not in str(error.value)


def test_an_unsolvable_drawing_is_refused_in_one_line(tmp_path):
    path = tmp_path / "apart.txt"
    path.write_text("########\n#S>#>G>#\n########\n")
    with pytest.raises(ConfigError, match="no start can reach the goal in line 2, column 6"):
        make_tables(make_config("Driving/Route-v0", {"city": str(path)}))


@pytest.mark.parametrize("city_seed", range(12))
def test_goals_of_a_map_without_any_are_drawn_where_cars_can_come(city_seed, tmp_path):
    path = tmp_path / "roundabout.txt"  # a street enters it from the edge of the map
    path.write_text(
        """
##########
##+<<<+###
##v###^###
>>+>>>+###
##########
"""
    )
    config = make_config("Driving/Route-v0", {"city": str(path), "city_seed": city_seed, "min_route": 1})
    tables = make_tables(config)
    assert (tables.start >= 0).all()


def test_a_state_that_does_not_say_the_goal_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="obs=state does not say which goal is meant, and memory has 2"):
        make_tables(make_config("Driving/Tabular-v0", {"city": "memory"}))
    with pytest.raises(ConfigError, match="suburb has 4: use a map with one G, num_goals=1"):
        make_tables(make_config("Driving/Tabular-v0", {"city": "suburb"}))
    assert make_tables(make_config("Driving/Tabular-v0", {"city": "suburb", "num_goals": 1})).goal.shape == (1, 1)


@pytest.mark.parametrize("name", sorted(path.stem for path in CITIES.glob("*.txt")))
def test_every_shipped_map_can_be_driven(name):
    tables = make_tables(make_config("Driving/Route-v0", {"city": name}))
    length = tables.distance[np.arange(tables.goal.shape[1])[:, None], tables.start[0]]
    assert (length > 0).all()
    assert (length < UNREACHABLE).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(8, 48))
def test_generated_cities_are_always_solvable(seed, size):
    city = generate_city(seed, size)
    assert city.kind.shape == (size, size)
    usable = connected_poses(city)
    assert usable.sum() >= MIN_CONNECTED * lane_poses(city).sum()
    moves = legal_moves(city.lanes)
    corner = np.array([divmod(int(np.flatnonzero(usable)[0]) // 4, size)], np.int32)
    length = distances(moves, goal_poses(corner, city.kind.shape, 4))[0]
    assert (length[usable] < UNREACHABLE).all()  # from everywhere to an arbitrary lane


def test_the_largest_city_is_solvable():
    tables = make_tables(make_config("Driving/Route-v0", {"size": 256, "num_cities": 1, "num_goals": 1}))
    assert (tables.distance[0, tables.start[0, 0]] < UNREACHABLE).all()


def test_breadth_first_search_equals_repeated_relaxation():
    city = load_city("suburb")
    moves = legal_moves(city.lanes)
    goals = goal_poses(np.array([[1, 5], [16, 14]], np.int32), city.kind.shape, 4)
    expected = np.where(goals, 0, UNREACHABLE).astype(np.int64)
    while True:
        ahead = np.where(moves >= 0, expected[:, np.maximum(moves, 0)], UNREACHABLE).min(axis=2) + 1
        relaxed = np.minimum(expected, ahead)
        if (relaxed == expected).all():
            break
        expected = relaxed
    assert (distances(moves, goals) == np.minimum(expected, UNREACHABLE)).all()


def test_the_navigator_names_the_next_turn_and_how_far_it_is():
    city = read_city("#####\n#G<+#\n###^#\n###^#\n###S#\n#####")
    width = 5
    moves = legal_moves(city.lanes)
    move, cells = manoeuvres(moves, distances(moves, goal_poses(city.goals, (6, 5), 4)))
    start, corner, lane = (4 * width + 3) * 4 + NORTH, (1 * width + 3) * 4 + NORTH, (1 * width + 2) * 4 + WEST
    assert (move[0, start], cells[0, start]) == (2, 3)  # in three cells turn left
    assert (move[0, corner], cells[0, corner]) == (2, 0)
    assert (move[0, lane], cells[0, lane]) == (1, 1)  # straight on to the goal


STRICT = {"reward_wrong_way": -5.0, "reward_off_lane": -5.0, "reward_red_light": -5.0}


def tabular(**parameters):
    batch = DrivingBatch(make_config("Driving/Tabular-v0", STRICT | parameters), 1)
    return batch, tabular_model(batch)


@pytest.mark.parametrize("top_speed", [1, 2])
def test_value_iteration_equals_breadth_first_search(top_speed):
    """Where breaking a rule costs more than any detour, V*(s) = sum of t < T of gamma^t r_time + gamma^(T-1) r_goal."""
    gamma = 0.99
    batch, model = tabular(top_speed=top_speed)
    value = value_iteration(model, gamma).max(axis=1)
    tables = batch.tables
    height, width = tables.cities[0].kind.shape
    margin = tables.margin
    steps = steps_to_goal(tables, batch.config.top_speed)[0].reshape(tables.height, tables.width, 12)
    steps = steps[margin : margin + height, margin : margin + width].reshape(-1).astype(float)
    drivable = np.repeat(tables.cities[0].lanes.ravel() > 0, 12)
    legal = drivable & (steps > 0) & (steps < UNREACHABLE)
    t = steps[legal]
    expected = -0.01 * (1 - gamma**t) / (1 - gamma) + gamma ** (t - 1)
    assert legal.sum() > 300
    np.testing.assert_allclose(value[legal], expected, atol=1e-6)


def test_shaping_leaves_the_optimum_unchanged():
    """Q with shaping is Q - weight * Phi(s) (Ng, Harada and Russell 1999, theorem 1), so the greedy actions agree."""
    gamma = 0.97
    _, plain_model = tabular()
    _, shaped_model = tabular(shaping=3.0, shaping_gamma=gamma)
    plain, shaped = value_iteration(plain_model, gamma), value_iteration(shaped_model, gamma)
    live = ~plain_model.terminal.all(axis=1) | (np.abs(plain_model.reward) > 0).any(axis=1)
    difference = plain - shaped
    np.testing.assert_allclose(difference[live].max(axis=1), difference[live].min(axis=1), atol=1e-5)
    assert (np.abs(shaped - plain)[live] > 0.1).any()


def test_the_table_has_gymnasiums_form():
    _, model = tabular()
    table = model.table()
    assert sorted(table) == list(range(10 * 10 * 12))
    ((probability, next_state, reward, terminated),) = table[0][3]
    assert (probability, next_state, reward, terminated) == (1.0, 0, 0.0, True)  # inside a building
