"""Schedules: start, middle, end, and what lies outside."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rules.schedules import exponential_schedule, linear_schedule


@pytest.mark.parametrize(
    ("step", "expected"),
    [(-5, 1.0), (0, 1.0), (1, 0.9991), (250, 0.775), (500, 0.55), (999, 0.1009), (1000, 0.1), (10**9, 0.1)],
)
def test_epsilon_from_1_to_a_tenth_over_1000_env_steps(step: int, expected: float) -> None:
    # the slope is -0.9 / 1000 = -0.0009 per step
    assert linear_schedule(step, start=1.0, end=0.1, duration=1000) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(-5, 1.0), (0, 1.0), (250, 0.1), (500, 0.01), (750, 0.001), (1000, 0.0001), (10**9, 0.0001)],
)
def test_each_quarter_divides_by_ten(step: int, expected: float) -> None:
    assert exponential_schedule(step, start=1.0, end=0.0001, duration=1000) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_envs", [1, 4])
def test_the_middle_is_at_env_step_500_however_many_environments_run(num_envs: int) -> None:
    env_steps = 0
    for _ in range(500 // num_envs):
        env_steps += num_envs
    assert linear_schedule(env_steps, 1.0, 0.1, 1000) == pytest.approx(0.55, rel=1e-12)


@pytest.mark.parametrize("schedule", [linear_schedule, exponential_schedule])
def test_both_ends_are_exact(schedule: Callable[[float, float, float, float], float]) -> None:
    assert schedule(0, 1.0, 0.1, 3) == 1.0
    assert schedule(3, 1.0, 0.1, 3) == 0.1


def test_a_duration_of_zero_is_at_its_end_at_once() -> None:
    assert linear_schedule(0, 1.0, 0.1, 0) == 0.1
    assert exponential_schedule(0, 1.0, 0.1, 0) == 0.1


def test_a_schedule_may_rise() -> None:
    # beta of prioritised replay: 0.4 + 0.6 / 4
    assert linear_schedule(25, start=0.4, end=1.0, duration=100) == pytest.approx(0.55, rel=1e-12)
    assert exponential_schedule(50, start=1.0, end=4.0, duration=100) == pytest.approx(2.0, rel=1e-12)


@settings(deadline=None)
@given(step=st.integers(0, 2000), ends=st.tuples(st.floats(0.01, 10), st.floats(0.01, 10)))
def test_values_stay_between_the_ends_and_move_one_way(step: int, ends: tuple[float, float]) -> None:
    low, high = sorted(ends)
    for schedule in (linear_schedule, exponential_schedule):
        now, later = schedule(step, low, high, 1000), schedule(step + 1, low, high, 1000)
        assert low - 1e-9 <= now <= later + 1e-9 <= high + 2e-9


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^duration must be at least 0 environment steps, got -1$"):
        linear_schedule(0, 1.0, 0.1, -1)
    with pytest.raises(ValueError, match=r"^duration must be at least 0 environment steps, got nan$"):
        exponential_schedule(0, 1.0, 0.1, float("nan"))
    with pytest.raises(ValueError, match=r"^end must be positive and finite, got 0\.0$"):
        exponential_schedule(0, 1.0, 0.0, 10)
    with pytest.raises(ValueError, match=r"^start must be positive and finite, got -1\.0$"):
        exponential_schedule(0, -1.0, 0.1, 10)
