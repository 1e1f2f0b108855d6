"""Invertible rescaling of action values: large returns are learned at the scale of their square root."""

import torch
from torch import Tensor

from rules.checks import check_positive


def rescale(x: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Compresses returns.

    Equation:
        h(x) = sign(x) * (sqrt(|x| + 1) - 1) + epsilon * x

    Source:
        Pohlen et al. 2018, arXiv:1805.11593, Proposition A.2; Kapturowski et al. 2019, "Recurrent Experience Replay in
        Distributed Reinforcement Learning", section 2.3.

    Args:
        x: (...) float.
        epsilon: positive; keeps the inverse from growing too fast.

    Returns:
        (...) float.

    Raises:
        ValueError: if epsilon is not positive.
    """
    check_positive(epsilon=epsilon)
    return x.sign() * ((x.abs() + 1).sqrt() - 1) + epsilon * x


def unscale(x: Tensor, epsilon: float = 1e-3) -> Tensor:
    """The inverse of `rescale`.

    Equation:
        x = sign(x) * (((sqrt(1 + 4 * epsilon * (|x| + 1 + epsilon)) - 1) / (2 * epsilon))**2 - 1)

    Source:
        As `rescale`.

    Args:
        x: (...) float.
        epsilon: as it was given to `rescale`.

    Returns:
        (...) float.

    Raises:
        ValueError: if epsilon is not positive.
    """
    check_positive(epsilon=epsilon)
    root = (torch.sqrt(1 + 4 * epsilon * (x.abs() + 1 + epsilon)) - 1) / (2 * epsilon)
    return x.sign() * (root.square() - 1)
