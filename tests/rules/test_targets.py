"""One-step targets: published vectors, edges, contraction, gradients and shape errors."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from rules.targets import (
    clipped_double_q_target,
    double_q_target,
    expected_sarsa_target,
    q_learning_target,
    sampled_soft_target,
    sarsa_target,
    smoothed_action,
    soft_target,
    softmax_target,
    td_target,
)

TargetOfQ = Callable[[Tensor, Tensor, Tensor], Tensor]

# Every target that reads a (B, A) table, reduced to (reward, discount, next_q).
TARGETS_OF_Q: dict[str, TargetOfQ] = {
    "q_learning": q_learning_target,
    "double_q": lambda r, d, q: double_q_target(r, d, q, q),
    "sarsa": lambda r, d, q: sarsa_target(r, d, q, torch.zeros(q.shape[:-1], dtype=torch.int64)),
    "expected_sarsa": lambda r, d, q: expected_sarsa_target(r, d, q, torch.full_like(q, 1 / q.shape[-1])),
    "soft": lambda r, d, q: soft_target(r, d, q, temperature=0.5),
    "softmax": lambda r, d, q: softmax_target(r, d, q, temperature=0.5),
}
each_target_of_q = pytest.mark.parametrize("target", TARGETS_OF_Q.values(), ids=TARGETS_OF_Q.keys())
both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def same(actual: Tensor, expected: list[float]) -> None:
    """Equal values and shape, at the tolerance of the precision that the code under test was given."""
    rtol, atol = (1e-6, 1e-12) if actual.dtype == torch.float64 else (1e-5, 1e-5)
    assert_close(actual, torch.tensor(expected, dtype=actual.dtype), rtol=rtol, atol=atol)


# --- Published vectors. rlax lists TD errors, target - q of the action taken. ---


@both_precisions
def test_td_reproduces_rlax(dtype: torch.dtype) -> None:
    reward = torch.full((9,), -1.0, dtype=dtype)
    discount = torch.tensor([0, 0.5, 1] * 3, dtype=dtype)
    next_value = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2], dtype=dtype)
    # v = 1; the last entry is -1 + 1 * 2 - 1 = 0
    same(td_target(reward, discount, next_value) - 1, [-2, -2, -2, -2, -1.5, -1, -2, -1, 0])


@both_precisions
def test_sarsa_reproduces_rlax(dtype: torch.dtype) -> None:
    target = sarsa_target(
        reward=torch.tensor([1, 1], dtype=dtype),
        discount=torch.tensor([0, 1], dtype=dtype),
        next_q=torch.tensor([[0, 1, 0], [3, 2, 0]], dtype=dtype),
        next_action=torch.tensor([1, 0]),
    )
    # errors [0, 3] over q = 1: 1 + 0 * 1 = 1 and 1 + 1 * 3 = 4
    same(target, [1, 4])


@both_precisions
def test_expected_sarsa_reproduces_rlax(dtype: torch.dtype) -> None:
    target = expected_sarsa_target(
        reward=torch.tensor([4, 1], dtype=dtype),
        discount=torch.tensor([1, 1], dtype=dtype),
        next_q=torch.tensor([[1.5, 1, 2], [3, 2, 1]], dtype=dtype),
        next_policy=torch.tensor([[0.2, 0.5, 0.3], [0.3, 0.4, 0.3]], dtype=dtype),
    )
    # errors [4.4, 2] over q = 1: 4 + (0.3 + 0.5 + 0.6) = 5.4 and 1 + (0.9 + 0.8 + 0.3) = 3
    same(target, [5.4, 3])


@both_precisions
def test_q_learning_reproduces_rlax(dtype: torch.dtype) -> None:
    target = q_learning_target(
        reward=torch.tensor([1, 1], dtype=dtype),
        discount=torch.tensor([0, 1], dtype=dtype),
        next_q=torch.tensor([[0, 1, 0], [1, 2, 0]], dtype=dtype),
    )
    # errors [0, 1] over q = [1, 2]: 1 + 0 * 1 = 1 and 1 + 1 * 2 = 3
    same(target, [1, 3])


@both_precisions
def test_double_q_reproduces_rlax_and_avoids_its_decoys(dtype: torch.dtype) -> None:
    target = double_q_target(
        reward=torch.tensor([1, 1], dtype=dtype),
        discount=torch.tensor([0, 1], dtype=dtype),
        next_q_online=torch.tensor([[2, 10, 1], [11, 20, 1]], dtype=dtype),
        next_q_target=torch.tensor([[99, 1, 98], [91, 2, 66]], dtype=dtype),
    )
    # errors [0, 1] over q = [1, 2]; swapped networks would give 1 + 11, either network alone 1 + 91 or 1 + 20
    same(target, [1, 3])


# --- Soft backups, by hand. next_q = [0, log 3] has weights 1 : 3 at temperature 1. ---


@both_precisions
def test_soft_target_is_the_log_sum_of_exponentials(dtype: torch.dtype) -> None:
    reward, discount = torch.tensor([1.0], dtype=dtype), torch.tensor([0.5], dtype=dtype)
    next_q = torch.tensor([[0.0, math.log(3)]], dtype=dtype)
    # log(1 + 3) = 2 log 2; 1 + 0.5 * 2 log 2 = 1.6931472
    same(soft_target(reward, discount, next_q, temperature=1.0), [1.69314718056])
    # twice the values at twice the temperature are worth twice as much: 1 + 0.5 * 4 log 2 = 2.3862944
    same(soft_target(reward, discount, 2 * next_q, temperature=2.0), [2.38629436112])


@both_precisions
def test_softmax_target_averages_under_the_softmax(dtype: torch.dtype) -> None:
    reward, discount = torch.tensor([1.0], dtype=dtype), torch.tensor([0.5], dtype=dtype)
    next_q = torch.tensor([[0.0, math.log(3)]], dtype=dtype)
    # 3/4 * log 3 = 0.8239592; 1 + 0.5 * 0.8239592 = 1.4119796
    same(softmax_target(reward, discount, next_q, temperature=1.0), [1.41197960825])
    same(softmax_target(reward, discount, 2 * next_q, temperature=2.0), [1.8239592165])


@pytest.mark.parametrize("target", [soft_target, softmax_target])
def test_a_small_temperature_gives_q_learning_even_for_huge_values(target: Callable[..., Tensor]) -> None:
    reward, discount = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.5])
    next_q = torch.tensor([[1e4, 9e3, 0.0], [-1e4, -9e3, -1e4]])
    # 1 + 0.5 * 10000 and -2 - 0.5 * 9000
    same(target(reward, discount, next_q, temperature=1e-3), [5001, -4502])


def test_softmax_target_at_a_large_temperature_is_the_mean() -> None:
    target = softmax_target(torch.zeros(1), torch.ones(1), torch.tensor([[1.0, 2.0, 6.0]]), temperature=1e6)
    same(target, [3])


def test_soft_target_counts_equal_actions_as_entropy() -> None:
    # four actions worth 5: 5 + 2 * log 4 = 7.7725887
    target = soft_target(torch.zeros(1), torch.ones(1), torch.full((1, 4), 5.0), temperature=2.0)
    same(target, [7.7725887])


# --- Edges. ---


@each_target_of_q
def test_all_terminal_gives_the_reward_exactly_whatever_follows(target: TargetOfQ) -> None:
    reward = torch.tensor([1.5, -2.25, 0.0])
    next_q = torch.tensor([[1e30, -1e30], [math.nan, math.nan], [math.inf, -math.inf]])
    assert torch.equal(target(reward, torch.zeros(3), next_q), reward)


def test_td_target_at_a_terminal_never_reads_the_value() -> None:
    next_value = torch.tensor([math.nan, 3.0])
    assert torch.equal(td_target(torch.ones(2), torch.tensor([0.0, 1.0]), next_value), torch.tensor([1.0, 4.0]))


@each_target_of_q
def test_a_nan_that_is_read_stays_visible(target: TargetOfQ) -> None:
    assert target(torch.zeros(1), torch.ones(1), torch.full((1, 2), math.nan)).isnan().all()


@each_target_of_q
def test_one_action_has_one_possible_value(target: TargetOfQ) -> None:
    # A = 1 and B = 1: 2 + 0.9 * 10 whichever way the single action is weighed
    same(target(torch.tensor([2.0]), torch.tensor([0.9]), torch.tensor([[10.0]])), [11])


@each_target_of_q
def test_further_batch_axes_are_rows(target: TargetOfQ) -> None:
    generator = torch.Generator().manual_seed(0)
    reward, discount = torch.rand(2, 3, 5, generator=generator), torch.rand(2, 3, 5, generator=generator)
    next_q = torch.randn(2, 3, 5, 4, generator=generator)
    flat = target(reward.flatten(), discount.flatten(), next_q.flatten(0, 2))
    assert_close(target(reward, discount, next_q), flat.view(2, 3, 5))


def test_a_forbidden_action_adds_nothing_to_an_average() -> None:
    next_q = torch.tensor([[2.0, -math.inf, 4.0]])
    policy = torch.tensor([[0.5, 0.0, 0.5]])
    same(expected_sarsa_target(torch.zeros(1), torch.ones(1), next_q, policy), [3])
    # softmax([2, 4]) = [1, e^2] / (1 + e^2) = [0.1192029, 0.8807971]; 2 * 0.1192029 + 4 * 0.8807971 = 3.7615942
    same(softmax_target(torch.zeros(1), torch.ones(1), next_q, temperature=1.0), [3.7615942])
    # log(e^2 + e^4) = 4 + log(1 + e^-2) = 4.1269280
    same(soft_target(torch.zeros(1), torch.ones(1), next_q, temperature=1.0), [4.1269280])


# --- Properties. ---

tables = st.integers(1, 5).flatmap(
    lambda num_actions: st.tuples(
        *[st.lists(st.floats(-100, 100), min_size=num_actions, max_size=num_actions) for _ in range(2)]
    )
)


def gaps(target: TargetOfQ, pair: tuple[list[float], list[float]], discount: float) -> tuple[float, float]:
    """Distance of two targets, and the largest distance of the two tables behind them."""
    next_q = torch.tensor(pair, dtype=torch.float64)
    targets = target(torch.full_like(next_q[:, 0], 7), torch.full_like(next_q[:, 0], discount), next_q)
    return float((targets[0] - targets[1]).abs()), float((next_q[0] - next_q[1]).abs().max())


@settings(deadline=None)
@given(pair=tables, discount=st.floats(0, 1), temperature=st.floats(1e-2, 1e2))
def test_the_soft_backup_is_a_contraction(
    pair: tuple[list[float], list[float]], discount: float, temperature: float
) -> None:
    after, before = gaps(lambda r, d, q: soft_target(r, d, q, temperature), pair, discount)
    assert after <= discount * before + 1e-9


@settings(deadline=None)
@given(pair=tables, discount=st.floats(0, 1))
def test_the_maximum_backup_is_a_contraction(pair: tuple[list[float], list[float]], discount: float) -> None:
    after, before = gaps(q_learning_target, pair, discount)
    assert after <= discount * before + 1e-9


def test_the_boltzmann_backup_can_drive_values_apart() -> None:
    # value of [0, x] is x / (1 + e^-x): 1.7615942 at 2, 2.3103541 at 2.5, further apart than 0.5
    after, before = gaps(lambda r, d, q: softmax_target(r, d, q, temperature=1.0), ([0, 2], [0, 2.5]), discount=1.0)
    assert before == 0.5
    assert after == pytest.approx(0.5487599, abs=1e-6)


@settings(deadline=None)
@given(pair=tables, temperature=st.floats(1e-2, 1e2))
def test_the_maximum_lies_between_the_two_soft_backups(
    pair: tuple[list[float], list[float]], temperature: float
) -> None:
    reward, discount = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    next_q = torch.tensor(pair, dtype=torch.float64)
    hard = q_learning_target(reward, discount, next_q)
    soft = soft_target(reward, discount, next_q, temperature)
    assert (softmax_target(reward, discount, next_q, temperature) <= hard + 1e-9).all()
    assert (hard <= soft + 1e-9).all()
    assert (soft <= hard + temperature * math.log(next_q.shape[1]) + 1e-9).all()


@settings(deadline=None)
@given(pair=tables)
def test_double_q_with_equal_networks_is_q_learning(pair: tuple[list[float], list[float]]) -> None:
    reward, discount, next_q = torch.ones(2), torch.full((2,), 0.9), torch.tensor(pair)
    assert torch.equal(double_q_target(reward, discount, next_q, next_q), q_learning_target(reward, discount, next_q))


# --- Gradients, device, errors. ---


@each_target_of_q
def test_no_gradient_reaches_a_target(target: TargetOfQ) -> None:
    reward, discount = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    next_q = torch.ones(2, 3, requires_grad=True)
    assert not target(reward, discount, next_q).requires_grad
    assert not td_target(reward, discount, next_q[:, 0]).requires_grad


@pytest.mark.parametrize(
    "target",
    [q_learning_target, lambda r, d, q: soft_target(r, d, q, 1.0), lambda r, d, q: softmax_target(r, d, q, 1.0)],
)
def test_targets_never_look_at_values(target: TargetOfQ) -> None:
    # meta tensors have no values: reading one, as a GPU synchronisation would, raises
    meta = torch.device("meta")
    result = target(torch.empty(4, device=meta), torch.empty(4, device=meta), torch.empty(4, 3, device=meta))
    assert result.shape == (4,)
    assert result.is_meta


@each_target_of_q
def test_a_column_of_rewards_is_refused(target: TargetOfQ) -> None:
    with pytest.raises(ValueError, match=r"^reward must have shape \(4,\), .* next_q\w* \(4, 3\), got \(4, 1\)$"):
        target(torch.ones(4, 1), torch.ones(4), torch.ones(4, 3))


@each_target_of_q
def test_a_column_of_discounts_is_refused(target: TargetOfQ) -> None:
    with pytest.raises(ValueError, match=r"^discount must have shape \(4,\), .* got \(4, 1\)$"):
        target(torch.ones(4), torch.ones(4, 1), torch.ones(4, 3))


def test_td_target_refuses_to_broadcast() -> None:
    with pytest.raises(ValueError, match=r"^discount must have the shape of reward \(4,\), got \(4, 1\)$"):
        td_target(torch.ones(4), torch.ones(4, 1), torch.ones(4))
    with pytest.raises(ValueError, match=r"^next_value must have the shape of reward \(4,\), got \(4, 1\)$"):
        td_target(torch.ones(4), torch.ones(4), torch.ones(4, 1))


def test_two_tables_of_different_shape_are_refused() -> None:
    ones = torch.ones(4)
    with pytest.raises(
        ValueError, match=r"^next_q_target must have the shape of next_q_online \(4, 3\), got \(4, 2\)$"
    ):
        double_q_target(ones, ones, torch.ones(4, 3), torch.ones(4, 2))
    with pytest.raises(ValueError, match=r"^next_policy must have the shape of next_q \(4, 3\), got \(3,\)$"):
        expected_sarsa_target(ones, ones, torch.ones(4, 3), torch.ones(3))


def test_a_column_of_actions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^next_action must have shape \(4,\), .* got \(4, 1\)$"):
        sarsa_target(torch.ones(4), torch.ones(4), torch.ones(4, 3), torch.zeros(4, 1, dtype=torch.int64))


def test_a_table_without_actions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^next_q must have an action axis, shape \(\.\.\., A\), got \(\)$"):
        q_learning_target(torch.tensor(1.0), torch.tensor(1.0), torch.tensor(1.0))


@pytest.mark.parametrize("target", [soft_target, softmax_target])
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(target: Callable[..., Tensor], temperature: float) -> None:
    with pytest.raises(ValueError, match=r"^temperature must be positive and finite, got "):
        target(torch.ones(4), torch.ones(4), torch.ones(4, 3), temperature)


@both_precisions
def test_clipped_double_q_takes_the_lower_estimate_of_each_sample(dtype: torch.dtype) -> None:
    reward = torch.tensor([1.0, 1.0, -2.0], dtype=dtype)
    discount = torch.tensor([0.5, 0.5, 0.0], dtype=dtype)
    next_q = torch.tensor([[4.0, -6.0, math.nan], [8.0, -2.0, 1.0]], dtype=dtype)
    same(clipped_double_q_target(reward, discount, next_q), [3.0, -2.0, -2.0])


@both_precisions
def test_sampled_soft_target_by_hand_with_the_entropy_inside_the_mask(dtype: torch.dtype) -> None:
    reward = torch.tensor([1.0, 1.0, 7.0], dtype=dtype)
    discount = torch.tensor([0.5, 0.5, 0.0], dtype=dtype)
    next_q = torch.tensor([[4.0, -6.0, 3.0], [8.0, -2.0, 1.0]], dtype=dtype)
    log_prob = torch.tensor([-2.0, 1.0, 5.0], dtype=dtype)
    # 1 + 0.5 * (4 + 0.2 * 2), 1 + 0.5 * (-6 - 0.2 * 1), and the reward alone
    same(sampled_soft_target(reward, discount, next_q, log_prob, 0.2), [3.2, -2.1, 7.0])


def test_under_the_best_policy_every_draw_gives_the_soft_target() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    reward, discount = torch.randn(5, generator=generator, dtype=torch.float64), torch.full((5,), 0.9)
    log_policy = (q / 0.3).log_softmax(-1)
    for action in range(3):
        sampled = sampled_soft_target(reward, discount, q[:, action][None], log_policy[:, action], 0.3)
        assert_close(sampled, soft_target(reward, discount, q, 0.3))


def test_smoothed_actions_are_clipped_twice() -> None:
    action = torch.tensor([[0.0, 0.9], [-0.8, 0.2]])
    noise = torch.tensor([[0.7, 0.4], [-0.3, 0.1]])
    same(smoothed_action(action, noise, 0.5).flatten(), [0.5, 1.0, -1.0, 0.3])
    assert torch.equal(smoothed_action(action, noise, 0.0), action)


def test_targets_of_several_estimates_refuse_to_broadcast() -> None:
    with pytest.raises(ValueError, match=r"^next_value must have the shape of reward \(4,\), got \(4, 1\)$"):
        clipped_double_q_target(torch.ones(4), torch.ones(4), torch.ones(2, 4, 1))
    with pytest.raises(ValueError, match=r"^next_log_prob must have the shape of next_value \(4,\), got \(4, 1\)$"):
        sampled_soft_target(torch.ones(4), torch.ones(4), torch.ones(2, 4), torch.ones(4, 1), 0.1)
    with pytest.raises(ValueError, match=r"^noise must have the shape of action \(4, 2\), got \(2,\)$"):
        smoothed_action(torch.ones(4, 2), torch.ones(2), 0.5)
