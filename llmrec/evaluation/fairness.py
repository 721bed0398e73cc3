"""Do rankings serve groups of users alike, and do groups of items get their share of what is shown?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.evaluation import bootstrap
from llmrec.evaluation.beyond import ratio
from llmrec.evaluation.segments import MISSING, Grouping, inside
from llmrec.ranker.ragged import Ragged, within


@dataclass(frozen=True)
class Gap:
    """A metric's mean in its best group less that in its worst; low, high: 95% bootstrap interval of that difference,
    users of either group resampled within it, and those of both together."""

    by: str
    metric: str
    best: str
    worst: str
    gap: float
    low: float
    high: float


@dataclass(frozen=True)
class Share:
    """A group of items. catalogue: its share of items; truth: of held-out events, None where none of their items is in
    the catalogue; exposure: of what users are shown, None where nobody is shown any; ratio: exposure over catalogue,
    None of a group without items; low, high: its 95% bootstrap interval over users."""

    name: str
    catalogue: float | None
    truth: float | None
    exposure: float | None
    ratio: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ItemShares:
    by: str
    groups: list[Share]


@dataclass(frozen=True)
class Fairness:
    """users: one a grouping of users with two groups or more; item_gaps: one a grouping of held-out items, a user being
    measured in each by those in it; items: one a grouping of items."""

    users: list[Gap]
    item_gaps: list[Gap]
    items: list[ItemShares]


def gap(
    grouping: Grouping, metric: str, values: np.ndarray, resamples: int, seed: int, users: np.ndarray | None = None
) -> Gap | None:
    """Between groups that hold users, those of whom the value is missing left out; None if there are not two. Metrics
    by groups of users: Ekstrand et al., "All the cool kids, how do they fit in?", FAT* 2018.

    Of many small groups the best and the worst differ by chance alone: the interval tells how sure the difference of
    these two is, not that there would be none without their being picked.

    values: float64[n], of one ranking; users: int64[n], whose each is, a user being in a group once at most; None where
    each is of another.
    """
    groups = [
        (name, rows)
        for name, rows in zip(grouping.names, inside(grouping), strict=True)
        if len(rows) and name != MISSING
    ]
    if len(groups) < 2:
        return None
    means = [values[rows].mean() for _, rows in groups]
    best, worst = int(np.argmax(means)), int(np.argmin(means))
    (a, of_a), (b, of_b) = groups[best], groups[worst]
    # Who is in both groups is drawn for both or for neither.
    whose = np.arange(len(values)) if users is None else users
    _, both_a, both_b = np.intersect1d(whose[of_a], whose[of_b], assume_unique=True, return_indices=True)
    both = _sums(np.stack([values[of_a[both_a]], values[of_b[both_b]]]), resamples, [seed, len(groups)])
    alone_a = _sums(values[np.delete(of_a, both_a)][None], resamples, [seed, best])[0]
    alone_b = _sums(values[np.delete(of_b, both_b)][None], resamples, [seed, worst])[0]
    low, high = bootstrap.bounds((alone_a + both[0]) / len(of_a) - (alone_b + both[1]) / len(of_b))
    return Gap(grouping.by, metric, a, b, float(means[best] - means[worst]), low, high)


def _sums(values: np.ndarray, resamples: int, seed: bootstrap.Seed) -> np.ndarray:
    """float64[columns, resamples]: as `bootstrap.means`, 0 of no users."""
    users = values.shape[1]
    return bootstrap.means(values, resamples, seed) * users if users else np.zeros((len(values), resamples))


def discounts(lists: Ragged) -> np.ndarray:
    """float64[total]: what a place is seen, 1 / log2(rank + 1): the exposure of Singh and Joachims ("Fairness of
    exposure in rankings", KDD 2018)."""
    return np.asarray(1 / np.log2(within(lists.lengths) + 2))


@dataclass(frozen=True)
class Exposure:
    """share: that some items have of what users are shown; interval: its 95% bootstrap interval over the users who are
    shown something; None where nobody is."""

    share: float | None
    interval: tuple[float, float] | None


def exposures(theirs: np.ndarray, seen: np.ndarray, resamples: int, seed: int) -> list[Exposure]:
    """One of each kind of lists.

    theirs, seen: float64[kinds, users], what each is shown of these items and of all, weighed by `discounts`.
    """
    some = seen.any(axis=0)
    samples = bootstrap.means(np.concatenate([theirs, seen])[:, some], resamples, seed)
    found = []
    for i in range(len(seen)):
        share, of = samples[i], samples[len(seen) + i]
        known = bool((of > 0).all())  # not of nobody, nor where a resample is of users who are shown nothing
        found.append(Exposure(ratio(theirs[i].sum(), seen[i].sum()), bootstrap.bounds(share / of) if known else None))
    return found


def shares(
    by: str, names: Sequence[str], catalogue: np.ndarray, truth: np.ndarray, exposed: np.ndarray, resamples: int,
    seed: int,
) -> ItemShares:  # fmt: skip
    """
    catalogue, truth: float64[groups], items and held-out events of each group; exposed: float64[users, groups], what
    each user is shown of them, weighed by `discounts`.
    """
    samples = bootstrap.means(exposed.T, resamples, seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        of_catalogue, of_truth, of_exposed = (part / part.sum() for part in (catalogue, truth, exposed.sum(axis=0)))
        ratios = samples / samples.sum(axis=0) / of_catalogue[:, None]
        over = of_exposed / of_catalogue
    groups = []
    for g, name in enumerate(names):
        known = bool(np.isfinite(ratios[g]).all() and np.isfinite(over[g]))
        low, high = bootstrap.bounds(ratios[g]) if known else (None, None)
        of = [float(share[g]) if np.isfinite(share[g]) else None for share in (of_catalogue, of_truth, of_exposed)]
        groups.append(Share(name, of[0], of[1], of[2], float(over[g]) if known else None, low, high))
    return ItemShares(by, groups)
