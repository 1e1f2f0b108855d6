"""Regression losses: batch means of `weight * loss of the sample`. B stands for any batch shape.

Shapes must agree exactly, and no gradient flows into the target.
"""

import torch.nn.functional as F
from torch import Tensor

from rules.checks import check_positive, check_same_shape


def squared_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of half squared errors; the half makes the gradient of a sample its error.

    Equation:
        error = prediction - target
        loss = mean(weight * error**2 / 2)

    Source:
        Sutton and Barto 2018, "Reinforcement Learning: An Introduction", 2nd edition, section 9.3: a gradient step on
        this loss is the semi-gradient update.

    Args:
        prediction: (B,) float, carries the gradient.
        target: (B,) float; detached here.
        weight: (B,) float, importance of each sample, for example from prioritised replay; None means 1. The mean
            divides by the number of samples, not by the sum of the weights.

    Returns:
        () float, half the mean squared error where no weight is given.

    Raises:
        ValueError: if the shapes differ.
    """
    _check(prediction, target, weight)
    return weighted_mean(0.5 * (prediction - target.detach()).square(), weight)


def huber_loss(prediction: Tensor, target: Tensor, delta: float = 1.0, weight: Tensor | None = None) -> Tensor:
    """Mean of Huber losses: half squared within delta, linear beyond, so that no sample pulls harder than delta.

    Equation:
        error = prediction - target
        loss = mean(weight * (error**2 / 2 if abs(error) <= delta else delta * (abs(error) - delta / 2)))

    Source:
        Huber 1964, "Robust Estimation of a Location Parameter". With delta = 1 its gradient is the error clipped to
        [-1, 1], as in Mnih et al. 2015, Nature 518, Methods.

    Args:
        prediction: (B,) float, carries the gradient.
        target: (B,) float; detached here.
        delta: positive, in units of the prediction; where the square ends.
        weight: (B,) float, importance of each sample, for example from prioritised replay; None means 1. The mean
            divides by the number of samples, not by the sum of the weights.

    Returns:
        () float.

    Raises:
        ValueError: if the shapes differ or delta is not positive.
    """
    _check(prediction, target, weight)
    check_positive(delta=delta)
    return weighted_mean(F.huber_loss(prediction, target.detach(), reduction="none", delta=delta), weight)


def _check(prediction: Tensor, target: Tensor, weight: Tensor | None) -> None:
    check_same_shape(prediction=prediction, target=target)
    if weight is not None:
        check_same_shape(prediction=prediction, weight=weight)


def weighted_mean(sample_loss: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of the samples' losses (B,), each times its weight (B,); None means 1."""
    return sample_loss.mean() if weight is None else (weight * sample_loss).mean()
