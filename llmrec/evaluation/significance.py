"""Whether one ranking is better than another by more than chance."""

from __future__ import annotations

import numpy as np

from llmrec.evaluation.bootstrap import Seed

CELLS = 1 << 22  # signs held at once
SAME = 1e-9  # relative; sums of equal numbers in another order differ by less


def paired_permutation(differences: np.ndarray, resamples: int, seed: Seed) -> np.ndarray:
    """float64[columns]: two-sided p-values that the means of paired differences are 0 but for chance.

    The paired randomisation test (Smucker, Allan and Carterette, "A comparison of statistical significance tests for
    information retrieval evaluation", CIKM 2007): were two rankings alike, each user's difference could as well have
    the other sign. The p-value is the share of random signs whose mean is at least as far from 0, the observed signs
    counted among them (Phipson and Smyth, 2010), so that it is 1 / (resamples + 1) at least. That is the test of
    `scipy.stats.permutation_test(permutation_type="samples")`, which loops over users, for all columns at once.

    differences: float64[columns, users], one ranking's metrics less the other's.
    """
    # A user whose differences are all 0 adds nothing whatever his sign.
    moved = differences[:, differences.any(axis=0)]
    columns, users = moved.shape
    total = moved.sum(axis=1, keepdims=True)
    least = np.abs(total) - SAME * np.abs(moved).sum(axis=1, keepdims=True)
    extreme = np.zeros(columns, np.int64)
    rng = np.random.default_rng(seed)
    block = max(1, CELLS // max(users, 1))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        kept = np.unpackbits(rng.integers(0, 256, (size, -(-users // 8)), np.uint8), axis=1, count=users)
        # With the signs of those that are not kept turned, the sum is what is kept twice, less all.
        extreme += (np.abs(2 * (moved @ kept.T.astype(np.float64)) - total) >= least).sum(axis=1)
    return (extreme + 1) / (resamples + 1)
