from __future__ import annotations

import numpy as np
import pytest

from llmrec.evaluation.calibration import calibration


def test_bins_error_and_brier_score_by_a_loop() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(1, 8, 1000).astype(np.float32)
    y = rng.random(1000) < p**1.3
    found = calibration(p, y)
    assert found is not None and [of.pairs for of in found.bins] == [100] * 10
    order, error = np.argsort(p), 0.0
    for b, of in enumerate(found.bins):
        rows = order[b * 100 : b * 100 + 100]
        assert (of.low, of.high) == (p[rows].min(), p[rows].max())
        assert of.predicted == pytest.approx(float(np.mean(p[rows], dtype=np.float64)))
        assert of.observed == pytest.approx(y[rows].mean())
        error += abs(of.predicted - of.observed) * 100 / 1000
    assert found.ece == pytest.approx(error)
    assert found.brier == pytest.approx(np.mean([(a - b) ** 2 for a, b in zip(p.tolist(), y.tolist(), strict=True)]))


def test_brier_score_and_error_by_another_library() -> None:
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    # As many pairs in each bin of equal width, so that these are bins of equal mass too.
    p = (np.arange(10).repeat(20) + np.tile(np.linspace(0.05, 0.95, 20), 10)) / 10
    y = np.random.default_rng(1).random(200) < p
    found = calibration(p, y)
    assert found is not None
    wanted = binary_calibration_error(torch.tensor(p), torch.tensor(y.astype(int)), n_bins=10, norm="l1")
    assert found.ece == pytest.approx(float(wanted), abs=1e-6)


def test_equal_probabilities_share_a_bin() -> None:
    found = calibration(np.asarray([0.1] * 50 + [0.4] * 50), np.arange(100) % 10 == 0)
    assert found is not None and [(of.low, of.pairs) for of in found.bins] == [(0.1, 50), (0.4, 50)]
    assert found.ece == pytest.approx(0.15)
    one = calibration(np.asarray([0.3]), np.asarray([True]))
    assert one is not None and len(one.bins) == 1 and one.brier == pytest.approx(0.49)
    assert calibration(np.empty(0), np.empty(0, bool)) is None
