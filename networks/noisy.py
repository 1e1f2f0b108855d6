"""Noisy linear layers: exploration that is learned, by weights that are drawn anew at every use."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NoisyLinear(nn.Module):
    """A linear layer whose weights are a learned mean plus learned multiples of noise: (N, D) -> (N, K).

    Without a generator (see `noise`) it is the linear layer of the means.

    Equation:
        y = (mu_w + sigma_w * eps_w) x + mu_b + sigma_b * eps_b
        eps_w[k, d] = f(eps_k) * f(eps_d),  eps_b[k] = f(eps_k),  f(e) = sign(e) * sqrt(|e|),  eps ~ N(0, 1)

    Source:
        Fortunato et al. 2018, arXiv:1706.10295, equations 9 to 11 (factorised noise) and section 3.2 (initial values).

    Deviations:
        Every row of the input has noise of its own, where a batch shares one draw in the paper. While acting, so that
        environments explore apart; while learning, because the gradient of a batch is then a mean over as many draws.
        Factorised noise makes it cheap: two matrix products instead of one. The price: sigma's gradient is less noisy
        too, so that with Adam sigma shrinks faster.
    """

    def __init__(self, in_dim: int, out_dim: int, sigma: float) -> None:
        """Draws the initial means.

        Args:
            in_dim: D.
            out_dim: K.
            sigma: initial multiple of the noise, times sqrt(D).
        """
        super().__init__()
        bound = 1 / math.sqrt(in_dim)
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_dim).uniform_(-bound, bound))
        self.weight_sigma = nn.Parameter(torch.full((out_dim, in_dim), sigma * bound))
        self.bias_sigma = nn.Parameter(torch.full((out_dim,), sigma * bound))
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        if self.generator is None:
            return y
        eps_in, eps_out = self._noise(x, x.shape[1]), self._noise(x, len(self.bias))
        return y + (F.linear(x * eps_in, self.weight_sigma) + self.bias_sigma) * eps_out

    def _noise(self, x: Tensor, width: int) -> Tensor:
        """f(eps): (N, width)."""
        eps = torch.randn(len(x), width, generator=self.generator, device=x.device)
        return eps.sign() * eps.abs().sqrt()


def make_noisy(module: nn.Module, sigma: float) -> None:
    """Replaces every linear layer within a module by a noisy one, with fresh weights. Tables of class codes
    (`OneHotLinear`) stay as they are."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, NoisyLinear(child.in_features, child.out_features, sigma))
        else:
            make_noisy(child, sigma)


@contextlib.contextmanager
def noise(generator: torch.Generator | None, *modules: nn.Module) -> Iterator[None]:
    """Within this context the noisy layers of the modules draw from `generator`; outside they use their means.

    Whoever draws owns the generator, so that acting, learning and evaluating do not disturb each other.

    Args:
        generator: on the modules' device; None for the means.
        *modules: whose layers draw anew at every call.
    """
    layers = [layer for module in modules for layer in module.modules() if isinstance(layer, NoisyLinear)]
    for layer in layers:
        layer.generator = generator
    try:
        yield
    finally:
        for layer in layers:
            layer.generator = None
