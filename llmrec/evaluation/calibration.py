"""Do events happen as often as probabilities say?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Pairs whose probabilities lie from low to high. predicted: their mean; observed: the share that happened."""

    low: float
    high: float
    predicted: float
    observed: float
    pairs: int


@dataclass(frozen=True)
class Calibration:
    """bins: by probability, about as many pairs in each; ece: expected calibration error, the mean distance of
    predicted and observed, weighed by pairs (Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities
    using Bayesian binning", AAAI 2015; with bins of equal mass); brier: mean squared error (Brier, 1950)."""

    bins: list[Bin]
    ece: float
    brier: float


def calibration(predicted: np.ndarray, observed: np.ndarray, bins: int = BINS) -> Calibration | None:
    """
    predicted: float[pairs], probabilities; observed: bool[pairs]. None for no pairs. Equal probabilities share a bin,
    so that there may be fewer bins.
    """
    if not len(predicted):
        return None
    order = np.argsort(predicted, kind="stable")
    p, y = predicted[order].astype(np.float64), observed[order].astype(np.float64)
    cuts = p[np.arange(1, bins) * len(p) // bins]
    starts = np.unique(np.concatenate([[0], np.searchsorted(p, cuts)]))
    starts = starts[starts < len(p)]
    pairs = np.diff(np.append(starts, len(p)))
    means, shares = (np.add.reduceat(values, starts) / pairs for values in (p, y))
    ends = starts + pairs - 1
    return Calibration(
        [
            Bin(float(p[start]), float(p[end]), float(mean), float(share), int(n))
            for start, end, mean, share, n in zip(starts, ends, means, shares, pairs, strict=True)
        ],
        ece=float((pairs * np.abs(means - shares)).sum() / len(p)),
        brier=float(((p - y) ** 2).mean()),
    )
