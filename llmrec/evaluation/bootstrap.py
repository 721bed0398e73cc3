"""Bootstrap over users: means of resampled users, and intervals of them (Efron and Tibshirani, 1993, ch. 13)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CELLS = 1 << 22  # counts of resampled users held at once
Seed = int | Sequence[int]


def means(values: np.ndarray, resamples: int, seed: Seed) -> np.ndarray:
    """float64[columns, resamples]: the mean of each column over users drawn with replacement, NaN of no users.

    values: float64[columns, users]. A resample draws the same users for every column, so that differences of columns
    are paired, and a quotient of means is that of resampled sums.
    """
    columns, users = values.shape
    found = np.full((columns, resamples), np.nan)
    if users == 0:
        return found
    rng = np.random.default_rng(seed)
    block = max(1, CELLS // users)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(0, users, (size, users)) + np.arange(size)[:, None] * users
        times = np.bincount(drawn.ravel(), minlength=size * users).reshape(size, users)
        found[:, start : start + size] = values @ times.T.astype(np.float64) / users
    return found


def bounds(samples: np.ndarray) -> tuple[float, float]:
    """The middle 95% of resampled figures (float64[resamples]): the percentile interval."""
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)


def interval(values: np.ndarray, resamples: int, seed: Seed) -> tuple[float, float]:
    """95% interval of the mean of float64[users]; NaN of no users."""
    return bounds(means(values[None], resamples, seed)[0])
