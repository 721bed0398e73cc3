from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from llmrec.evaluation import significance
from llmrec.evaluation.significance import paired_permutation


def scipys(differences: np.ndarray) -> float:
    """Exact: all signs of so few users."""
    return float(
        stats.permutation_test(
            (differences,), np.mean, permutation_type="samples", vectorized=True, n_resamples=10**6, axis=-1
        ).pvalue
    )  # fmt: skip


@pytest.mark.parametrize("shift", [0.0, 0.2, 0.6])
def test_against_the_exact_test_of_scipy(shift: float) -> None:
    rng = np.random.default_rng(1)
    # With ties and zeros, as metrics of few values have them.
    columns = np.stack([rng.normal(shift, 0.5, 11), rng.integers(-2, 4, 11) / 2, rng.normal(-shift, 1, 11)])
    found = paired_permutation(columns, 50_000, seed=0)
    assert found == pytest.approx([scipys(column) for column in columns], abs=0.01)


def test_equal_rankings_and_one_that_is_always_better() -> None:
    same, better = np.zeros(40), np.full(40, 0.5)
    assert paired_permutation(np.stack([same, better]), 999, 0).tolist() == [1.0, 1 / 1000]
    assert paired_permutation(np.zeros((2, 5)), 99, 0).tolist() == [1.0, 1.0]


def test_p_values_are_uniform_where_nothing_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "CELLS", 1000)  # several blocks
    found = paired_permutation(np.random.default_rng(2).normal(size=(300, 60)), 400, 0)
    assert stats.kstest(found, "uniform").pvalue > 0.01
