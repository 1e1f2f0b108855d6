"""What the contrastive loss knows: nothing at first, everything in the end."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faults import ConfigError
from vision.contrastive import find_pairs, info_nce


def test_info_nce_by_hand() -> None:
    """Scores [[log 3, 0], [0, 0]]: the first query finds its key with 3/4, the second is at a loss."""
    query = torch.tensor([[[math.log(3), 0.0], [0.0, 0.0]]])
    key = torch.eye(2)[None]
    loss, found = info_nce(query, key)
    assert float(loss) == pytest.approx(-(math.log(3 / 4) + math.log(1 / 2)) / 2)
    assert float(found) == 0.5


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(2, 9), st.integers(0, 99))
def test_equal_scores_know_nothing_and_orthogonal_ones_everything(places: int, batch: int, seed: int) -> None:
    same = torch.ones(places, batch, 3)
    assert float(info_nce(same, same)[0]) == pytest.approx(math.log(batch), rel=1e-5)
    basis, _ = torch.linalg.qr(torch.randn(places, batch, batch, generator=torch.Generator().manual_seed(seed)))
    loss, found = info_nce(40 * basis, basis)
    assert float(loss) < 1e-4
    assert float(found) == 1


def test_the_order_of_the_batch_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 3, 7, 5, generator=generator)
    order = torch.randperm(7, generator=generator)
    assert float(info_nce(query, key)[0]) == pytest.approx(float(info_nce(query[:, order], key[:, order])[0]))


def test_partners_are_in_the_same_group() -> None:
    group = torch.tensor([5, 5, 5, 2, 2, 9])
    assert find_pairs(group, 1).tolist() == [0, 1, 3]
    assert find_pairs(group, 2).tolist() == [0]
    with pytest.raises(ConfigError, match="lower distance"):
        find_pairs(group, 3)
