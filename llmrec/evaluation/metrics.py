"""Ranking metrics through ir-measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ir_measures
import numpy as np
from ir_measures import AP, RR, P, R, Success, nDCG

OF_LIBRARY = {"recall": R, "ndcg": nDCG, "mrr": RR, "hit_rate": Success, "precision": P, "map": AP}
DEFAULT = ("recall", "ndcg", "mrr", "hit_rate")
MAIN_CUTOFF = 10


def measures(cutoffs: Sequence[int], metrics: Sequence[str] = DEFAULT) -> list[ir_measures.Measure]:
    """Of each metric at each cut-off, those of `OF_LIBRARY`."""
    return [OF_LIBRARY[name] @ k for k in cutoffs for name in metrics]


def names(cutoffs: Sequence[int], metrics: Sequence[str] = DEFAULT) -> list[str]:
    return [f"{name}@{k}" for k in cutoffs for name in metrics]


def main_cutoff(cutoffs: Sequence[int]) -> int:
    """The one that is shown where there is room for one: 10, or the first where 10 is none of them."""
    return MAIN_CUTOFF if MAIN_CUTOFF in cutoffs else cutoffs[0]


def per_user(
    truth: Mapping[str, Sequence[str]],
    ranked: Mapping[str, Sequence[str]],
    cutoffs: Sequence[int],
    metrics: Sequence[str] = DEFAULT,
) -> dict[str, np.ndarray]:
    """float64[users] of each metric, in the order of `truth`; a user without a ranking counts 0.

    truth, ranked: user -> items, ranked best first. Scores are minus the rank, since trec_eval breaks ties its own way.
    precision: of k places, also where a list is shorter; map: of all true items, also where they are more than k.
    """
    wanted = measures(cutoffs, metrics)
    label = {str(m): name for m, name in zip(wanted, names(cutoffs, metrics), strict=True)}
    row = {user: i for i, user in enumerate(truth)}
    values = {name: np.zeros(len(truth)) for name in label.values()}
    judged = {user: dict.fromkeys(items, 1) for user, items in truth.items()}
    run = {user: {item: -float(i) for i, item in enumerate(ranked[user])} for user in truth if ranked.get(user)}
    if run:
        for found in ir_measures.iter_calc(wanted, judged, run):
            values[label[str(found.measure)]][row[found.query_id]] = found.value
    return values
