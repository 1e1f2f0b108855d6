"""Losses: values and gradients by hand, weights, the broadcast trap and detached targets."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rules.losses import huber_loss, squared_loss

Loss = Callable[..., Tensor]

both_losses = pytest.mark.parametrize("loss", [squared_loss, huber_loss])
both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@both_precisions
def test_squared_loss_is_the_mean_of_half_squares(dtype: torch.dtype) -> None:
    prediction, target = torch.tensor([1, 2, 5], dtype=dtype), torch.tensor([1, 4, 2], dtype=dtype)
    # errors 0, -2, 3: (0 + 4 + 9) / 2 / 3
    assert_close(squared_loss(prediction, target), torch.tensor(13 / 6, dtype=dtype))


@both_precisions
def test_huber_loss_is_quadratic_inside_and_linear_outside(dtype: torch.dtype) -> None:
    prediction, target = torch.tensor([0.5, -1, 3, -11], dtype=dtype), torch.zeros(4, dtype=dtype)
    # 0.125, 0.5 at the seam, 3 - 0.5, 11 - 0.5; together 13.625
    assert_close(huber_loss(prediction, target), torch.tensor(13.625 / 4, dtype=dtype))


@pytest.mark.parametrize(
    ("delta", "expected"),
    # error 3: half square 4.5 while delta >= 3; else delta * (3 - delta / 2): 2 * 2 = 4 and 0.5 * 2.75 = 1.375
    [(10.0, 4.5), (3.0, 4.5), (2.0, 4.0), (0.5, 1.375)],
)
def test_delta_moves_the_seam(delta: float, expected: float) -> None:
    assert_close(huber_loss(torch.tensor([3.0]), torch.tensor([0.0]), delta), torch.tensor(expected))


def test_a_large_error_tells_the_losses_apart() -> None:
    prediction, target = torch.tensor([100.0]), torch.tensor([0.0])
    assert squared_loss(prediction, target).item() == 5000
    assert huber_loss(prediction, target).item() == 99.5


@pytest.mark.parametrize(
    ("loss", "expected"),
    # errors 0.5, -4, 2 over three samples; Huber clips them to [-1, 1]
    [(squared_loss, [0.5 / 3, -4 / 3, 2 / 3]), (huber_loss, [0.5 / 3, -1 / 3, 1 / 3])],
)
def test_the_gradient_is_the_error_or_the_clipped_error(loss: Loss, expected: list[float]) -> None:
    prediction = torch.tensor([1.5, 0.0, 3.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(prediction, torch.tensor([1.0, 4.0, 1.0])), prediction)
    assert_close(gradient, torch.tensor(expected))


@both_losses
def test_weights_scale_samples_and_the_mean_still_counts_them(loss: Loss) -> None:
    prediction, target = torch.tensor([1.0, 9.0]), torch.tensor([0.0, 0.0])
    # half of 3 * 0.5, whatever the second sample costs
    assert_close(loss(prediction, target, weight=torch.tensor([3.0, 0.0])), torch.tensor(0.75))
    assert_close(loss(prediction, target, weight=torch.ones(2)), loss(prediction, target))


@both_losses
def test_a_sample_of_weight_zero_is_not_learned_from(loss: Loss) -> None:
    prediction = torch.tensor([1.0, 9.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(prediction, torch.zeros(2), weight=torch.tensor([1.0, 0.0])), prediction)
    assert gradient.tolist() == [0.5, 0.0]


@both_losses
def test_equal_vectors_cost_nothing(loss: Loss) -> None:
    q = torch.tensor([1.0, 2.0, 3.0])
    assert loss(q, q.clone()).item() == 0  # a silent (3,) x (3, 1) would cost 2/3 and 0.5556


@both_losses
@pytest.mark.parametrize("shape", [(3, 1), (1,), (), (1, 3)])
def test_a_target_that_would_broadcast_is_refused(loss: Loss, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^target must have the shape of prediction \(3,\), got \((\d.*)?\)$"):
        loss(torch.tensor([1.0, 2.0, 3.0]), torch.ones(shape))


@both_losses
def test_a_weight_that_would_broadcast_is_refused(loss: Loss) -> None:
    with pytest.raises(ValueError, match=r"^weight must have the shape of prediction \(3,\), got \(3, 1\)$"):
        loss(torch.ones(3), torch.ones(3), weight=torch.ones(3, 1))


@both_losses
def test_the_batch_loss_is_the_mean_of_single_losses(loss: Loss) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target, weight = (4 * torch.randn(16, generator=generator, dtype=torch.float64) for _ in range(3))
    singles = [loss(p, t, weight=w).item() for p, t, w in zip(prediction, target, weight, strict=True)]
    assert loss(prediction, target, weight=weight).item() == pytest.approx(sum(singles) / 16, rel=1e-12)


@both_losses
def test_no_gradient_reaches_the_target(loss: Loss) -> None:
    parameter = torch.tensor([2.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(parameter, 3 * parameter), parameter)
    # error 2 - 6 = -4 and d prediction / d parameter = 1; through the target it would be +8
    assert gradient.item() == (-4 if loss is squared_loss else -1)


@pytest.mark.parametrize("delta", [0.0, -1.0, math.inf, math.nan])
def test_a_delta_that_is_not_positive_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match=r"^delta must be positive and finite, got "):
        huber_loss(torch.ones(3), torch.ones(3), delta)
