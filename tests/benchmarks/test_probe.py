"""The readouts of the probe benchmark."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.probe import ridge


def test_a_readout_is_least_squares_with_the_penalty_as_rows_and_without_unknown_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(50, width, generator=generator, dtype=torch.float64) for width in (4, 2))
    y[3:9, 1] = torch.nan
    weights = ridge(x, y, 0.3)
    for column, rows in ((0, slice(None)), (1, [*range(3), *range(9, 50)])):
        known, target = x[rows].numpy(), y[rows, column].numpy()
        extended = np.vstack([known, np.sqrt(0.3 * len(known)) * np.eye(4)])
        expected = np.linalg.lstsq(extended, np.concatenate([target, np.zeros(4)]), rcond=None)[0]
        np.testing.assert_allclose(weights[:, column].numpy(), expected, atol=1e-12)
