"""Entry checks shared by the rules: they turn a silent broadcast or a nonsensical number into a one-line ValueError.

The first tensor passed to a shape check is the yardstick. Only shapes and dtypes of tensors are read, never their
values, so no check waits for a GPU.
"""

import math

import torch
from torch import Tensor


def check_same_shape(**tensors: Tensor) -> None:
    """Demand that every tensor has the shape of the first.

    Args:
        **tensors: tensors under the names that the caller's arguments have.

    Raises:
        ValueError: if a shape differs; nothing is broadcast, so (B, 1) does not pass for (B,).
    """
    (first, yardstick), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape != yardstick.shape:
            raise ValueError(f"{name} must have the shape of {first} {(*yardstick.shape,)}, got {(*tensor.shape,)}")


def check_one_per_row(**tensors: Tensor) -> None:
    """Demand that every tensor after the first has the first's shape without its last axis (the actions).

    Args:
        **tensors: one (B, A) tensor, then tensors that must be (B,), under the names of the caller's arguments.

    Raises:
        ValueError: if the first has no action axis, or another does not have one entry per row of it.
    """
    (first, table), *others = tensors.items()
    if table.dim() == 0:
        raise ValueError(f"{first} must have an action axis, shape (..., A), got ()")
    for name, tensor in others:
        if tensor.shape != table.shape[:-1]:
            raise ValueError(
                f"{name} must have shape {(*table.shape[:-1],)}, one entry per row of {first} {(*table.shape,)}, "
                f"got {(*tensor.shape,)}"
            )


def check_rollout(cut: Tensor, **tensors: Tensor) -> None:
    """Demand tensors of one shape (T, ...) with T at least 1, and a boolean cut.

    Args:
        cut: (T, ...) bool.
        **tensors: (T, ...) tensors under the names of the caller's arguments.

    Raises:
        ValueError: if the shapes differ, the time axis is missing or empty, or cut is not boolean.
    """
    check_same_shape(**tensors, cut=cut)
    if cut.dim() == 0 or cut.shape[0] == 0:
        raise ValueError(f"cut must have shape (T, ...) with T at least 1, got {(*cut.shape,)}")
    if cut.dtype != torch.bool:
        raise ValueError(f"cut must be a bool tensor, got {cut.dtype}")


def check_positive(**numbers: float) -> None:
    """Demand finite numbers above zero.

    Args:
        **numbers: numbers under the names of the caller's arguments.

    Raises:
        ValueError: if one is zero, negative, infinite or NaN.
    """
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {number}")


def check_fraction(**numbers: float) -> None:
    """Demand numbers in [0, 1].

    Args:
        **numbers: numbers under the names of the caller's arguments.

    Raises:
        ValueError: if one is outside [0, 1] or NaN.
    """
    for name, number in numbers.items():
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {number}")
