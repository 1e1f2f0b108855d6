"""Heads: features in, numbers with a meaning out. A is the number of actions, Z that of atoms or quantiles."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class QHead(nn.Module):
    """One linear layer: features (N, D) -> action values (N, A), or `width` numbers for each action (N, A, width)."""

    def __init__(self, in_dim: int, num_actions: int, width: int | None = None) -> None:
        super().__init__()
        self.q = nn.Linear(in_dim, num_actions * (width or 1))
        self.shape = (num_actions,) if width is None else (num_actions, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.q(features).unflatten(1, self.shape)  # type: ignore[no-any-return]


class DuelingQHead(nn.Module):
    """State value plus advantages: features (N, D) -> action values (N, A), or `width` numbers for each (N, A, width).

    Equation:
        Q(s, a) = V(s) + A(s, a) - mean_b A(s, b)

    Source:
        Wang et al. 2016, arXiv:1511.06581, equation 9; for each atom, Hessel et al. 2018, arXiv:1710.02298.

    Deviations:
        Both streams are one linear layer on shared features; the papers give each a hidden layer of its own.
    """

    def __init__(self, in_dim: int, num_actions: int, width: int | None = None) -> None:
        super().__init__()
        self.value = nn.Linear(in_dim, width or 1)
        self.advantage = nn.Linear(in_dim, num_actions * (width or 1))
        self.shape = (num_actions,) if width is None else (num_actions, width)

    def forward(self, features: Tensor) -> Tensor:
        value: Tensor = self.value(features).unflatten(1, (1, *self.shape[1:]))  # (N, 1) or (N, 1, width)
        advantage: Tensor = self.advantage(features).unflatten(1, self.shape)  # (N, A) or (N, A, width)
        return value + advantage - advantage.mean(dim=1, keepdim=True)


class DistributionHead(nn.Module):
    """Z numbers for the distribution of returns of each action; called, it gives their means: (N, D) -> (N, A)."""

    def __init__(self, in_dim: int, num_actions: int, width: int, dueling: bool) -> None:
        super().__init__()
        self.outputs = (DuelingQHead if dueling else QHead)(in_dim, num_actions, width)

    def distribution(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, A, Z)."""
        outputs: Tensor = self.outputs(features)
        return outputs

    def mean(self, distribution: Tensor) -> Tensor:
        """Expected returns: (..., Z) -> (...)."""
        raise NotImplementedError

    def forward(self, features: Tensor) -> Tensor:
        return self.mean(self.distribution(features))


class CategoricalHead(DistributionHead):
    """Logits of probabilities on fixed atoms.

    Source:
        Bellemare, Dabney and Munos 2017, arXiv:1707.06887, section 4.
    """

    support: Tensor

    def __init__(self, in_dim: int, num_actions: int, support: Tensor, dueling: bool) -> None:
        """Builds the layers; `support` (Z,) holds the atoms."""
        super().__init__(in_dim, num_actions, len(support), dueling)
        self.register_buffer("support", support, persistent=False)

    def mean(self, distribution: Tensor) -> Tensor:
        return torch.softmax(distribution, dim=-1) @ self.support


class QuantileHead(DistributionHead):
    """Quantiles at the levels of `rules.distributional.quantile_midpoints`.

    Source:
        Dabney, Rowland, Bellemare and Munos 2018, arXiv:1710.10044.
    """

    def mean(self, distribution: Tensor) -> Tensor:
        return distribution.mean(dim=-1)
