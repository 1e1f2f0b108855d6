"""Splits never divide a group; sets are found by their names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faults import ConfigError
from vision.data import SOURCES, Classes, ImageData, load, source_class, split


def numbered(group: list[int]) -> ImageData:
    """A set whose only target is the number of the image."""
    count = len(group)
    return ImageData(
        images=torch.arange(count, dtype=torch.uint8).view(count, 1, 1, 1),
        targets={"number": torch.arange(count)},
        heads={"number": Classes(tuple(str(n) for n in range(count)))},
        group=torch.tensor(group),
    )


@settings(max_examples=40, deadline=None)
@given(
    group=st.lists(st.integers(0, 30), min_size=3, max_size=60).filter(lambda g: len(set(g)) >= 3),
    weights=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    seed=st.integers(0, 100),
)
def test_a_split_is_a_partition_by_groups(group: list[int], weights: list[int], seed: int) -> None:
    data, fractions = numbered(group), [w / sum(weights) for w in weights]
    parts = split(data, fractions, seed)
    assert len(parts) == len(fractions)
    assert sorted(torch.cat([part.targets["number"] for part in parts]).tolist()) == list(range(len(group)))
    owned = [set(part.group.tolist()) for part in parts]
    assert sum(map(len, owned)) == len(set(group))
    for part, groups, fraction in zip(parts, owned, fractions, strict=True):
        assert groups
        assert abs(len(groups) - fraction * len(set(group))) <= 2
        assert torch.equal(part.images.flatten().long(), part.targets["number"])
    again = split(data, fractions, seed)
    assert all(torch.equal(a.group, b.group) for a, b in zip(parts, again, strict=True))


def test_another_seed_is_another_split() -> None:
    data = numbered(list(range(50)))
    first, second = (split(data, [0.5, 0.5], seed)[0].group for seed in (0, 1))
    assert not torch.equal(first, second)


def test_a_test_set_of_the_makers_is_the_last_part() -> None:
    held = torch.arange(40) % 4 == 3
    train, validation, test = split(replace(numbered(list(range(40))), test=held), [0.6, 0.2, 0.2], 0)
    assert test.targets["number"].tolist() == list(range(3, 40, 4))
    assert (len(train), len(validation)) == (22, 8)  # three quarters, rounded, and one of the other 30
    (everything,) = split(replace(numbered([0, 1]), test=torch.tensor([True, True])), [1.0], 0)
    assert len(everything) == 2


def test_take_keeps_what_belongs_together() -> None:
    data = replace(numbered([5, 6, 7, 8]), test=torch.tensor([False, True, False, True]))
    assert data.test is not None
    for index in (torch.tensor([3, 1]), torch.tensor([False, True, False, True])):
        part = data.take(index)
        assert part.test is not None
        assert sorted(part.targets["number"].tolist()) == [1, 3]
        assert torch.equal(part.group, part.targets["number"] + 5)
        assert part.test.all()


def test_what_cannot_be_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"add up to 1, not 0\.9"):
        split(numbered([0, 1, 2]), [0.5, 0.4], 0)
    with pytest.raises(ConfigError, match="2 groups of images cannot be split into 3 parts"):
        split(numbered([0, 1, 1]), [0.4, 0.3, 0.3], 0)
    with pytest.raises(ConfigError, match="data split must be"):
        split(numbered([0, 1]), [1.0, 0.0], 0)
    with pytest.raises(ConfigError, match="data must be one of"):
        load("cifar11")
    with pytest.raises(ConfigError, match=r"no option 'num_image'\. Did you mean 'num_images'"):
        load("driving_scenes", {"num_image": 3})
    with pytest.raises(ConfigError, match=r"data.num_images must be in \[1, 1e\+07\], got 0"):
        load("atari_ram", {"num_images": 0})


def test_every_name_has_a_source() -> None:
    assert all(hasattr(source_class(name), "load") for name in SOURCES)
