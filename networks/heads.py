"""Heads: features in, numbers with a meaning out."""

from __future__ import annotations

from torch import Tensor, nn


class QHead(nn.Module):
    """One linear layer: features (N, D) -> action values (N, A)."""

    def __init__(self, in_dim: int, num_actions: int) -> None:
        super().__init__()
        self.q = nn.Linear(in_dim, num_actions)

    def forward(self, features: Tensor) -> Tensor:
        q: Tensor = self.q(features)
        return q


class DuelingQHead(nn.Module):
    """State value plus advantages: features (N, D) -> action values (N, A).

    Equation:
        Q(s, a) = V(s) + A(s, a) - mean_b A(s, b)

    Source:
        Wang et al. 2016, arXiv:1511.06581, equation 9.

    Deviations:
        Both streams are one linear layer on shared features; the paper gives each a hidden layer of its own.
    """

    def __init__(self, in_dim: int, num_actions: int) -> None:
        super().__init__()
        self.value = nn.Linear(in_dim, 1)
        self.advantage = nn.Linear(in_dim, num_actions)

    def forward(self, features: Tensor) -> Tensor:
        value: Tensor = self.value(features)  # (N, 1)
        advantage: Tensor = self.advantage(features)  # (N, A)
        return value + advantage - advantage.mean(dim=1, keepdim=True)
