"""Which images each update learns from, and how they are changed."""

from __future__ import annotations

import torch
from torch import Tensor

from contract import Streams
from vision.augment import random_colour, random_crop, random_flip, random_shift
from vision.config import AugmentConfig


class Batches:
    """Which images each update learns from. An epoch takes all in an order of its own, a batch at a time; the last few
    that fill no batch are left out."""

    def __init__(self, num_images: int, batch_size: int, streams: Streams) -> None:
        self._num_images, self._batch_size, self._streams = num_images, batch_size, streams
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def index(self, update: int) -> Tensor:
        """The images (B,) int64 of an update, counted from 0: a function of the seed and of `update` alone."""
        epoch, batch = divmod(update, max(1, self._num_images // self._batch_size))
        if epoch != self._epoch:
            generator = self._streams.torch("order", epoch)
            self._epoch, self._order = epoch, torch.randperm(self._num_images, generator=generator)
        return self._order[batch * self._batch_size : (batch + 1) * self._batch_size]


def augmented(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """The images (B, C, H, W) uint8 with the random changes that the keys ask for."""
    if config.crop:
        images = random_crop(images, config.crop, generator)
    if config.shift:
        images = random_shift(images, config.shift, generator)
    if config.flip:
        images = random_flip(images, generator)
    if config.colour:
        images = random_colour(images, config.colour, generator)
    return images
