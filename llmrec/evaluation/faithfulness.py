"""Are the cited items those that matter? Removed together, they should lower the score more than others would.

The comparison is that of "comprehensiveness" (DeYoung et al., ERASER, 2020), beside a random choice of as many items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.evaluation import bootstrap


@dataclass(frozen=True)
class Faithfulness:
    """Of `reasons` reasons of `users` users. cited, random: by how much the score falls, in the mean over users of each
    one's own mean, without the cited items, and without as many others; difference: the first less the second, with its
    95% bootstrap interval. None of no users."""

    users: int
    reasons: int
    cited: float | None
    random: float | None
    difference: float | None
    low: float | None
    high: float | None


def others(history: Sequence[int], cited: Sequence[int], seed: Sequence[int]) -> list[int] | None:
    """As many items of a history, none twice and none cited, chosen at random; None if there are fewer."""
    left = [item for item in dict.fromkeys(history) if item not in set(cited)]
    if not cited or len(left) < len(cited):
        return None
    chosen = np.random.default_rng(seed).choice(len(left), len(cited), replace=False)
    return [left[i] for i in chosen.tolist()]


def measure(cited: Sequence[float], random: Sequence[float], reasons: int, resamples: int, seed: int) -> Faithfulness:
    """cited, random: each user's mean fall of the scores of his reasons."""
    if not cited:
        return Faithfulness(0, 0, None, None, None, None, None)
    differences = np.asarray(cited, np.float64) - np.asarray(random, np.float64)
    low, high = bootstrap.interval(differences, resamples, seed)
    return Faithfulness(
        len(cited), reasons, float(np.mean(cited)), float(np.mean(random)), float(differences.mean()), low, high
    )
