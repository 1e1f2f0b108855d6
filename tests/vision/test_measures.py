"""Figures of predictions against numbers from tables, from counting by hand and from simulation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vision.data import MISSING
from vision.measures import (
    accuracy,
    confusion_matrix,
    mean_absolute_error,
    precision_and_recall,
    share,
    share_all_within,
    share_within,
    wilson_interval,
)

NAN = float("nan")


@pytest.mark.parametrize(
    ("hits", "cases", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, Statistics in Medicine 17, table I, method 3 (score)
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_those_of_newcombes_table(hits: int, cases: int, low: float, high: float) -> None:
    found = wilson_interval(hits / cases, cases)
    assert found == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 300), st.data())
def test_an_interval_holds_its_share_and_mirrors(cases: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, cases))
    low, high = wilson_interval(hits / cases, cases)
    assert 0 <= low <= hits / cases + 1e-12
    assert hits / cases - 1e-12 <= high <= 1
    assert wilson_interval(1 - hits / cases, cases) == pytest.approx((1 - high, 1 - low))


def test_independent_cases_have_wilsons_interval() -> None:
    hits = torch.tensor([1] * 81 + [0] * 182)
    found = share(hits, torch.ones(263), torch.arange(263))
    assert found.value == 81 / 263
    assert found.cases == 263
    assert found[1:3] == pytest.approx((0.2553, 0.3662), abs=2e-4)  # the design effect is 263 / 262


def test_cases_that_are_all_alike_in_a_group_count_as_one() -> None:
    """40 groups of 50 equal answers, 30 of them right, say no more than 30 of 40 (times the correction 39/40)."""
    right = torch.arange(40) < 30
    found = share(right.repeat_interleave(50), torch.ones(2000), torch.arange(40).repeat_interleave(50))
    assert found.cases == 2000
    few = (1.96115 / 2.02269) ** 2  # quantiles of Student's distribution with 1,999 and 39 degrees of freedom
    assert found[1:3] == pytest.approx(wilson_interval(0.75, 39 * few), abs=1e-5)


def test_an_image_of_many_cells_is_a_group_of_its_own() -> None:
    whole = share(torch.tensor([50] * 30 + [0] * 10), torch.full((40,), 50), torch.arange(40))
    apart = share(
        (torch.arange(40) < 30).repeat_interleave(50), torch.ones(2000), torch.arange(40).repeat_interleave(50)
    )
    assert whole == apart


def test_intervals_of_grouped_cases_cover_what_they_promise() -> None:
    """400 sets of 60 groups of 20 that share a chance of their own: an interval of all cases as one covers far less."""
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(60).repeat_interleave(20)
    covered, naive = 0, 0
    for _ in range(400):
        chance = torch.where(torch.rand(60, generator=generator) < 0.8, 0.95, 0.2)  # mean 0.8
        hits = torch.rand(1200, generator=generator) < chance[group]
        found = share(hits, torch.ones(1200), group)
        covered += found.low <= 0.8 <= found.high
        low, high = wilson_interval(found.value, 1200)
        naive += low <= 0.8 <= high
    assert 0.91 <= covered / 400 <= 0.98
    assert naive / 400 < 0.7


@pytest.mark.parametrize("groups", [3, 4, 8])
def test_intervals_of_few_groups_cover_what_they_promise(groups: int) -> None:
    """Games in which between 60 and 90 % of 300 frames are right."""
    generator = torch.Generator().manual_seed(1)
    group = torch.arange(groups).repeat_interleave(300)
    covered = 0
    for _ in range(400):
        chance = 0.6 + 0.3 * torch.rand(groups, generator=generator)
        found = share(torch.rand(300 * groups, generator=generator) < chance[group], torch.ones(300 * groups), group)
        covered += found.low <= 0.75 <= found.high
    assert covered / 400 >= 0.92


def test_one_group_tells_nothing_of_another() -> None:
    assert share(torch.ones(20), torch.ones(20), torch.zeros(20))[1:3] == (0.0, 1.0)


def test_nothing_to_count_is_no_number() -> None:
    found = share(torch.zeros(3), torch.zeros(3), torch.arange(3))
    assert math.isnan(found.value)
    assert found[1:] == (0.0, 1.0, 0)


def test_confusion_precision_and_recall_by_hand() -> None:
    target = torch.tensor([0, 0, 0, 1, 1, 2, MISSING])
    predicted = torch.tensor([0, 0, 1, 1, 0, 0, 2])
    confusion = confusion_matrix(predicted, target, 4)
    assert confusion.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    precision, recall = precision_and_recall(confusion)
    assert precision[:2].tolist() == [2 / 4, 1 / 2]
    assert precision[2:].isnan().all()  # never predicted
    assert recall[:3].tolist() == [2 / 3, 1 / 2, 0.0]
    assert recall[3].isnan()  # never there
    assert accuracy(predicted, target, torch.arange(7)).value == 3 / 6


def test_accuracy_of_cells_counts_labelled_cells() -> None:
    target = torch.tensor([[[0, 1], [MISSING, 1]], [[1, 1], [0, MISSING]]])
    predicted = torch.tensor([[[0, 0], [1, 1]], [[1, 1], [0, 0]]])
    found = accuracy(predicted, target, torch.arange(2))
    assert (found.value, found.cases) == (5 / 6, 6)


def test_shares_within_a_distance_by_hand() -> None:
    target = torch.tensor([[1.0, 10.0], [2.0, NAN], [NAN, NAN], [4.0, 40.0]])
    predicted = torch.tensor([[1.5, 12.0], [2.0, 99.0], [7.0, 7.0], [4.0, 39.5]])
    group = torch.arange(4)
    assert share_within(predicted[:, 0], target[:, 0], 0.4, group).value == 2 / 3
    assert share_within(predicted[:, 0], target[:, 0], 0.5, group).value == 1
    assert share_within(predicted, target, 1.0, group)[::3] == (4 / 5, 5)
    assert share_all_within(predicted, target, 1.0, group)[::3] == (2 / 3, 3)
    assert mean_absolute_error(predicted, target) == pytest.approx((0.5 + 2.0 + 0.5) / 5)
    assert math.isnan(mean_absolute_error(predicted[2], target[2]))
