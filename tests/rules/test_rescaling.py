"""Value rescaling: numbers by hand, and that the inverse is one."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from rules.rescaling import rescale, unscale


def test_numbers_by_hand() -> None:
    x = torch.tensor([0.0, 3.0, -8.0, 99.0], dtype=torch.float64)
    # sqrt(4) - 1 = 1, sqrt(9) - 1 = 2, sqrt(100) - 1 = 9, and epsilon x
    assert_close(rescale(x, 0.01), torch.tensor([0.0, 1.03, -2.08, 9.99], dtype=torch.float64))


@given(st.floats(-1e6, 1e6), st.sampled_from([1e-3, 1e-2, 1.0]))
def test_unscale_is_the_inverse(value: float, epsilon: float) -> None:
    x = torch.tensor([value], dtype=torch.float64)
    assert_close(unscale(rescale(x, epsilon), epsilon), x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan])
def test_an_epsilon_that_is_not_positive_is_refused(epsilon: float) -> None:
    for function in (rescale, unscale):
        with pytest.raises(ValueError, match="epsilon must be positive"):
            function(torch.ones(1), epsilon)
