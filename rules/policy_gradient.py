"""Losses of actor-critic methods, and figures that tell how an update went. B stands for any batch shape.

Every mean is over the rows that are `valid` (None: all). Advantages and targets are constants: no gradient flows into
them. Losses are to be minimised.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rules.checks import check_fraction, check_same_shape


def masked_mean(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over the valid rows, whatever the others hold: (B,) float and (B,) bool or None -> () float."""
    if valid is None:
        return x.mean()
    check_same_shape(x=x, valid=valid)
    return torch.where(valid, x, 0.0).sum() / valid.sum()


@torch.no_grad()
def normalized(
    advantage: Tensor, valid: Tensor | None = None, total: Callable[[Tensor], Tensor] = lambda x: x
) -> Tensor:
    """Advantages with mean 0 and standard deviation 1 over the valid rows.

    Equation:
        (A - mean A) / (std A + 1e-8), with the unbiased standard deviation

    Source:
        Huang et al. 2022, "The 37 Implementation Details of PPO", detail 7.

    Args:
        advantage: (B,) float; a single row is returned as it is.
        valid: (B,) bool, or None.
        total: adds up what several learners have, each its own rows; mean and deviation are then those of all rows.

    Returns:
        (B,) float, detached.
    """
    valid = torch.ones_like(advantage, dtype=torch.bool) if valid is None else valid
    count = total(valid.sum())
    centered = advantage - total(torch.where(valid, advantage, 0.0).sum()) / count
    variance = total(torch.where(valid, centered.square(), 0.0).sum()) / (count - 1).clamp(min=1)
    return torch.where(count == 1, advantage, centered / (variance.sqrt() + 1e-8))


def policy_gradient_loss(log_prob: Tensor, advantage: Tensor, valid: Tensor | None = None) -> Tensor:
    """The loss whose gradient is the policy gradient.

    Equation:
        loss = -mean(log pi(a|s) * A)

    Source:
        Sutton and Barto 2018, "Reinforcement Learning: An Introduction", 2nd edition, section 13.5; Mnih et al. 2016,
        arXiv:1602.01783, section 4.

    Args:
        log_prob: (B,) float, carries the gradient.
        advantage: (B,) float; detached here.
        valid: (B,) bool, or None.

    Returns:
        () float.

    Raises:
        ValueError: if the shapes differ.
    """
    check_same_shape(log_prob=log_prob, advantage=advantage)
    return masked_mean(-log_prob * advantage.detach(), valid)


def ppo_clip_loss(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip: float, valid: Tensor | None = None
) -> Tensor:
    """Clipped surrogate objective: no reward for moving a probability further than `clip` from where it was.

    Equation:
        ratio = pi(a|s) / pi_old(a|s)
        loss = -mean(min(ratio * A, clamp(ratio, 1 - clip, 1 + clip) * A))

    Source:
        Schulman et al. 2017, arXiv:1707.06347, equation 7.

    Args:
        log_prob: (B,) float, carries the gradient.
        old_log_prob: (B,) float, at the moment of acting; detached here.
        advantage: (B,) float; detached here.
        clip: epsilon of the paper, in [0, 1].
        valid: (B,) bool, or None.

    Returns:
        () float.

    Raises:
        ValueError: if the shapes differ or clip is outside [0, 1].
    """
    check_same_shape(log_prob=log_prob, old_log_prob=old_log_prob, advantage=advantage)
    check_fraction(clip=clip)
    ratio, advantage = (log_prob - old_log_prob.detach()).exp(), advantage.detach()
    return masked_mean(-torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage), valid)


def value_loss(
    value: Tensor,
    target: Tensor,
    old_value: Tensor | None = None,
    clip: float | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the values (without a half: a coefficient of 0.5 means what it means elsewhere).

    Equation:
        loss = mean((V - target)**2)
        with `clip`: mean(max((V - target)**2, (V_old + clamp(V - V_old, -clip, clip) - target)**2))

    Source:
        Schulman et al. 2017, arXiv:1707.06347, equation 9. The clipping is that of OpenAI's baselines (Huang et al.
        2022, "The 37 Implementation Details of PPO", detail 9).

    Args:
        value: (B,) float, carries the gradient.
        target: (B,) float; detached here.
        old_value: (B,) float, at the moment of acting; needed for clipping.
        clip: positive, in units of the value; None: no clipping.
        valid: (B,) bool, or None.

    Returns:
        () float.

    Raises:
        ValueError: if the shapes differ, or there is nothing to clip against.
    """
    check_same_shape(value=value, target=target)
    target = target.detach()
    error = (value - target).square()
    if clip is not None:
        if old_value is None:
            raise ValueError("value clipping needs old_value")
        check_same_shape(value=value, old_value=old_value)
        old_value = old_value.detach()
        error = torch.max(error, (old_value + (value - old_value).clamp(-clip, clip) - target).square())
    return masked_mean(error, valid)


@torch.no_grad()
def approximate_kl(log_prob: Tensor, old_log_prob: Tensor, valid: Tensor | None = None) -> Tensor:
    """Estimate of KL(pi_old || pi) from actions drawn from pi_old: unbiased, never negative, low in variance.

    Equation:
        mean((ratio - 1) - log ratio),  ratio = pi(a|s) / pi_old(a|s)

    Source:
        Schulman 2020, "Approximating KL Divergence" (joschu.net/blog/kl-approx.html), the estimator k3.
    """
    log_ratio = log_prob - old_log_prob
    return masked_mean(log_ratio.exp() - 1 - log_ratio, valid)


@torch.no_grad()
def clip_fraction(log_prob: Tensor, old_log_prob: Tensor, clip: float, valid: Tensor | None = None) -> Tensor:
    """Share of the rows whose probability ratio lies outside [1 - clip, 1 + clip]: () float."""
    outside = ((log_prob - old_log_prob).exp() - 1).abs() > clip
    return masked_mean(outside.float(), valid)


@torch.no_grad()
def explained_variance(value: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """How much of the targets' variance the values explain.

    Equation:
        1 - var(target - V) / var(target): 1 is perfect, 0 is a constant, negative is worse than a constant

    Returns:
        () float; 0 where the targets do not vary.
    """
    check_same_shape(value=value, target=target)
    residual, total = _variance(target - value, valid), _variance(target, valid)
    return torch.where(total > 0, 1 - residual / torch.where(total > 0, total, 1.0), 0.0)


def _variance(x: Tensor, valid: Tensor | None) -> Tensor:
    return masked_mean((x - masked_mean(x, valid)).square(), valid)
