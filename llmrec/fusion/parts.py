"""What is known of candidates, and each part of it brought to a scale that users share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.ranker.ragged import offsets_of, within


@dataclass(frozen=True)
class Parts:
    """Scores of the candidates of n users, of p kinds.

    names: p of them; values: float32[total, p], NaN where a kind says nothing of a candidate; offsets: int64[n + 1],
    where the candidates of user i are values[offsets[i]:offsets[i + 1]].
    """

    names: tuple[str, ...]
    values: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """int64[n]."""
        return np.diff(self.offsets)

    def take(self, users: np.ndarray) -> Parts:
        """Those of some users: bool[n]."""
        return Parts(self.names, self.values[np.repeat(users, self.lengths)], offsets_of(self.lengths[users]))

    def only(self, names: Sequence[str]) -> Parts:
        return Parts(tuple(names), self.values[:, [self.names.index(name) for name in names]], self.offsets)


def normalised(parts: Parts, by: Sequence[str]) -> np.ndarray:
    """float64[total, p * len(by)]: each part by each of NORMALISERS, part after part.

    A candidate of which a part says nothing has the least that the part says of the user's others. Where it says the
    same of all of them, or nothing of any, they are all 0.
    """
    columns = []
    for column in range(len(parts.names)):
        values = _filled(parts.values[:, column].astype(np.float64), parts.offsets)
        columns += [NORMALISERS[name](values, parts.offsets) for name in by]
    return np.stack(columns, axis=1) if columns else np.zeros((len(parts.values), 0))


def sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """float64[n]: of each user's values (float64[total]), 0 where there are none."""
    lengths = np.diff(offsets)
    return np.bincount(np.repeat(np.arange(len(lengths)), lengths), values, len(lengths))


def largest(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """float64[n]: of each user's values (float64[total]), -inf where there are none."""
    found = np.full(len(offsets) - 1, -np.inf)
    some = np.diff(offsets) > 0
    if some.any():
        found[some] = np.maximum.reduceat(values, offsets[:-1][some])
    return found


def first_of(scores: np.ndarray, offsets: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """int64[m]: where each user's `count` best candidates are, best first, ties in their order; int64[n]: how many.

    scores: [total].
    """
    lengths = np.diff(offsets)
    order = np.lexsort((-scores, np.repeat(np.arange(len(lengths)), lengths)))
    return order[within(lengths) < count], np.minimum(lengths, count)


def _filled(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    least = -largest(np.where(known, -values, -np.inf), offsets)
    return np.where(known, values, np.repeat(np.where(np.isfinite(least), least, 0.0), np.diff(offsets)))


def _z_score(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    lengths = np.diff(offsets)
    count = np.maximum(lengths, 1)
    centred = values - np.repeat(sums(values, offsets) / count, lengths)
    deviation = np.sqrt(sums(centred**2, offsets) / count)
    return _divided(centred, np.repeat(deviation, lengths), np.abs(values))


def _min_max(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    lengths = np.diff(offsets)
    low, high = -largest(-values, offsets), largest(values, offsets)
    return _divided(values - np.repeat(low, lengths), np.repeat(high - low, lengths), np.abs(values))


def _reciprocal_rank(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Of the mean rank of ties, less that of a list of ties alone, in units of its top's."""
    lengths = np.diff(offsets)
    user = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((-values, user))
    place = within(lengths)
    # A tie is a run of equal values of one user in sorted order; its members share the middle of their places.
    ordered = values[order]
    first = np.ones(len(values), bool)
    first[1:] = (ordered[1:] != ordered[:-1]) | (user[1:] != user[:-1])
    run = np.cumsum(first) - 1
    middle = (np.bincount(run, place) / np.maximum(np.bincount(run), 1))[run] if len(run) else place
    found = np.empty(len(values))
    found[order] = 1 / (K + middle + 1) - 1 / (K + np.repeat((lengths + 1) / 2, lengths))
    return found * (K + 1)


def _divided(values: np.ndarray, by: np.ndarray, size: np.ndarray) -> np.ndarray:
    """0 where `by` is no more than what rounding leaves of values of such a size."""
    some = by > size * 1e-9
    return np.divide(values, by, out=np.zeros_like(values), where=some)


K = 10.0
NORMALISERS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "z_score": _z_score, "min_max": _min_max, "reciprocal_rank": _reciprocal_rank,
}  # fmt: skip
