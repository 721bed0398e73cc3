"""Are the cited items those that matter? Removed together, they should lower the score more than others would.

The comparison is that of "comprehensiveness" (DeYoung et al., ERASER, 2020), beside a random choice of as many items.
An item goes with all its events, so that the others are chosen to have about as many: a shorter history alone moves
scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.evaluation import bootstrap


@dataclass(frozen=True)
class Falls:
    """reasons: of all measured users. Of each, in the mean over his reasons: by how much the score falls without the
    cited items, and without others, and how many events that takes."""

    reasons: int
    cited: list[float]
    random: list[float]
    cited_events: list[float]
    random_events: list[float]


@dataclass(frozen=True)
class Faithfulness:
    """Of `reasons` reasons of `users` users. cited, random: by how much the score falls, in the mean over users of each
    one's own mean, without the cited items, and without as many others; difference: the first less the second, with its
    95% bootstrap interval. cited_events, random_events: how many events went with these, in the same mean. None of no
    users."""

    users: int
    reasons: int
    cited: float | None
    random: float | None
    difference: float | None
    low: float | None
    high: float | None
    cited_events: float | None
    random_events: float | None


def others(history: Sequence[int], cited: Sequence[int], seed: Sequence[int]) -> list[int] | None:
    """As many items of a history, none twice and none cited, each chosen at random of those that have as many events as
    a cited one, or whose number of events is nearest to that; None if there are fewer items."""
    events = Counter(history)
    left = [item for item in events if item not in set(cited)]
    if not cited or len(left) < len(cited):
        return None
    left = [left[i] for i in np.random.default_rng(seed).permutation(len(left)).tolist()]

    def taken(wanted: int) -> int:
        return left.pop(min(range(len(left)), key=lambda i: abs(events[left[i]] - wanted)))

    # The cited one with the most events first: few others have as many.
    return [taken(wanted) for wanted in sorted((events[item] for item in cited), reverse=True)]


def measure(falls: Falls, resamples: int, seed: int) -> Faithfulness:
    if not falls.cited:
        return Faithfulness(0, 0, *[None] * 7)
    differences = np.asarray(falls.cited, np.float64) - np.asarray(falls.random, np.float64)
    low, high = bootstrap.interval(differences, resamples, seed)
    cited, random, cited_events, random_events = (
        float(np.mean(of)) for of in (falls.cited, falls.random, falls.cited_events, falls.random_events)
    )
    return Faithfulness(
        len(falls.cited),
        falls.reasons,
        cited,
        random,
        float(differences.mean()),
        low,
        high,
        cited_events,
        random_events,
    )
