"""Distributions of returns: published vectors, conservation, gradients, and what must not be read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from rules.distributional import (
    categorical_loss,
    categorical_projection,
    categorical_target,
    quantile_loss,
    quantile_midpoints,
    quantile_target,
)

both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def row(text: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([float(x) for x in text.split()], dtype=dtype)


# ---------------------------------------------------------------- projection

DOPAMINE = [  # rainbow_agent_test.py: source support, p, target support, expected
    ("0 1 2 3 4", ".1 .2 .1 .3 .3", "0 1 2 3 4", ".1 .2 .1 .3 .3"),
    ("0 1 2 3 4", ".1 .2 .1 .3 .3", "3 4 5 6 7", ".7 .3 0 0 0"),
    ("4 3 2 1 0", ".1 .2 .1 .3 .3", "3 4 5 6 7", ".9 .1 0 0 0"),
    ("0 2 4 6 8", ".1 .6 .1 .1 .1", "4 5 6 7 8", ".8 0 .1 0 .1"),
    ("1 3 4 5 6", ".1 .2 .5 .1 .1", "4 5 6 7 8", ".8 .1 .1 0 0"),
    ("0 2 4 6 8", ".1 .2 .3 .2 .2", "3 4 5 6 7", ".3 .3 0 .2 .2"),
    ("3 4 5 6 7", ".1 .2 .3 .2 .2", "3 4 5 6 7", ".1 .2 .3 .2 .2"),
    ("0 2 4 6 8", ".1 .2 .2 .2 .3", "0 4 8 12 16", ".2 .4 .4 0 0"),
    ("8 9 10 12 14", ".1 .2 .4 .1 .2", "0 4 8 12 16", "0 0 .45 .45 .1"),
]


@both_precisions
@pytest.mark.parametrize(("atoms", "probability", "support", "expected"), DOPAMINE)
def test_projection_reproduces_dopamine(
    atoms: str, probability: str, support: str, expected: str, dtype: torch.dtype
) -> None:
    projected = categorical_projection(row(atoms, dtype)[None], row(probability, dtype)[None], row(support, dtype))
    assert_close(projected, row(expected, dtype)[None], rtol=0, atol=1e-6)


numbers = st.floats(-20, 20, width=32)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(numbers, st.floats(0.01, 1)), min_size=2, max_size=7), st.integers(2, 9))
def test_projection_keeps_mass_and_where_it_can_the_mean(rows: list[tuple[float, float]], count: int) -> None:
    atoms = torch.tensor([[a for a, _ in rows]], dtype=torch.float64)
    probability = torch.tensor([[p for _, p in rows]], dtype=torch.float64)
    support = torch.linspace(-5, 5, count, dtype=torch.float64)
    projected = categorical_projection(atoms, probability, support)
    assert (projected >= 0).all()
    assert_close(projected.sum(), probability.sum())
    clipped = atoms.clamp(-5, 5)
    assert_close((projected * support).sum(), (probability * clipped).sum(), rtol=1e-9, atol=1e-9)


def test_target_after_a_terminal_is_the_reward_and_reads_nothing() -> None:
    support = row("0 1 2")
    nan = torch.full((2, 3), float("nan"), dtype=torch.float64)
    nan[1] = row(".2 .3 .5")
    target = categorical_target(row("1.25 .5"), row("0 .5"), nan, support)
    # second row: atoms 0.5, 1, 1.5 with .2 .3 .5: .1 to 0, .1 + .3 + .25 to 1, .25 to 2
    assert_close(target, torch.stack([row("0 .75 .25"), row(".1 .65 .25")]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: categorical_projection(torch.ones(2, 3), torch.ones(2, 1), torch.ones(3)),
            "atoms must have the shape",
        ),
        (lambda: categorical_projection(torch.ones(2, 3), torch.ones(2, 3), torch.ones(1)), "K at least 2"),
        (lambda: categorical_target(torch.ones(2, 1), torch.ones(2), torch.ones(2, 3), torch.ones(3)), "reward must"),
        (lambda: quantile_target(torch.ones(2), torch.ones(1), torch.ones(2, 3)), "discount must"),
        (lambda: categorical_loss(torch.ones(2, 3), torch.ones(3)), "target must have the shape of logits"),
        (lambda: quantile_loss(torch.ones(2, 3), torch.ones(1, 3), torch.ones(3)), "batch shape of prediction"),
        (lambda: quantile_loss(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2)), "one entry per quantile"),
        (
            lambda: quantile_loss(torch.ones(2, 3), torch.ones(2, 3), torch.ones(3), kappa=-1.0),
            "kappa must be positive",
        ),
    ],
)
def test_shapes_that_would_broadcast_are_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


# ---------------------------------------------------------------- categorical loss

REWARD, DISCOUNT, ATOMS = ".5 0 .5 .8 -.1", ".8 1 .8 0 1", ".5 1 1.5"
TD_LOGITS = ["0 9 0", "9 0 9", "0 9 0", "9 9 0", "9 0 9"]
TD_NEXT = ["0 0 9", "1 1 1", "0 0 9", "1 1 1", "0 9 9"]
CROSS_ENTROPY = "8.998915 3.6932087 8.998915 0.6932089 5.1929307"


def test_cross_entropies_of_rlax() -> None:
    """value_learning_test.py: the cross-entropy is the divergence and the entropy of the target."""
    logits, next_logits = (torch.stack([row(r) for r in rows]).requires_grad_() for rows in (TD_LOGITS, TD_NEXT))
    target = categorical_target(row(REWARD), row(DISCOUNT), next_logits.softmax(-1), row(ATOMS))
    loss = categorical_loss(logits, target)
    assert_close(loss + torch.special.entr(target).sum(-1), row(CROSS_ENTROPY), rtol=1e-4, atol=0)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert_close(gradient, logits.softmax(-1) - target)  # the cross-entropy's
    assert not target.requires_grad


def test_nothing_is_left_to_learn_at_the_target() -> None:
    logits = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_close(categorical_loss(logits, logits.softmax(-1)), torch.zeros(4, dtype=torch.float64))


# ---------------------------------------------------------------- quantiles


@both_precisions
@pytest.mark.parametrize(
    ("tau", "kappa", "expected"),
    [(".2 .7", 0.0, 2.0), ("0 .4", 0.0, 2.2), (".2 .7", 2.0, 1.25), ("0 .4", 2.0, 8.5 / 6)],
)
def test_quantile_regression_of_rlax(tau: str, kappa: float, expected: float, dtype: torch.dtype) -> None:
    """source [-1, 3], target [-3, 4, 2]; rlax does not divide by kappa."""
    loss = quantile_loss(row("-1 3", dtype)[None], row("-3 4 2", dtype)[None], row(tau, dtype), kappa)
    assert_close(loss, torch.tensor([expected], dtype=dtype))


Q = [["0 1 -5 6", "-1 3 0 -2"], ["-5 9 -5 6", "2 3 1 -4"], ["5 1 -5 7", "-1 3 0 -2"]]  # [b][tau], one number per action
NEXT_Q = [["0 5 2 2", "0 -3 2 2"], ["-3 -1 4 -3", "1 3 1 -4"], ["-2 2 -5 -7", "1 3 2 -2"]]
TAU = torch.stack([row(".2 .7"), row(".1 .5"), row(".3 .4")])


@pytest.mark.parametrize(("kappa", "expected"), [(0.0, "1.6 1.4 4.55"), (1.0, "1.275 1.1 3.95")])
def test_quantile_q_learning_of_rlax(kappa: float, expected: str) -> None:
    q, next_q = (torch.stack([torch.stack([row(r) for r in b]) for b in table]) for table in (Q, NEXT_Q))
    batch, action, next_action = torch.arange(3), torch.tensor([1, 2, 0]), torch.tensor([1, 3, 0])
    target = quantile_target(row(".5 -1 0"), row(".5 0 1"), next_q[batch, :, next_action])
    assert_close(target, torch.stack([row("3 -1"), row("-1 -1"), row("-2 1")]))
    assert_close(quantile_loss(q[batch, :, action], target, TAU, kappa), row(expected))


def test_a_terminals_quantiles_are_not_read() -> None:
    assert quantile_target(torch.ones(1), torch.zeros(1), torch.full((1, 3), float("nan"))).tolist() == [[1, 1, 1]]


def test_the_minimum_is_at_the_quantiles_of_the_samples() -> None:
    """Of the samples 0, 1, ..., 99 the quantiles at 1/8, 3/8, 5/8, 7/8 are 12, 37, 62 and 87, give or take one."""
    samples = torch.arange(100.0)[None]
    tau = quantile_midpoints(4)
    assert tau.tolist() == [0.125, 0.375, 0.625, 0.875]
    prediction = torch.zeros(1, 4, requires_grad=True)
    optimizer = torch.optim.Adam([prediction], lr=1.0)
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 2.0 * (1 - step / 600)
        optimizer.zero_grad()
        quantile_loss(prediction, samples, tau).sum().backward()
        optimizer.step()
    assert_close(prediction.detach(), torch.tensor([[12.0, 37.0, 62.0, 87.0]]), rtol=0, atol=1.1)
