"""What a reason rests on: items of the history that moved a score, what they share with the item, and the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.reasons.traits import Link, Links, Trait, Traits

# Of a score's size (of 1, if that is more): what float32 and another packing may make of no influence at all.
NOISE = 1e-4


@dataclass(frozen=True)
class Cited:
    """An item of the history. row: of the catalogue; influence: the score with it less the score without it;
    attributes, facts: what it shares with the recommended item; links: edges between the two."""

    row: int
    influence: float
    attributes: tuple[Trait, ...]
    facts: tuple[Trait, ...]
    links: tuple[Link, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """What may be said of a recommended item. cited: most influential first; context: those of the request's that
    raised the score, each by itself, likewise; context_influence: the score with all of them less the score without,
    None if the ranker knows none."""

    row: int
    cited: tuple[Cited, ...]
    context: tuple[Trait, ...]
    context_influence: float | None


def gather(
    row: int,
    score: float,
    history: Sequence[int],
    influence: np.ndarray,
    most: int,
    attributes: Traits,
    facts: Traits,
    links: Links,
    most_shared: int,
    context: Sequence[tuple[Trait, float]] = (),
    context_influence: float | None = None,
) -> Evidence:
    """The evidence for one recommended item.

    score: with everything; history, influence: int and float32[n], items that were left out in turn, none twice, and
    what each did. Cited are at most `most` of those that raised the score by more than noise, ties by place in history.
    context: of the request, each with what leaving it out alone did; those that raised the score are told.
    """
    least = NOISE * max(1.0, abs(score))
    order = np.argsort(-influence, kind="stable")[:most]
    cited = tuple(
        Cited(
            history[i],
            float(influence[i]),
            attributes.shared(row, history[i], most_shared),
            facts.shared(row, history[i], most_shared),
            links.between(row, history[i], most_shared),
        )
        for i in order.tolist()
        if influence[i] > least
    )
    told = sorted((of for of in context if of[1] > least), key=lambda of: -of[1])
    return Evidence(row, cited, tuple(trait for trait, _ in told), context_influence)
