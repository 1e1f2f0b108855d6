"""Numbers as bins, so that tables can learn environments with continuous observations."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, MultiDiscrete
from torch import Tensor

from faults import ConfigError


class Bins:
    """Cuts each number of an observation into equal bins between two bounds; what lies outside counts to the outer
    bins.

    Equation:
        bin = clip(floor((x - low) / (high - low) * count), 0, count - 1)
    """

    def __init__(
        self,
        space: gym.Space[object],
        env_id: str,
        counts: Sequence[int],
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
    ) -> None:
        """Reads the bounds.

        Args:
            space: a Box of D numbers.
            env_id: for the error line.
            counts: bins of each number, or one entry for all of them.
            low: lower bound of each number, None: the space's own.
            high: upper bound of each number, None: the space's own.

        Raises:
            ConfigError: if the space is no vector, a bound is missing, or the lists do not have D entries.
        """
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise ConfigError(f"env.discretize needs a vector of numbers; {env_id} has {space}")
        size = space.shape[0]
        counts = list(counts) * size if len(counts) == 1 else list(counts)
        for key, entries in (("bins", counts), ("low", low), ("high", high)):
            if entries is not None and len(entries) != size:
                raise ConfigError(f"env.{key} must have {size} entries for {env_id}, got {len(entries)}")
        self._low = torch.as_tensor(np.asarray(space.low if low is None else low, np.float64))
        self._high = torch.as_tensor(np.asarray(space.high if high is None else high, np.float64))
        self._counts = torch.as_tensor(counts)
        if not bool((torch.isfinite(self._high - self._low) & (self._high > self._low)).all()):
            raise ConfigError(
                f"{env_id} has unbounded observations, so env.low and env.high must say where the bins lie "
                f"(its own: {_bounds(space.low)} to {_bounds(space.high)})"
            )
        self.space = MultiDiscrete(counts)

    def __call__(self, obs: Tensor) -> Tensor:
        """(N, D) numbers -> (N, D) int64 bins."""
        share = (obs.double() - self._low) / (self._high - self._low)
        return torch.minimum((share * self._counts).floor().long().clamp(min=0), self._counts - 1)


def _bounds(values: np.ndarray) -> str:
    return "[" + ", ".join("inf" if v > 1e30 else "-inf" if v < -1e30 else f"{v:.3g}" for v in values) + "]"
