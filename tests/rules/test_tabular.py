"""Update rules of tables: the book's arithmetic, and the properties that learning rests on."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rules.tabular import (
    boltzmann_value,
    draw_action,
    epsilon_greedy,
    epsilon_soft_value,
    expected_value,
    greedy_value,
    linear_step_size,
    log_sum_exp_value,
    returns_of,
    softmax,
    td_error,
    td_update,
    visit_step_size,
    visited_trace,
)

ROWS = arrays(np.float64, (3, 4), elements=st.floats(-100, 100))


def test_td_update_moves_a_fraction_of_the_error() -> None:
    # target = 1 + 0.9 * 10 = 10; error = 10 - 2 = 8; new = 2 + 0.5 * 8 = 6
    assert td_error(2.0, 1.0, 0.9, 10.0) == 8.0
    assert td_update(2.0, 1.0, 0.9, 10.0, 0.5) == 6.0


def test_td_update_reads_no_value_behind_a_terminal() -> None:
    assert td_update(2.0, 1.0, 0.0, 10.0, 1.0) == 1.0


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("accumulating", 1.4), ("replacing", 1.0), ("dutch", 1.3)],  # dutch: 0.75 * 0.4 + 1
)
def test_the_three_traces_of_a_visited_entry(kind: str, expected: float) -> None:
    assert visited_trace(0.4, kind, 0.25) == pytest.approx(expected)


def test_step_size_schedules() -> None:
    assert [linear_step_size(p, 0.5, 0.1) for p in (0.0, 0.5, 1.0, 2.0)] == pytest.approx([0.5, 0.3, 0.1, 0.1])
    assert [visit_step_size(n, 1.0, 1.0) for n in (1, 2, 4)] == [1.0, 0.5, 0.25]
    assert visit_step_size(1, 30.0, 1.0) == 1.0  # never above 1
    assert visit_step_size(16, 1.0, 0.5) == 0.25


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_step_sizes_of_one_over_n_give_the_mean_in_any_order(returns: list[float], shuffle: object) -> None:
    shuffle.shuffle(returns)  # type: ignore[attr-defined]
    q = 123.0  # forgotten by the first update
    for n, g in enumerate(returns, start=1):
        q = td_update(q, g, 0.0, 0.0, visit_step_size(n, 1.0, 1.0))
    assert q == pytest.approx(np.mean(returns), abs=1e-9)


def test_values_of_a_row() -> None:
    q = np.array([[0.0, 1.0, 3.0, 0.0]])
    assert greedy_value(q) == 3.0
    assert epsilon_soft_value(q, 0.2) == pytest.approx(0.8 * 3 + 0.2 * 1)
    assert expected_value(q, np.array([[0.5, 0.5, 0.0, 0.0]])) == 0.5
    assert log_sum_exp_value(q, 2.0) == pytest.approx(2 * math.log(2 + math.exp(0.5) + math.exp(1.5)))
    weights = [1, math.e, math.e**3, 1]
    assert boltzmann_value(q, 1.0) == pytest.approx((weights[1] + 3 * weights[2]) / sum(weights))


def test_log_sum_exp_lies_between_the_maximum_and_what_entropy_can_add() -> None:
    q = np.array([1000.0, 1000.0])  # exp(1000) would overflow
    assert log_sum_exp_value(q, 0.5) == pytest.approx(1000 + 0.5 * math.log(2))
    assert log_sum_exp_value(q, 1e-6) == pytest.approx(1000, abs=1e-5)


@given(ROWS, st.floats(0, 1))
def test_the_epsilon_soft_value_is_the_value_of_the_epsilon_greedy_policy(q: np.ndarray, epsilon: float) -> None:
    assert expected_value(q, epsilon_greedy(q, epsilon)) == pytest.approx(epsilon_soft_value(q, epsilon), abs=1e-9)


@given(ROWS, ROWS, st.floats(0.05, 10), st.floats(0, 1))
def test_greedy_epsilon_soft_and_log_sum_exp_backups_never_expand(
    q: np.ndarray, other: np.ndarray, temperature: float, epsilon: float
) -> None:
    distance = np.abs(q - other).max() + 1e-9
    assert np.abs(greedy_value(q) - greedy_value(other)).max() <= distance
    assert np.abs(epsilon_soft_value(q, epsilon) - epsilon_soft_value(other, epsilon)).max() <= distance
    assert np.abs(log_sum_exp_value(q, temperature) - log_sum_exp_value(other, temperature)).max() <= distance


def test_the_boltzmann_backup_can_expand() -> None:
    q, other = np.array([2.3, 0.0]), np.array([2.5, 0.0])
    grown = boltzmann_value(other, 1.0) - boltzmann_value(q, 1.0)
    assert grown > 1.09 * 0.2  # so that no gamma above 0.92 makes it a contraction


def test_ties_share_the_greedy_part() -> None:
    policy = epsilon_greedy(np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 2.0, 1.0, 0.0]]), np.array([0.2, 0.0]))
    assert policy == pytest.approx(np.array([[0.45, 0.45, 0.05, 0.05], [0, 1, 0, 0]]))


@given(ROWS, st.floats(0.01, 100))
def test_softmax_is_a_distribution_that_follows_the_order_of_the_values(q: np.ndarray, temperature: float) -> None:
    policy = softmax(q, temperature)
    assert policy.sum(axis=1) == pytest.approx(np.ones(3))
    assert (policy.max(axis=1) == np.take_along_axis(policy, q.argmax(axis=1)[:, None], 1)[:, 0]).all()


def test_draw_action_inverts_the_cumulative_distribution() -> None:
    policy = np.tile([0.0, 0.25, 0.0, 0.75], (4, 1))
    assert draw_action(policy, np.array([0.0, 0.2499, 0.25, 0.9999999])).tolist() == [1, 1, 3, 3]


@given(st.floats(0, 1, exclude_max=True))
def test_draw_action_never_takes_an_impossible_action(uniform: float) -> None:
    policy = np.array([[0.0, 0.1, 0.2, 0.0, 0.7 - 1e-16, 0.0]])
    assert policy[0, draw_action(policy, np.array([uniform]))[0]] > 0


def test_returns_are_discounted_backwards_from_the_last_value() -> None:
    # G2 = 3 + 0.5 * 8 = 7; G1 = 2 + 0.5 * 7 = 5.5; G0 = 1 + 0.5 * 5.5 = 3.75
    assert returns_of([1.0, 2.0, 3.0], 0.5, 8.0) == [3.75, 5.5, 7.0]
