"""The log of ended episodes that kernels keep, so that nobody has to look at every step whether something has ended.

Each environment has `KEPT` slots. The episode that ends as its k-th since the log was last read goes into slot
k % KEPT, and `count` says how many there were: if they were more than `KEPT`, the newest are left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import warp as wp
from numpy.typing import NDArray
from torch import Tensor

KEPT = 32
SLOTS = wp.constant(KEPT)


def read_log(count: Tensor) -> tuple[Tensor, Tensor]:
    """Says where the episodes are that ended since the last call, and begins the log anew.

    Args:
        count: (N,) int32, on the device; it is set to 0.

    Returns:
        env: (K,) int64, environment of each episode, ascending, on the CPU.
        slot: (K,) int64, where it is in the log; in an environment episodes come in the order in which they ended.
    """
    ended = count.cpu().numpy()
    env = np.flatnonzero(ended)
    if not len(env):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    total = ended[env].astype(np.int64)
    kept = np.minimum(total, KEPT)
    first = np.repeat(np.cumsum(kept) - kept, kept)
    number = np.arange(len(first)) - first + np.repeat(total - kept, kept)
    count.zero_()
    return torch.from_numpy(np.repeat(env, kept)), torch.from_numpy(number % KEPT)


def entries(log: Any, env: Tensor, slot: Tensor) -> NDArray[Any]:
    """(N, KEPT, ...) on the device -> (K, ...): the entries that `read_log` named."""
    on_device: Tensor = wp.to_torch(log)
    return on_device[env, slot].cpu().numpy()
