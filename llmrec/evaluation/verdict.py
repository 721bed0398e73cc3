"""Does the language model beat what needs none? Read off an evaluation's paired intervals."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["better", "worse", "unclear"]


@dataclass(frozen=True)
class Comparison:
    """Our ranking against another, over the same users.

    difference: ours minus theirs; share: of theirs, None if that is 0; low, high: 95% interval of the difference, user
    by user. outcome: ours is better or worse if the interval leaves out 0, else unclear.
    """

    name: str
    ours: float
    theirs: float
    difference: float
    share: float | None
    low: float
    high: float
    outcome: Outcome


@dataclass(frozen=True)
class Verdict:
    """baseline: the best of the other recommenders, None if there is none; without_ranker: of a fused run, its fusion
    without what the ranker says."""

    metric: str
    users: int
    baseline: Comparison | None
    without_ranker: Comparison | None


def main_metric(names: Collection[str]) -> str:
    """The one that is shown and judged by where there is room for one: NDCG, or the first metric where that is not
    measured, at 10, or at the first cut-off where 10 is none of them. names: such as ndcg@10."""
    first = next(iter(names)).partition("@")[0]
    of = [n for n in names if n.startswith("ndcg@")] or [n for n in names if n.startswith(f"{first}@")]
    return next((n for n in of if n.endswith("@10")), of[0])


def verdict(
    rows: Sequence[Mapping[str, Any]], ours: str, baselines: Collection[str], without_ranker: str, metric: str
) -> Verdict:
    """rows: an evaluation's rankings over all users, each with name, users, values and lead; ours: the name of our own;
    baselines: names of recommenders that need no ranker, of which some may be missing; without_ranker: name of the
    fusion without it, which is there if the run was fused and kept its parts.

    The baseline is the one that ranks best on the very users that it is compared on, which favours it.
    """
    named = {row["name"]: row for row in rows}
    return Verdict(
        metric,
        named[ours]["users"],
        against_best(rows, ours, baselines, metric),
        compare(named[ours], named[without_ranker], metric) if without_ranker in named else None,
    )


def against_best(
    rows: Sequence[Mapping[str, Any]], ours: str, others: Collection[str], metric: str
) -> Comparison | None:
    """Ours against the best of some others by this very metric; None if none of them is there."""
    named = {row["name"]: row for row in rows}
    there = [named[name] for name in others if name in named]
    best = max(there, key=lambda row: row["values"][metric], default=None)
    return None if best is None else compare(named[ours], best, metric)


def compare(ours: Mapping[str, Any], other: Mapping[str, Any], metric: str) -> Comparison:
    """Two rows of an evaluation, `other` with the interval of our lead."""
    low, high = other["lead"][metric]
    mine, theirs = ours["values"][metric], other["values"][metric]
    difference = mine - theirs
    share = difference / theirs if theirs else None
    return Comparison(other["name"], mine, theirs, difference, share, low, high, outcome(low, high))


def outcome(low: float, high: float) -> Outcome:
    """What a 95% interval of a difference says of it."""
    return "better" if low > 0 else "worse" if high < 0 else "unclear"
