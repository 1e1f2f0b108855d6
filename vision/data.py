"""What a set of labelled images is, for every kind of label, and every set by its name.

A set has images and, for each of its heads, targets. A head says what its targets mean: `Classes` (what the image, or
each cell of a grid over it, is) or `Amounts` (where something is, how many there are). A learner needs to know no more.

A set's name stands for a dataclass of options (`source_class`), which loads or generates the images.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor

from faults import ConfigError, check_choice, closest
from vision.config import check_fractions

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
    test: Tensor | None = None
    """(M,) bool: the images that the makers of the set keep for testing; None if they leave that to its users."""

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: Tensor) -> ImageData:
        """The images (M',) int64 or (M,) bool of `index`, as a set of its own."""
        targets = {name: target[index] for name, target in self.targets.items()}
        test = None if self.test is None else self.test[index]
        return replace(self, images=self.images[index], targets=targets, group=self.group[index], test=test)

    def evenly(self, count: int) -> Tensor:
        """(count,) int64: images spread evenly over the set, whose neighbours are often of one group; all, if it has no
        more."""
        return torch.linspace(0, len(self) - 1, min(count, len(self))).long()


class Source(Protocol):
    """Where images come from: a dataclass of options."""

    def load(self, seed: int) -> ImageData:
        """The whole set: the same for the same options and, if it is generated, the same seed."""
        ...


SOURCES = {
    "cifar10": "vision.files.Cifar10",
    "cifar100": "vision.files.Cifar100",
    "mnist": "vision.files.Mnist",
    "fashion_mnist": "vision.files.FashionMnist",
    "folder": "vision.files.Folder",
    "atari_ram": "vision.atari_ram.AtariRam",
    "driving_scenes": "vision.driving_scenes.DrivingScenes",
}
"""Name -> where its dataclass is. Imported when asked for: emulators and kernels take a second to load."""


def source_class(name: str) -> type[Source]:
    """The dataclass of the options of a set.

    Raises:
        ConfigError: if there is no such set.
    """
    check_choice("data", name, SOURCES)
    module, _, attribute = SOURCES[name].rpartition(".")
    found: type[Source] = getattr(importlib.import_module(module), attribute)
    return found


def load(name: str, options: Mapping[str, Any] | None = None, seed: int = 0) -> ImageData:
    """Loads or generates a set.

    Args:
        name: one of `SOURCES`.
        options: fields of the set's dataclass that differ from their defaults.
        seed: of what is generated; sets that lie in files do not depend on it.

    Raises:
        ConfigError: for an unknown set or option, or a value out of range.
        DataError: if files are missing or damaged.
    """
    source, options = source_class(name), dict(options or {})
    known = [field.name for field in fields(source)]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            raise ConfigError(f"data={name} has no option '{option}'.{closest(option, known)}")
    return source(**options).load(seed)


def split(data: ImageData, fractions: Sequence[float], seed: int) -> list[ImageData]:
    """Divides a set by groups drawn from the seed: no two parts share one.

    Args:
        data: the set.
        fractions: what part of the groups each gets; their sum is 1. Where the makers of the set keep images for
            testing, these are the last part, and the others share the rest in proportion.
        seed: of the draw.

    Raises:
        ConfigError: if the fractions are no division, or there are fewer groups than parts.
    """
    check_fractions(fractions)
    if data.test is not None:
        rest = data.take(~data.test)
        shares = [fraction / sum(fractions[:-1]) for fraction in fractions[:-1]]
        return [*(split(replace(rest, test=None), shares, seed) if shares else []), data.take(data.test)]
    groups = torch.unique(data.group)
    if len(groups) < len(fractions):
        raise ConfigError(f"{len(groups)} groups of images cannot be split into {len(fractions)} parts")
    drawn = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))]
    ends: list[int] = []
    for k in range(len(fractions)):
        fair, first = round(sum(fractions[: k + 1]) * len(groups)), ends[-1] if ends else 0
        ends.append(min(max(fair, first + 1), len(groups) - len(fractions) + k + 1))  # no part is empty
    return [data.take(torch.isin(data.group, part)) for part in drawn.tensor_split(ends[:-1])]
