"""Prioritised experience replay: what surprised the learner most is drawn most often, and weighed down for it.

Sources:
    Schaul et al. 2016, arXiv:1511.05952, section 3.3 and Algorithm 1 (proportional variant).

Deviations:
    Weights are divided by the largest of their batch, not of the whole memory.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contract import Batch, EnvSpec, State, Transition
from memory.replay import Replay

PRIORITY_FLOOR = 1e-6
"""Added to every error, so that a sample without error is drawn again some day."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class SumTree:
    """Numbers of which one is drawn in proportion to its size, in logarithmic time and for whole arrays at once.

    A complete binary tree in one array: the root is at 1, the children of i at 2 i and 2 i + 1, and every inner node is
    the sum of its children. Sums are always formed anew from the children, so that no rounding errors pile up and the
    same leaves give the same tree.
    """

    def __init__(self, size: int) -> None:
        """Makes `size` leaves of value 0."""
        self.size = size
        self._depth = (size - 1).bit_length()
        self._first = 1 << self._depth
        self._nodes = np.zeros(2 * self._first)

    @property
    def bytes(self) -> int:
        return self._nodes.nbytes

    @property
    def total(self) -> float:
        return float(self._nodes[1])

    @property
    def leaves(self) -> Floats:
        """(size,), a view."""
        return self._nodes[self._first : self._first + self.size]

    def __getitem__(self, index: Ints) -> Floats:
        return self.leaves[index]

    def set(self, index: Ints, value: Floats) -> None:
        """Overwrites leaves; of an index that occurs twice, the last value stays.

        Args:
            index: (K,) in [0, size).
            value: (K,), finite and not negative.

        Raises:
            ValueError: if a value is negative, infinite or NaN; nothing is changed then.
        """
        if not (np.isfinite(value).all() and (value >= 0).all()):
            raise ValueError("priorities must be finite and not negative")
        node = index + self._first
        self._nodes[node] = value
        for _ in range(self._depth):
            node = node >> 1
            self._nodes[node] = self._nodes[2 * node] + self._nodes[2 * node + 1]

    def find(self, mass: Floats) -> Ints:
        """Leaves by cumulative sum: the first whose sum with all before it exceeds `mass`; never one of value 0.

        Args:
            mass: (K,) in [0, total).
        """
        node = np.ones(len(mass), np.int64)
        mass = mass.copy()
        for _ in range(self._depth):
            left = self._nodes[2 * node]
            # Rounding may leave a mass of just the sum: what is empty is not entered.
            right = (mass >= left) & (self._nodes[2 * node + 1] > 0)
            mass -= np.where(right, left, 0.0)
            node = 2 * node + right
        return node - self._first


class PrioritizedReplay:
    """A replay from which transitions are drawn in proportion to priority**alpha.

    Equation:
        P(i) = p_i**alpha / sum_k p_k**alpha,  p_i = |error_i| + PRIORITY_FLOOR
        w_i = (N P(i))**-beta / max_j w_j
    """

    def __init__(
        self, capacity: int, spec: EnvSpec, gamma: float, n_step: int, alpha: float, generator: np.random.Generator
    ) -> None:
        """Plans the memory; that of the observations is allocated at the first `add`.

        Args:
            capacity: transitions to hold, over all environments.
            spec: the environment's.
            gamma: discount per environment step.
            n_step: steps per sample.
            alpha: in [0, 1]; 0 draws uniformly.
            generator: draws the samples.
        """
        self._replay = Replay(capacity, spec, gamma, n_step, generator)
        self._num_envs = spec.num_envs
        self._alpha = alpha
        self._generator = generator
        self._tree = SumTree(self._replay.slots)
        self._max_priority = 1.0  # of all so far; the first transitions have nothing to compare with
        self._drawn: Ints = np.zeros(0, np.int64)

    @property
    def bytes(self) -> int:
        return self._replay.bytes + self._tree.bytes

    def __len__(self) -> int:
        return len(self._replay)

    def add(self, transition: Transition, reward: Tensor) -> None:
        """Stores one step of every environment, at the highest priority so far: each is to be seen at least once."""
        oldest, _ = self._replay.sampleable()
        self._replay.add(transition, reward)
        still, newest = self._replay.sampleable()
        gone = self._slots(np.arange(oldest, still))
        fresh = np.where(transition.valid.cpu().numpy(), self._max_priority**self._alpha, 0.0)
        self._tree.set(
            np.concatenate([gone, self._slots(np.array([newest]))]), np.concatenate([np.zeros(len(gone)), fresh])
        )

    def sample(self, batch_size: int, beta: float) -> tuple[Batch, Tensor]:
        """Draws transitions by priority, with replacement; one from each of `batch_size` equal shares of the total.

        Args:
            batch_size: B.
            beta: in [0, 1]; how much of the bias the weights take back.

        Returns:
            The batch, and the weights of its samples (B,) float32 in (0, 1].
        """
        mass = (np.arange(batch_size) + self._generator.random(batch_size)) * (self._tree.total / batch_size)
        self._drawn = self._tree.find(mass)
        priority = self._tree[self._drawn]
        weight = (priority.min() / priority) ** beta  # N and the total cancel
        row, env = np.divmod(self._drawn, self._num_envs)
        batch = self._replay.gather(self._replay.absolute(torch.from_numpy(row)), torch.from_numpy(env))
        return batch, torch.from_numpy(weight.astype(np.float32))

    def update_priorities(self, error: Tensor) -> None:
        """Gives the samples of the last batch new priorities.

        Args:
            error: (B,) errors, unweighted; the sign does not matter.

        Raises:
            ValueError: if one is not finite.
        """
        priority = error.detach().abs().double().cpu().numpy() + PRIORITY_FLOOR
        self._tree.set(self._drawn, priority**self._alpha)
        self._max_priority = max(self._max_priority, float(priority.max()))

    def mean_obs(self) -> Tensor:
        """Mean of the stored observations: (*obs_shape) float32."""
        return self._replay.mean_obs()

    def _slots(self, rows: Ints) -> Ints:
        """Leaves of all environments at absolute rows (R,): (R * N,)."""
        first = rows % (self._tree.size // self._num_envs) * self._num_envs
        return (first[:, None] + np.arange(self._num_envs)).ravel()

    def state_dict(self) -> State:
        return {
            "replay": self._replay.state_dict(),
            "priority": torch.from_numpy(self._tree.leaves),
            "max_priority": self._max_priority,
        }

    def load_state_dict(self, state: State) -> None:
        self._replay.load_state_dict(state["replay"])
        self._tree.set(np.arange(self._tree.size), np.asarray(state["priority"]))
        self._max_priority = float(state["max_priority"])
