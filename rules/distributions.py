"""Distributions over actions, as functions of one tensor of parameters. B stands for any batch shape.

    Categorical      parameters (B, A) logits, actions (B,) int64
    ClippedGaussian  parameters (B, 2 * D) means and logarithms of standard deviations, actions (B, D) float32
    TanhGaussian     the same

The environment gets `to_action(raw)`; log-probabilities are of the raw draw, which is what a memory keeps: a clipped or
squashed action does not tell what was drawn. Randomness comes from the generator that is passed in. Nothing here waits
for a GPU.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from faults import ConfigError
from rules.checks import check_one_per_row, check_same_shape

GAUSSIANS = ("clipped", "tanh")


class ActionDistribution(Protocol):
    """What an actor-critic agent asks of a distribution. It holds no state but the bounds of the action space."""

    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """A raw draw for each row."""
        ...

    def mode(self, parameters: Tensor) -> Tensor:
        """The most probable raw draw of each row."""
        ...

    def to_action(self, raw: Tensor) -> Tensor:
        """What the environment gets for a raw draw."""
        ...

    def log_prob(self, parameters: Tensor, raw: Tensor) -> Tensor:
        """(B,) log-probability, or log-density, of raw draws; differentiable in the parameters."""
        ...

    def entropy(self, parameters: Tensor) -> Tensor:
        """(B,) entropy in nats; differentiable in the parameters."""
        ...


def make_distribution(space: gym.Space[Any], gaussian: str, device: torch.device) -> ActionDistribution:
    """The distribution for an action space: Categorical for Discrete, one of `GAUSSIANS` for Box.

    Raises:
        ConfigError: if the space is neither, or a tanh Gaussian has no bounds to stretch to.
    """
    if isinstance(space, Discrete):
        return Categorical()
    if not isinstance(space, Box):
        raise ConfigError(f"actions must be Discrete or Box, not {type(space).__name__}")
    low, high = (torch.as_tensor(bound, dtype=torch.float32, device=device) for bound in (space.low, space.high))
    if gaussian == "clipped":
        return ClippedGaussian(low, high)
    if not np.isfinite(space.low).all() or not np.isfinite(space.high).all():
        raise ConfigError("agent.gaussian=tanh needs bounded actions; use agent.gaussian=clipped")
    return TanhGaussian(low, high)


class Categorical:
    """One of A actions, with probability softmax(logits)."""

    @torch.no_grad()
    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        """Inverse of the cumulative distribution at one uniform number per row: (B, A) -> (B,) int64."""
        cumulative = parameters.softmax(-1).cumsum(-1)
        coin = torch.rand(*parameters.shape[:-1], 1, generator=generator, device=parameters.device)
        last = parameters.shape[-1] - 1
        return (coin * cumulative[..., -1:] >= cumulative).sum(-1).clamp(max=last)

    def mode(self, parameters: Tensor) -> Tensor:
        return parameters.argmax(-1)

    def to_action(self, raw: Tensor) -> Tensor:
        return raw

    def log_prob(self, parameters: Tensor, raw: Tensor) -> Tensor:
        check_one_per_row(parameters=parameters, raw=raw)
        return parameters.log_softmax(-1).gather(-1, raw[..., None]).squeeze(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        log_prob = parameters.log_softmax(-1)
        return -(log_prob.exp() * log_prob).sum(-1)


class ClippedGaussian:
    """Independent Gaussians in the units of the action; the environment gets the draw clipped to its bounds."""

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self._low, self._high = low, high

    @torch.no_grad()
    def sample(self, parameters: Tensor, generator: torch.Generator) -> Tensor:
        mean, log_std = parameters.chunk(2, -1)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return mean + log_std.exp() * noise

    def mode(self, parameters: Tensor) -> Tensor:
        return parameters.chunk(2, -1)[0]

    def to_action(self, raw: Tensor) -> Tensor:
        return raw.clamp(self._low, self._high)

    def log_prob(self, parameters: Tensor, raw: Tensor) -> Tensor:
        return gaussian_log_prob(parameters, raw)

    def entropy(self, parameters: Tensor) -> Tensor:
        return gaussian_entropy(parameters)


class TanhGaussian(ClippedGaussian):
    """Gaussians squashed by tanh and stretched to the bounds of the action space.

    The log-density is that of the squashed variable tanh(raw) in (-1, 1), as usual; the constant of the stretching is
    left out.

    Source:
        Haarnoja et al. 2018, arXiv:1801.01290, appendix C.
    """

    def to_action(self, raw: Tensor) -> Tensor:
        action = self._low + (self._high - self._low) * 0.5 * (raw.tanh() + 1)
        return action.clamp(self._low, self._high)  # rounding may step over

    def log_prob(self, parameters: Tensor, raw: Tensor) -> Tensor:
        return gaussian_log_prob(parameters, raw) - log_tanh_slope(raw).sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        """Gaussian entropy plus the mean of log(1 - tanh(raw)**2), by quadrature: no draw, so no noise."""
        mean, log_std = parameters.chunk(2, -1)
        point, weight = (p.to(mean) for p in _HERMITE)
        raw = mean[..., None] + log_std.exp()[..., None] * point  # (B, D, points)
        return gaussian_entropy(parameters) + (log_tanh_slope(raw) * weight).sum((-2, -1))


def gaussian_log_prob(parameters: Tensor, x: Tensor) -> Tensor:
    """Log-density of independent Gaussians.

    Equation:
        log p(x) = sum_d -((x - mean) / std)**2 / 2 - log std - log(2 pi) / 2

    Args:
        parameters: (B, 2 * D) float, means and logarithms of standard deviations.
        x: (B, D) float.

    Returns:
        (B,) float.

    Raises:
        ValueError: if the shapes do not fit.
    """
    mean, log_std = parameters.chunk(2, -1)
    check_same_shape(mean=mean, x=x)
    z = (x - mean) * torch.exp(-log_std)
    return (-0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def gaussian_entropy(parameters: Tensor) -> Tensor:
    """Entropy of independent Gaussians in nats: sum_d log std + log(2 pi e) / 2; (B, 2 * D) -> (B,)."""
    log_std = parameters.chunk(2, -1)[1]
    return (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


def log_tanh_slope(x: Tensor) -> Tensor:
    """log(1 - tanh(x)**2), element by element, exact where tanh(x) rounds to 1.

    Equation:
        log(1 - tanh(x)**2) = 2 * (log 2 - x - softplus(-2 x))
    """
    return 2 * (math.log(2) - x - F.softplus(-2 * x))


def _hermite(points: int) -> tuple[Tensor, Tensor]:
    """Points and weights whose weighted sum is the mean over a standard Gaussian."""
    point, weight = np.polynomial.hermite_e.hermegauss(points)
    return torch.from_numpy(point), torch.from_numpy(weight / weight.sum())


_HERMITE = _hermite(32)
