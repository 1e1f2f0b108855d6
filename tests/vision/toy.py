"""A set of tiny images that a network learns within seconds: a bright square in one of nine places."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vision.data import MISSING, Amounts, Classes, Head, ImageData

HEADS: dict[str, Head] = {
    "row": Classes(("top", "middle", "bottom")),
    "cells": Classes(("empty", "square"), (3, 3)),
    "centre": Amounts(("y", "x"), "pixels", scale=12.0),
}


@dataclass(frozen=True)
class Toy:
    """Films of eight images: the square goes from place to place. Some labels are missing."""

    num_films: int = 30
    size: int = 24
    """Height and width; a place is a third of it."""
    channels: int = 1

    def load(self, seed: int) -> ImageData:
        generator = torch.Generator().manual_seed(seed)
        film, moment = torch.arange(self.num_films), torch.arange(8)
        start = torch.randint(9, (self.num_films, 1), generator=generator)
        place = ((start + moment) % 9).flatten()
        row, column = place // 3, place % 3
        count = len(place)
        third = self.size // 3
        images = torch.randint(0, 40, (count, self.channels, self.size, self.size), generator=generator)
        y, x = torch.arange(self.size)[None, :, None] // third, torch.arange(self.size)[None, None, :] // third
        images[:, 0] += 200 * ((y == row[:, None, None]) & (x == column[:, None, None]))
        cells = torch.nn.functional.one_hot(place, 9).reshape(-1, 3, 3)
        centre = torch.stack([row, column], dim=1) * third + third / 2
        row, cells = row.clone(), cells.clone()
        row[::7], cells[:, 2, 2], centre[::5, 0] = MISSING, MISSING, float("nan")
        return ImageData(
            images.to(torch.uint8),
            {"row": row, "cells": cells, "centre": centre},
            dict(HEADS),
            film.repeat_interleave(8),
        )
