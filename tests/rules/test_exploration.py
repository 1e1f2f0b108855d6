"""Exploration: ties, coins, streams, distributions, extreme values and the Monte Carlo improvement step."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from rules.exploration import (
    boltzmann_action,
    epsilon_greedy_action,
    epsilon_greedy_policy,
    greedy_action,
    monte_carlo_improvement,
    softmax_policy,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- Greedy. ---


def test_greedy_takes_the_first_maximum() -> None:
    q = torch.tensor([[1.0, 3.0, 3.0], [0.0, 0.0, 0.0], [-5.0, -2.0, -1.0]])
    action = greedy_action(q)
    assert action.tolist() == [1, 0, 2]
    assert action.dtype == torch.int64


def test_greedy_takes_the_first_maximum_of_a_wide_row() -> None:
    # wide enough for a vectorised reduction, where a later maximum might win
    assert greedy_action(torch.zeros(3, 10_000)).tolist() == [0, 0, 0]


def test_greedy_keeps_batch_axes() -> None:
    q = torch.arange(24.0).reshape(2, 3, 4)
    assert greedy_action(q).tolist() == [[3, 3, 3], [3, 3, 3]]
    assert greedy_action(torch.tensor([1.0, 7.0])).item() == 1


# --- Epsilon-greedy actions. ---


def test_epsilon_zero_is_greedy_and_epsilon_one_is_uniform() -> None:
    q = torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(40_000, 4)
    assert (epsilon_greedy_action(q, 0.0, seeded()) == 2).all()
    counts = epsilon_greedy_action(q, 1.0, seeded()).bincount(minlength=4)
    # 10 000 each, standard deviation sqrt(40 000 * 3 / 16) = 87
    assert ((counts - 10_000).abs() < 5 * 87).all()


def test_epsilon_is_the_share_of_random_actions() -> None:
    q = torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(100_000, 4)
    action = epsilon_greedy_action(q, 0.3, seeded())
    # three quarters of the random actions are not the greedy one: 0.225, standard deviation 0.0013
    assert (action != 2).double().mean().item() == pytest.approx(0.225, abs=0.0066)
    # all others equally often: 0.075, standard deviation 0.0008
    share = action.bincount(minlength=4) / 100_000
    assert_close(share[[0, 1, 3]], torch.full((3,), 0.075), rtol=0, atol=0.0042)


def test_every_row_tosses_its_own_coin() -> None:
    # 1000 actions, so that a random one is hardly ever the greedy one
    q = torch.zeros(8, 1000)
    q[:, 500] = 1
    generator = seeded()
    explored = torch.stack([epsilon_greedy_action(q, 0.5, generator) != 500 for _ in range(2000)])  # (2000, 8)
    # one shared coin would make every call all-greedy or all-random; own coins do so in 2 / 2**8 of calls
    mixed = explored.any(dim=1) & ~explored.all(dim=1)
    assert mixed.double().mean().item() > 0.98
    # and rows do not follow one another: correlations are noise of 1 / sqrt(2000) = 0.022
    correlation = torch.corrcoef(explored.double().T) - torch.eye(8, dtype=torch.float64)
    assert correlation.abs().max().item() < 0.12


def test_one_call_mixes_greedy_and_random_rows() -> None:
    q = torch.zeros(64, 1000)
    q[:, 500] = 1
    explored = epsilon_greedy_action(q, 0.5, seeded()) != 500
    assert 10 < explored.sum().item() < 54


def test_rows_may_have_their_own_epsilon() -> None:
    q = torch.zeros(2, 1000)
    q[:, 500] = 1
    epsilon = torch.tensor([0.0, 1.0])
    generator = seeded()
    actions = torch.stack([epsilon_greedy_action(q, epsilon, generator) for _ in range(100)])
    assert (actions[:, 0] == 500).all()
    assert (actions[:, 1] != 500).sum() > 90


def test_a_scalar_tensor_is_the_same_epsilon() -> None:
    q = torch.randn(32, 5, generator=seeded(1))
    number, scalar = (epsilon_greedy_action(q, epsilon, seeded()) for epsilon in (0.5, torch.tensor(0.5)))
    assert torch.equal(number, scalar)


# --- Streams. ---


@pytest.mark.parametrize(
    "act", [lambda q, g: epsilon_greedy_action(q, 0.5, g), lambda q, g: boltzmann_action(q, 1.0, g)]
)
def test_equal_seeds_give_equal_actions_and_other_seeds_others(
    act: Callable[[Tensor, torch.Generator], Tensor],
) -> None:
    q = torch.randn(256, 6, generator=seeded(1))
    assert torch.equal(act(q, seeded(7)), act(q, seeded(7)))
    assert not torch.equal(act(q, seeded(7)), act(q, seeded(8)))
    generator = seeded(7)
    assert not torch.equal(act(q, generator), act(q, generator))


def test_the_stream_advances_alike_whatever_the_coins_say() -> None:
    q, other_q = torch.randn(33, 6, generator=seeded(1)), torch.zeros(33, 6)
    calls: list[tuple[Tensor, float | Tensor]] = [
        (q, 0.0),
        (q, 1.0),
        (q, 0.3),
        (other_q, 0.3),
        (q, torch.full((33,), 0.5)),
    ]
    states = []
    for values, epsilon in calls:
        generator = seeded()
        epsilon_greedy_action(values, epsilon, generator)
        states.append(generator.get_state())
    assert all(torch.equal(state, states[0]) for state in states)
    assert not torch.equal(states[0], seeded().get_state())


def test_a_row_explores_alike_whatever_its_values() -> None:
    # half the coins explore and then take the same action in both runs; the greedy rows always differ
    first = epsilon_greedy_action(torch.tensor([1.0, 0.0]).expand(200, 2), 0.5, seeded())
    second = epsilon_greedy_action(torch.tensor([0.0, 1.0]).expand(200, 2), 0.5, seeded())
    same_action = (first == second).double().mean().item()
    assert 0.35 < same_action < 0.65


def test_global_randomness_is_untouched() -> None:
    before = torch.get_rng_state()
    q = torch.zeros(4, 3)
    epsilon_greedy_action(q, 0.5, seeded())
    boltzmann_action(q, 1.0, seeded())
    assert torch.equal(torch.get_rng_state(), before)


# --- Policies. ---


def test_epsilon_greedy_policy_by_hand() -> None:
    q = torch.tensor([[0.0, 2.0, 2.0, 1.0]])
    # 0.2 / 4 = 0.05 everywhere, and 0.8 more for the first maximum only
    assert_close(epsilon_greedy_policy(q, 0.2), torch.tensor([[0.05, 0.85, 0.05, 0.05]]))
    assert epsilon_greedy_policy(q, 0.0).tolist() == [[0, 1, 0, 0]]
    assert epsilon_greedy_policy(q, 1.0).tolist() == [[0.25, 0.25, 0.25, 0.25]]


def test_epsilon_greedy_policy_with_an_epsilon_per_row() -> None:
    q = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert_close(epsilon_greedy_policy(q, torch.tensor([0.0, 0.5])), torch.tensor([[0.0, 1.0], [0.25, 0.75]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_policies_keep_the_precision_of_the_values(dtype: torch.dtype) -> None:
    q = torch.zeros(2, 3, dtype=dtype)
    policies = [
        epsilon_greedy_policy(q, 0.1),
        epsilon_greedy_policy(q, torch.tensor([0.1, 0.2])),
        softmax_policy(q, 1.0),
        monte_carlo_improvement(softmax_policy(q, 1.0), q, greedy_action(q)),
    ]
    for policy in policies:
        assert policy.dtype == dtype
        assert_close(policy.sum(dim=-1), torch.ones(2, dtype=dtype))


def test_actions_follow_the_epsilon_greedy_policy() -> None:
    q = torch.tensor([0.3, 0.1, 0.3])
    share = epsilon_greedy_action(q.expand(100_000, 3), 0.6, seeded()).bincount(minlength=3) / 100_000
    assert_close(share, epsilon_greedy_policy(q, 0.6), rtol=0, atol=0.008)


def test_softmax_policy_by_hand() -> None:
    q = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0]])
    assert_close(softmax_policy(q, 1.0), torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    # half the temperature squares the odds: 1 : 9
    assert_close(softmax_policy(q, 0.5), torch.tensor([[0.1, 0.9], [0.5, 0.5]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_policy_survives_huge_values_at_a_tiny_temperature(dtype: torch.dtype) -> None:
    q = torch.tensor([[1e4, 0.0, -1e4], [1e4, 1e4, 0.0], [-1e4, -1e4 - 1, -3e4]], dtype=dtype)
    assert_close(softmax_policy(q, 1e-3), torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [1, 0, 0]], dtype=dtype))


def test_softmax_policy_survives_the_largest_values_of_the_type() -> None:
    assert softmax_policy(torch.tensor([3e38, 1e38]), 1e-3).tolist() == [1, 0]


def test_softmax_policy_never_takes_a_forbidden_action() -> None:
    q = torch.tensor([[0.0, -math.inf, 0.0]]).expand(10_000, 3)
    assert_close(softmax_policy(q, 1.0)[0], torch.tensor([0.5, 0.0, 0.5]))
    assert (boltzmann_action(q, 1.0, seeded()) != 1).all()


def test_softmax_policy_is_differentiable() -> None:
    q = torch.tensor([0.0, 0.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(softmax_policy(q, 0.5)[0], q)
    assert gradient.tolist() == [0.5, -0.5]  # p (1 - p) / temperature = 0.25 / 0.5


def test_boltzmann_actions_follow_the_softmax_policy() -> None:
    q = torch.tensor([0.0, math.log(2.0), math.log(5.0)])
    action = boltzmann_action(q.expand(100_000, 3), 1.0, seeded())
    assert action.dtype == torch.int64
    # 1 : 2 : 5; the largest standard deviation is 0.0015
    assert_close(action.bincount(minlength=3) / 100_000, torch.tensor([0.125, 0.25, 0.625]), rtol=0, atol=0.0076)


def test_boltzmann_rows_are_drawn_independently() -> None:
    generator = seeded()
    action = torch.stack([boltzmann_action(torch.zeros(6, 2), 1.0, generator) for _ in range(2000)])
    correlation = torch.corrcoef(action.double().T) - torch.eye(6, dtype=torch.float64)
    assert correlation.abs().max().item() < 0.12  # noise is 0.022


def test_boltzmann_is_greedy_at_a_tiny_temperature() -> None:
    q = torch.randn(1000, 5, generator=seeded(1), dtype=torch.float64) * 1e4
    assert torch.equal(boltzmann_action(q, 1e-3, seeded()), greedy_action(q))


# --- Monte Carlo improvement. ---


def test_improvement_by_hand() -> None:
    policy = torch.tensor([[0.5, 0.25, 0.25]])
    q = torch.tensor([[0.0, math.log(2.0), math.log(4.0)]])
    # multipliers 1/4, 1/2, 1 give 1/8, 1/8, 1/4; together 1/2
    assert_close(monte_carlo_improvement(policy, q, torch.tensor([2])), torch.tensor([[0.25, 0.25, 0.5]]))


def indicator_form(policy: list[float], q: list[float], best: int) -> list[float]:
    """The rule as its formula is written, action by action, indicator included."""
    improved = []
    for action, probability in enumerate(policy):
        indicator = 1.0 if action == best else 0.0
        improved.append(probability * (math.exp(q[action]) - indicator) / (math.exp(q[best]) - indicator))
    return [p / sum(improved) for p in improved]


rows = st.integers(2, 6).flatmap(
    lambda num_actions: st.tuples(
        st.lists(st.floats(0.01, 1), min_size=num_actions, max_size=num_actions),
        st.lists(st.floats(-5, 5), min_size=num_actions, max_size=num_actions),
    )
)


def as_tensors(row: tuple[list[float], list[float]]) -> tuple[Tensor, Tensor]:
    policy, q = (torch.tensor(numbers, dtype=torch.float64) for numbers in row)
    return policy / policy.sum(), q


@settings(deadline=None)
@given(row=rows)
def test_improvement_is_the_formula_with_the_indicator(row: tuple[list[float], list[float]]) -> None:
    policy, q = as_tensors(row)
    best = greedy_action(q)
    if abs(q[best].item()) < 1e-12:
        q = q + 1e-9  # the formula has a hole at 0; the test below looks at it
    expected = torch.tensor(indicator_form(policy.tolist(), q.tolist(), int(best)), dtype=torch.float64)
    assert_close(monte_carlo_improvement(policy, q, best), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("best_q", [1e-1, -1e-1, 1e-3, -1e-3, 1e-6, -1e-6, 1e-9, -1e-9])
def test_improvement_is_the_limit_of_the_formula_where_it_has_a_hole(best_q: float) -> None:
    policy, q = [0.2, 0.3, 0.5], [best_q - 1.0, best_q, best_q - 0.5]
    near = torch.tensor(indicator_form(policy, q, best=1), dtype=torch.float64)
    at_zero = monte_carlo_improvement(
        torch.tensor(policy, dtype=torch.float64),
        torch.tensor([-1.0, 0.0, -0.5], dtype=torch.float64),
        torch.tensor(1),
    )
    assert at_zero.isfinite().all()
    assert_close(near, at_zero, rtol=1e-6, atol=1e-9)


@settings(deadline=None)
@given(row=rows)
def test_improvement_never_lowers_the_expected_value(row: tuple[list[float], list[float]]) -> None:
    policy, q = as_tensors(row)
    improved = monte_carlo_improvement(policy, q, greedy_action(q))
    gain = float((improved * q).sum() - (policy * q).sum())
    assert gain >= -1e-12
    if q.max() - q.min() > 0.1:
        assert gain > 1e-6


@settings(deadline=None)
@given(row=rows, seed=st.integers(0, 1000))
def test_improvement_is_the_best_step_for_its_distance(row: tuple[list[float], list[float]], seed: int) -> None:
    policy, q = as_tensors(row)

    def objective(candidate: Tensor) -> float:
        return float((candidate * q).sum() - (candidate * (candidate / policy).log()).sum())

    best = objective(monte_carlo_improvement(policy, q, greedy_action(q)))
    generator = seeded(seed)
    for _ in range(20):
        candidate = torch.rand(len(policy), generator=generator, dtype=torch.float64) + 1e-3
        assert objective(candidate / candidate.sum()) <= best + 1e-10


def test_improvement_repeated_becomes_greedy() -> None:
    policy, q = torch.full((1, 3), 1 / 3), torch.tensor([[0.0, 1.0, 0.5]])
    for _ in range(40):
        policy = monte_carlo_improvement(policy, q, torch.tensor([1]))
    assert policy[0, 1].item() > 0.999


def test_improvement_leaves_equal_actions_and_impossible_actions_alone() -> None:
    policy = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0]])
    q = torch.tensor([[2.0, 2.0, 2.0], [0.0, 1.0, 9.0]])
    assert_close(monte_carlo_improvement(policy, q, torch.tensor([0, 2])), policy)


def test_improvement_does_not_depend_on_the_reference_or_on_a_shift() -> None:
    policy = softmax_policy(torch.randn(5, 4, generator=seeded(1), dtype=torch.float64), 1.0)
    q = torch.randn(5, 4, generator=seeded(2), dtype=torch.float64)
    expected = monte_carlo_improvement(policy, q, greedy_action(q))
    assert_close(monte_carlo_improvement(policy, q, torch.zeros(5, dtype=torch.int64)), expected)
    assert_close(monte_carlo_improvement(policy, q + 100, greedy_action(q)), expected)


def test_improvement_survives_huge_values() -> None:
    improved = monte_carlo_improvement(torch.tensor([0.5, 0.5]), torch.tensor([1e4, -1e4]), torch.tensor(0))
    assert improved.tolist() == [1, 0]


# --- Gradients, device, errors. ---


def test_behaviour_is_detached() -> None:
    q = torch.zeros(2, 3, requires_grad=True)
    assert not epsilon_greedy_policy(q, 0.1).requires_grad
    assert not monte_carlo_improvement(torch.full((2, 3), 1 / 3), q, torch.tensor([0, 0])).requires_grad


def test_nothing_looks_at_values() -> None:
    q = torch.empty(4, 3, device="meta")
    epsilon = torch.empty(4, device="meta")
    assert greedy_action(q).shape == (4,)
    assert epsilon_greedy_action(q, 0.5, seeded()).shape == (4,)
    assert epsilon_greedy_action(q, epsilon, seeded()).shape == (4,)
    assert boltzmann_action(q, 1.0, seeded()).shape == (4,)
    assert epsilon_greedy_policy(q, epsilon).shape == (4, 3)
    assert monte_carlo_improvement(q, q, greedy_action(q)).shape == (4, 3)


@pytest.mark.parametrize("epsilon", [-0.1, 1.5, math.nan])
def test_an_epsilon_outside_its_range_is_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match=r"^epsilon must be in \[0, 1\], got "):
        epsilon_greedy_action(torch.zeros(4, 3), epsilon, seeded())
    with pytest.raises(ValueError, match=r"^epsilon must be in \[0, 1\], got "):
        epsilon_greedy_policy(torch.zeros(4, 3), epsilon)


def test_a_column_of_epsilons_is_refused() -> None:
    message = r"^epsilon must have shape \(4,\), one entry per row of q \(4, 3\), got \(4, 1\)$"
    with pytest.raises(ValueError, match=message):
        epsilon_greedy_action(torch.zeros(4, 3), torch.zeros(4, 1), seeded())
    with pytest.raises(ValueError, match=message):
        epsilon_greedy_policy(torch.zeros(4, 3), torch.zeros(4, 1))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"^temperature must be positive and finite, got "):
        softmax_policy(torch.zeros(4, 3), temperature)
    with pytest.raises(ValueError, match=r"^temperature must be positive and finite, got "):
        boltzmann_action(torch.zeros(4, 3), temperature, seeded())


def test_values_without_actions_are_refused() -> None:
    message = r"^q must have an action axis, shape \(\.\.\., A\), got \(\)$"
    with pytest.raises(ValueError, match=message):
        greedy_action(torch.tensor(1.0))
    with pytest.raises(ValueError, match=message):
        epsilon_greedy_action(torch.tensor(1.0), 0.1, seeded())
    with pytest.raises(ValueError, match=message):
        epsilon_greedy_policy(torch.tensor(1.0), torch.tensor(0.1))
    with pytest.raises(ValueError, match=message):
        softmax_policy(torch.tensor(1.0), 1.0)


def test_improvement_refuses_shapes_that_would_broadcast() -> None:
    q = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"^policy must have the shape of q \(4, 3\), got \(3,\)$"):
        monte_carlo_improvement(torch.ones(3), q, greedy_action(q))
    with pytest.raises(ValueError, match=r"^best_action must have shape \(4,\), .* got \(4, 1\)$"):
        monte_carlo_improvement(q, q, torch.zeros(4, 1, dtype=torch.int64))
