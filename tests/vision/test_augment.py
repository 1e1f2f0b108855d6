"""Augmentations against what they say of single images, for bytes and for floats."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vision.augment import random_colour, random_crop, random_flip, random_shift

BATCH = 40


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(channels: int, dtype: torch.dtype) -> Tensor:
    return torch.randint(256, (BATCH, channels, 9, 7), generator=generator(5)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_shape_type_and_generator(channels: int, dtype: torch.dtype) -> None:
    given = images(channels, dtype)
    before = given.clone()
    for change in (
        lambda g: random_shift(given, 2, g),
        lambda g: random_crop(given, 2, g),
        lambda g: random_flip(given, g),
        lambda g: random_colour(given, 0.5, g),
    ):
        changed = change(generator())
        assert (changed.shape, changed.dtype) == (given.shape, dtype)
        assert torch.equal(changed, change(generator()))
        assert not torch.equal(changed, change(generator(1)))
        assert torch.equal(given, before)


@pytest.mark.parametrize(("augment", "mode"), [(random_shift, "replicate"), (random_crop, "constant")])
def test_each_image_is_a_window_of_the_padded_one(augment: object, mode: str) -> None:
    given = images(3, torch.float32)
    changed = augment(given, 2, generator())  # type: ignore[operator]
    padded = F.pad(given, (2, 2, 2, 2), mode)
    places = set()
    for large, small in zip(padded, changed, strict=True):
        found = [
            (y, x) for y in range(5) for x in range(5) if torch.equal(large[:, y : y + 9, x : x + 7], small)
        ]  # fmt: skip
        assert len(found) == 1
        places.add(found[0])
    assert len(places) > 12  # of 25
    assert {y for y, _ in places} == {x for _, x in places} == set(range(5))
    assert torch.equal(augment(given, 0, generator()), given)  # type: ignore[operator]


def test_about_half_of_the_images_are_mirrored() -> None:
    given = images(3, torch.uint8)
    mirrored = [
        torch.equal(after, before.flip(2)) for after, before in zip(random_flip(given, generator()), given, strict=True)
    ]
    kept = [torch.equal(a, b) for a, b in zip(random_flip(given, generator()), given, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert 10 < sum(mirrored) < 30


def test_colours_of_a_flat_grey_image_change_by_brightness_alone() -> None:
    """Contrast and saturation are measured from the mean and the grey, which a flat grey image is."""
    given = torch.full((BATCH, 3, 4, 4), 100.0)
    changed = random_colour(given, 0.5, generator())
    flat = changed.flatten(1)
    torch.testing.assert_close(flat, flat[:, :1].expand_as(flat))
    assert flat.min() >= 50
    assert flat.max() <= 150
    assert flat[:, 0].std() > 15
    assert torch.equal(random_colour(given, 0.0, generator()), given)


def test_the_brightness_of_one_pixel_by_hand() -> None:
    """Two grey levels: saturation cannot act; brightness b and contrast c take 40 and 80 to b (60 -+ 20 c)."""
    given = torch.tensor([[40.0, 80.0]]).view(1, 1, 1, 2).repeat(BATCH, 3, 1, 1)
    low, high = random_colour(given, 0.3, generator())[:, 0, 0].T
    brightness, contrast = (low + high) / 120, (high - low) / (low + high) * 3
    for factor in (brightness, contrast):
        assert factor.min() >= 0.7 - 1e-5
        assert factor.max() <= 1.3 + 1e-5
        assert factor.std() > 0.1
    assert abs(torch.corrcoef(torch.stack([brightness, contrast]))[0, 1]) < 0.5
    bright = random_colour(torch.full((BATCH, 3, 2, 2), 250, dtype=torch.uint8), 0.5, generator())
    assert bright.max() == 255  # cut, not wrapped around
