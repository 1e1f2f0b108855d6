"""Networks for continuous actions: actors, and critics that value an observation with an action.

Actions are in units of the box: each number in [-1, 1], whatever the bounds of the environment are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faults import check_choice
from networks.backbones import BACKBONES, MLP, Backbone, make_backbone
from networks.transfer import Donor, begin_backbone

LOG_STD_RANGE = (-20.0, 2.0)
"""Between these a `GaussianActor` keeps the logarithm of the standard deviation."""


def make_encoder(name: str, space: gym.Space[Any], donor: Donor | None, freeze: bool) -> Backbone:
    """What reads observations before the hidden layers: a CNN for images, for everything else nothing that learns.

    Args:
        name: one of `BACKBONES`.
        space: of the observations.
        donor: whose backbone to begin with.
        freeze: never change it.

    Raises:
        ConfigError: if the backbone cannot read the observations, or is not the donor's.
    """
    check_choice("agent.backbone", name, BACKBONES)
    encoder = make_backbone(name, space, [])
    begin_backbone(encoder, name, donor, freeze)
    return encoder


class DeterministicActor(nn.Module):
    """Observation (B, *obs_shape) -> action (B, action_dim) in (-1, 1)."""

    def __init__(self, encoder: Backbone, hidden_sizes: Sequence[int], action_dim: int) -> None:
        super().__init__()
        self.body = MLP(encoder, hidden_sizes)
        self.head = nn.Linear(self.body.out_dim, action_dim)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.head(self.body(obs)))


class GaussianActor(nn.Module):
    """Observation (B, *obs_shape) -> means and logarithms of standard deviations (B, 2 * action_dim) before squashing.

    Both depend on the observation (Haarnoja et al. 2018, arXiv:1801.01290), unlike those of most on-policy agents.
    """

    def __init__(self, encoder: Backbone, hidden_sizes: Sequence[int], action_dim: int) -> None:
        super().__init__()
        self.body = MLP(encoder, hidden_sizes)
        self.head = nn.Linear(self.body.out_dim, 2 * action_dim)

    def forward(self, obs: Tensor) -> Tensor:
        mean, log_std = self.head(self.body(obs)).chunk(2, -1)
        return torch.cat([mean, log_std.clamp(*LOG_STD_RANGE)], -1)


class StackedLinear(nn.Module):
    """`count` linear layers side by side, in one matrix product: (count, B, in_dim) -> (count, B, out_dim).

    Weights and biases start uniform in +-1 / sqrt(in_dim), as those of `nn.Linear`.
    """

    def __init__(self, count: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        bound = in_dim**-0.5
        self.weight = nn.Parameter(torch.empty(count, in_dim, out_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(count, 1, out_dim).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class Critic(nn.Module):
    """`count` independent estimates of Q(s, a): observation (B, *obs_shape) and action (B, action_dim) -> (count, B).

    The action joins the encoded observation before the first hidden layer. An encoder with weights (a CNN) is shared by
    the estimates.
    """

    def __init__(self, encoder: Backbone, hidden_sizes: Sequence[int], action_dim: int, count: int) -> None:
        super().__init__()
        self.encoder, self.count = encoder, count
        sizes = [encoder.out_dim + action_dim, *hidden_sizes, 1]
        self.layers = nn.ModuleList(StackedLinear(count, a, b) for a, b in pairwise(sizes))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([self.encoder(obs), action], -1)  # (B, D)
        x = self.layers[0](x.expand(self.count, *x.shape))
        for layer in self.layers[1:]:
            x = layer(F.relu(x))
        q: Tensor = x.squeeze(-1)
        return q


@torch.no_grad()
def polyak_update(target: nn.Module, online: nn.Module, tau: float) -> None:
    """Moves the weights of a target network a step towards the network that learns.

    Equation:
        target <- target + tau * (online - target)

    Source:
        Lillicrap et al. 2016, arXiv:1509.02971, section 3.

    Args:
        target: changed in place.
        online: a network of the same structure.
        tau: size of the step in [0, 1]; 1 copies.
    """
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), tau)
