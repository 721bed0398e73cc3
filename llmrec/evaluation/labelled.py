"""How well scores part pairs of users and items that are labelled 1 from those labelled 0."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata


@dataclass(frozen=True)
class Labelled:
    """pairs: labelled ones; covered: of these, such as were scored, over which the rest is; auc: of all of them; uauc:
    the mean of users' own, weighed by their pairs; users: who have pairs of both labels, over whom uauc is. auc and
    uauc are None where no two labels can be compared."""

    pairs: int
    covered: int
    auc: float | None
    uauc: float | None
    users: int


def labelled(user: np.ndarray, scores: np.ndarray, label: np.ndarray) -> Labelled:
    """
    user: int[pairs], equal for pairs of a user; scores: float[pairs], NaN of a pair that was not scored; label:
    bool[pairs].
    """
    known = np.isfinite(scores)
    user, scores, label = user[known], scores[known], label[known]
    of_all = aucs(np.zeros(len(user), np.int64), scores, label)
    _, at, count = np.unique(user, return_inverse=True, return_counts=True)
    of_user = aucs(at, scores, label)
    some = np.isfinite(of_user)
    return Labelled(
        pairs=len(known),
        covered=int(known.sum()),
        auc=float(of_all[0]) if np.isfinite(of_all).all() and len(of_all) else None,
        uauc=float(np.average(of_user[some], weights=count[some])) if some.any() else None,
        users=int(some.sum()),
    )


def aucs(group: np.ndarray, scores: np.ndarray, label: np.ndarray) -> np.ndarray:
    """float64[groups]: how often a pair labelled 1 has a higher score than one labelled 0 of its group, ties counting
    half; NaN for a group of one label. That is the Mann-Whitney statistic, from ranks (Hanley and McNeil, 1982); the
    mean over users weighed by pairs is GAUC (Zhu et al., "Optimized cost per click in Taobao display advertising",
    KDD 2017).

    group: int[pairs], from 0 without gaps.
    """
    if not len(group):
        return np.empty(0)
    pairs = np.bincount(group)
    positive = np.bincount(group, label)
    # Ranks over groups one after another: within a group they are its own and how many pairs come before it.
    dense = rankdata(scores, "dense")
    ranks = rankdata(group * (dense.max() + 1) + dense)
    ranks -= (np.cumsum(pairs) - pairs)[group]
    above = np.bincount(group, ranks * label) - positive * (positive + 1) / 2
    compared = positive * (pairs - positive)
    return np.divide(above, compared, out=np.full(len(pairs), np.nan), where=compared > 0)
