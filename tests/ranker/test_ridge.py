from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrec.ranker.ridge import ridge


@pytest.mark.parametrize(("n", "d"), [(40, 6), (8, 12), (1, 3)])
@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_it_is_numpys_least_squares_over_rows_and_rows_of_penalty(n: int, d: int, penalty: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(2, 1, (n, d)) * np.arange(1, d + 1)
    y = x @ rng.normal(0, 1, (d, 3)) + rng.normal(5, 1, (n, 3))
    weight, offset = ridge(torch.from_numpy(x).float(), torch.from_numpy(y).float(), penalty)
    size = penalty * ((x - x.mean(0)) ** 2).sum() / d
    rows = np.vstack([np.hstack([x, np.ones((n, 1))]), np.hstack([np.eye(d) * np.sqrt(size), np.zeros((d, 1))])])
    wanted = np.linalg.lstsq(rows, np.vstack([y, np.zeros((d, 3))]), rcond=None)[0]
    if n == 1:
        assert not weight.any()
        wanted = np.vstack([np.zeros((d, 3)), y])
    fresh = rng.normal(2, 1, (5, d))
    found = torch.from_numpy(fresh).float() @ weight + offset
    np.testing.assert_allclose(found.numpy(), fresh @ wanted[:-1] + wanted[-1], rtol=1e-3, atol=1e-3)


def test_inputs_that_are_all_alike_foretell_the_mean() -> None:
    weight, offset = ridge(torch.ones(4, 2), torch.tensor([[1.0], [2.0], [3.0], [6.0]]), 1.0)
    assert not weight.any() and float(offset) == pytest.approx(3.0)
