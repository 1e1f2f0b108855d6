"""How good predictions are: pure functions of predictions and targets, each with its source.

Targets that are missing (`MISSING` of classes, NaN of amounts) are left out of every figure.
"""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor

from vision.data import MISSING

Z95 = 1.959963984540054
"""0.975 quantile of the normal distribution: 95 % of it lie within so many standard deviations."""


class Share(NamedTuple):
    """In how many of a number of cases something holds."""

    value: float
    """In [0, 1], NaN if there are no cases."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    cases: int


def wilson_interval(p: float, cases: float) -> tuple[float, float]:
    """The 95 % score interval of a proportion. It stays in [0, 1] and is right near its ends too.

    Equation:
        (p + z^2 / 2n  ±  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Source:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22(158).
    """
    z2 = Z95**2 / cases
    middle, half = p + z2 / 2, Z95 * sqrt(p * (1 - p) / cases + z2 / (4 * cases))
    return max(0.0, (middle - half) / (1 + z2)), min(1.0, (middle + half) / (1 + z2))


def share(hits: Tensor, cases: Tensor, group: Tensor) -> Share:
    """A proportion with an interval that knows that cases of one group (an image, an episode, a city) are alike.

    Equation:
        p = sum hits / sum cases;  interval: Wilson's of p and n / max(1, d) * (t_(n-1) / t_(G-1))^2 cases, with the
        design effect d = G / (G - 1) * sum_g (hits_g - p cases_g)^2 / (n p (1 - p)),  n = sum cases,  G groups,
        t_k the 0.975 quantile of Student's distribution: of few groups it is hard to know how much they differ

    Where all cases are hits, or none is, nothing tells how alike they are: cases count as independent then. One group
    of several cases tells nothing of another: the interval is [0, 1].

    Args:
        hits: (M,) of each image, at most `cases`.
        cases: (M,) of each image.
        group: (M,) int64.

    Source:
        Kish 1965, "Survey Sampling", section 8.2 (the design effect d); Korn and Graubard 1998, Survey Methodology
        24(2) (intervals of an effective number of cases).
    """
    hits, cases = hits.cpu().double(), cases.cpu().double()
    n = int(cases.sum())
    if n == 0:
        return Share(float("nan"), 0.0, 1.0, 0)
    p = float(hits.sum()) / n
    _, number = torch.unique(group.cpu()[cases > 0], return_inverse=True)
    groups = int(number.max()) + 1
    if groups == 1 < n:
        return Share(p, 0.0, 1.0, n)
    effective = float(n)
    if 0 < p < 1:
        apart = torch.zeros(groups, dtype=torch.float64).index_add_(0, number, (hits - p * cases)[cases > 0])
        design_effect = groups / (groups - 1) * float(apart.square().sum()) / (n * p * (1 - p))
        quantile, of_groups = (float(stdtrit(count - 1, 0.975)) for count in (n, groups))
        effective *= (quantile / of_groups) ** 2 / max(1.0, design_effect)
    return Share(p, *wilson_interval(p, effective), n)


def accuracy(predicted: Tensor, target: Tensor, group: Tensor) -> Share:
    """The share of right predictions.

    Args:
        predicted: (M, ...) int64.
        target: (M, ...) int64, `MISSING` where there is no label.
        group: (M,) int64.
    """
    return _share_of((predicted == target) & (target != MISSING), target != MISSING, group)


def share_within(predicted: Tensor, target: Tensor, distance: float, group: Tensor) -> Share:
    """The share of amounts that are off by at most `distance`.

    Args:
        predicted: (M, ...) float.
        target: (M, ...) float, NaN where there is no label.
        distance: in the unit of both.
        group: (M,) int64.
    """
    return _share_of((predicted - target).abs() <= distance, ~target.isnan(), group)


def share_all_within(predicted: Tensor, target: Tensor, distance: float, group: Tensor) -> Share:
    """The share of images of which every amount is off by at most `distance`.

    Args:
        predicted: (M, A) float.
        target: (M, A) float, NaN where there is no label; an image without any is left out.
        distance: in the unit of both.
        group: (M,) int64.
    """
    unlabelled = target.isnan()
    close = ((predicted - target).abs() <= distance) | unlabelled
    labelled = ~unlabelled.all(dim=1)
    return share((close.all(dim=1) & labelled), labelled, group)


def _share_of(hit: Tensor, labelled: Tensor, group: Tensor) -> Share:
    return share(hit.reshape(len(hit), -1).sum(dim=1), labelled.reshape(len(hit), -1).sum(dim=1), group)


def confusion_matrix(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Counts of each pair of true class (row) and predicted class (column).

    Args:
        predicted: (...) int64.
        target: (...) int64, `MISSING` where there is no label.
        num_classes: K.

    Returns:
        (K, K) int64.
    """
    labelled = target != MISSING
    pair = target[labelled] * num_classes + predicted[labelled]
    return torch.bincount(pair, minlength=num_classes**2).reshape(num_classes, num_classes)


def precision_and_recall(confusion: Tensor) -> tuple[Tensor, Tensor]:
    """Of each class: how many of those called so are so, and how many of those that are so are called so.

    Args:
        confusion: (K, K), rows are the true classes.

    Returns:
        Two (K,) float64; NaN for a class that was never predicted, or that never occurs.
    """
    right = confusion.diagonal().double()
    return right / confusion.sum(dim=0), right / confusion.sum(dim=1)


def mean_absolute_error(predicted: Tensor, target: Tensor) -> float:
    """The mean absolute error of amounts, in their unit; NaN targets are left out, and NaN comes if none is left."""
    return float((predicted - target).double().abs().nanmean())
