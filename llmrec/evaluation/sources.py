"""What each source of candidates finds, and what it alone finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

UNION, SCORED = "all of them", "what was scored"

Lists = Mapping[str, Sequence[str]]


def found(truth: Lists, lists: Mapping[str, Lists], scored: Lists, cutoffs: Sequence[int]) -> np.ndarray:
    """float64[users, sources + 2, cutoffs, 2]: share of a user's true items among a source's first k, and of those that
    no other source has among its own first k. The last but one is the union of all, up to k times as many items as
    there are sources, the last what was scored, of both of which nothing is left to others.

    truth: user -> items, at least one; lists: source -> user -> items, best first; scored: user -> the candidates that
    were made of them, in the order of the merge. A user without a list counts 0.
    """
    depth = np.asarray(cutoffs)
    shares = np.zeros((len(truth), len(lists) + 2, len(depth), 2))
    for row, (user, items) in enumerate(truth.items()):
        places = np.asarray([[_place(of.get(user, ()), item) for item in items] for of in lists.values()])
        places = places.reshape(len(lists), len(items))
        merged = np.asarray([_place(scored.get(user, ()), item) for item in items])[None, :, None] < depth
        there = np.asarray(places[:, :, None] < depth)  # sources x items x cutoffs
        alone = there & (there.sum(axis=0) == 1)
        union = there.any(axis=0, keepdims=True)
        both = np.stack([np.concatenate([of, union, merged]) for of in (there, alone)], axis=-1)
        shares[row] = both.mean(axis=1)
    return shares


def _place(items: Sequence[str], item: str) -> float:
    """From 0; infinite for an item that is not there."""
    try:
        return items.index(item)
    except ValueError:
        return np.inf
