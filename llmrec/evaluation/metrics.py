"""Ranking metrics through ir-measures, and bootstrap intervals over users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ir_measures
import numpy as np
from ir_measures import RR, R, nDCG


def measures(cutoffs: Sequence[int]) -> list[ir_measures.Measure]:
    """Recall, NDCG and reciprocal rank at each cut-off."""
    return [m @ k for k in cutoffs for m in (R, nDCG, RR)]


def names(cutoffs: Sequence[int]) -> list[str]:
    return [f"{name}@{k}" for k in cutoffs for name in ("recall", "ndcg", "mrr")]


def per_user(
    truth: Mapping[str, Sequence[str]], ranked: Mapping[str, Sequence[str]], cutoffs: Sequence[int]
) -> dict[str, np.ndarray]:
    """float64[users] of each metric, in the order of `truth`; a user without a ranking counts 0.

    truth, ranked: user -> items, ranked best first. Scores are minus the rank, since trec_eval breaks ties its own way.
    """
    wanted = measures(cutoffs)
    label = {str(m): name for m, name in zip(wanted, names(cutoffs), strict=True)}
    row = {user: i for i, user in enumerate(truth)}
    values = {name: np.zeros(len(truth)) for name in label.values()}
    judged = {user: dict.fromkeys(items, 1) for user, items in truth.items()}
    run = {user: {item: -float(i) for i, item in enumerate(ranked[user])} for user in truth if ranked.get(user)}
    if run:
        for found in ir_measures.iter_calc(wanted, judged, run):
            values[label[str(found.measure)]][row[found.query_id]] = found.value
    return values


def interval(values: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean over users (Efron and Tibshirani, 1993, ch. 13)."""
    rng = np.random.default_rng(seed)
    n = len(values)
    if n == 0:
        return float("nan"), float("nan")
    means = [values[rng.integers(0, n, n)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
