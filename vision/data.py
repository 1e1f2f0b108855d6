"""What a set of labelled images is, for every kind of label.

A set has images and, for each of its heads, targets. A head says what its targets mean: `Classes` (what the image, or
each cell of a grid over it, is) or `Amounts` (where something is, how many there are). A learner needs to know no more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from torch import Tensor

MISSING = -1
"""Target of a `Classes` head where there is no label: neither learned nor scored. `Amounts` have NaN there."""


@dataclass(frozen=True)
class Classes:
    """A head that names one of several classes."""

    names: tuple[str, ...]
    shape: tuple[int, ...] = ()
    """Of the targets of one image: () for one label, (rows, columns) for one per cell."""

    @property
    def num_outputs(self) -> int:
        return len(self.names) * prod(self.shape)


@dataclass(frozen=True)
class Amounts:
    """A head that states numbers."""

    names: tuple[str, ...]
    unit: str
    scale: float
    """A typical size, in `unit`: the learner predicts amounts divided by it."""

    @property
    def num_outputs(self) -> int:
        return len(self.names)


Head = Classes | Amounts


@dataclass(frozen=True)
class ImageData:
    """Labelled images. All tensors have the same first axis, M images."""

    images: Tensor
    """(M, C, H, W) uint8."""
    targets: dict[str, Tensor]
    """For each head: (M, *shape) int64 for `Classes`, (M, number of names) float32 for `Amounts`."""
    heads: dict[str, Head]
    group: Tensor
    """(M,) int64: the episode, the city or just the number of the image. A split never divides a group."""

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: Tensor) -> ImageData:
        """The images (M',) int64 or (M,) bool of `index`, as a set of its own."""
        targets = {name: target[index] for name, target in self.targets.items()}
        return replace(self, images=self.images[index], targets=targets, group=self.group[index])
