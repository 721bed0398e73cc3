from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from llmrec.evaluation import bootstrap
from llmrec.evaluation.bootstrap import interval, means


def test_the_interval_holds_the_mean_and_shrinks_with_users() -> None:
    widths = []
    for n in (50, 500, 5000):
        values = np.random.default_rng(n).random(n)
        low, high = interval(values, 400, seed=1)
        assert low < values.mean() < high
        assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(n), rel=0.25)
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2]
    assert interval(values, 50, seed=1) == interval(values, 50, seed=1) != interval(values, 50, seed=2)
    assert np.isnan(interval(np.empty(0), 10, 0)).all()


def test_against_scipys_percentile_interval() -> None:
    values = np.random.default_rng(3).exponential(size=200)
    wanted = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert interval(values, 4000, 0) == pytest.approx(wanted, abs=0.03 * values.mean())


@pytest.mark.parametrize("cells", [1, 700, 1 << 22])
def test_columns_are_resampled_together_in_blocks_of_any_size(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "CELLS", cells)
    first = np.random.default_rng(0).random(30)
    found = means(np.stack([first, 2 * first + 1]), 100, seed=5)
    np.testing.assert_allclose(found[1], 2 * found[0] + 1)
    drawn = np.random.default_rng(5).integers(0, 30, (100, 30))
    np.testing.assert_allclose(found[0], first[drawn].mean(axis=1))
