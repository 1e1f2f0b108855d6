"""Numbers as bins or as tiles, so that tables can learn environments with continuous observations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, MultiDiscrete
from torch import Tensor

from contract import Tilings
from faults import ConfigError


class Bins:
    """Cuts each number of an observation into equal bins between two bounds; what lies outside counts to the outer
    bins.

    Equation:
        bin = clip(floor((x - low) / (high - low) * count), 0, count - 1)
    """

    def __init__(
        self,
        space: gym.Space[Any],
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
        return torch.minimum(self._in_bins(obs).floor().long(), self._counts - 1)

    def _in_bins(self, obs: Tensor) -> Tensor:
        """(N, D) numbers, measured in bins: 0 to count."""
        share = (obs.double() - self._low) / (self._high - self._low)
        return (share * self._counts).clamp(torch.zeros(()), self._counts)


class Tiles(Bins):
    """Several grids of bins, each shifted by a fraction of a bin: nearby observations share most of their tiles.

    Equation:
        shift of tiling k in number d = (k * (2 d + 1) / K) mod 1 bins,  k and d from 0
        tile of tiling k = the digits floor(bins_d + shift), read as one number

    Shifts by the first odd integers keep the tiles from lining up along a diagonal. They are all different where K is a
    power of two; the book recommends one of at least 4 D.

    Source:
        Sutton and Barto 2018, section 9.5.4 (Miller and Glanz 1996 for the shifts).
    """

    def __init__(
        self,
        space: gym.Space[Any],
        env_id: str,
        counts: Sequence[int],
        low: Sequence[float] | None = None,
        high: Sequence[float] | None = None,
        tilings: int = 8,
    ) -> None:
        """Reads the bounds and places the tilings.

        Args:
            space: a Box of D numbers.
            env_id: for the error line.
            counts: tiles of each number, or one entry for all of them. A shifted tiling has one more.
            low: lower bound of each number, None: the space's own.
            high: upper bound of each number, None: the space's own.
            tilings: K.

        Raises:
            ConfigError: as `Bins`.
        """
        super().__init__(space, env_id, counts, low, high)
        odd = 2 * torch.arange(len(self._counts)) + 1
        self._shift = (torch.arange(tilings)[:, None] * odd % tilings).double() / tilings  # (K, D)
        tiles = self._counts + (1 if tilings > 1 else 0)  # (D,): of each tiling
        self._last = self._counts - 1 + (self._shift > 0)  # (K, D)
        self._place = torch.cat([tiles.flip(0).cumprod(0).flip(0)[1:], torch.ones(1, dtype=torch.int64)])
        self.space = Tilings([int(tiles.prod())] * tilings)

    def __call__(self, obs: Tensor) -> Tensor:
        """(N, D) numbers -> (N, K) int64: the active tile of each tiling."""
        digits = (self._in_bins(obs)[:, None, :] + self._shift).floor().long()
        return (torch.minimum(digits, self._last) * self._place).sum(-1)


def _bounds(values: np.ndarray) -> str:
    return "[" + ", ".join("inf" if v > 1e30 else "-inf" if v < -1e30 else f"{v:.3g}" for v in values) + "]"
