"""Scores of some users over the catalogue, as each source has them: stored, computed where they are asked for, or the
same for everyone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import sparse

from llmrec.ranker.ragged import Ragged
from llmrec.recall.candidates import Candidates, most_popular, pair_keys, top, top_dense


class Scores(Protocol):
    """What one source says of n users."""

    def top(self, seen: Ragged | None, count: int) -> Candidates:
        """Each user's best items, seen ones left out; ties go to the smaller row."""

    def at(self, items: Ragged) -> np.ndarray:
        """float32[total] of n users' item rows, NaN where the source says nothing."""


@dataclass(frozen=True)
class Sparse:
    """matrix: float32[n, n_items]; what is not stored is 0, and none of 0 or less is recalled."""

    matrix: sparse.csr_matrix

    def top(self, seen: Ragged | None, count: int) -> Candidates:
        return top(self.matrix, seen, count)

    def at(self, items: Ragged) -> np.ndarray:
        stored = Ragged(self.matrix.indices, self.matrix.indptr.astype(np.int64))
        return _looked_up(items, stored, self.matrix.data, self.matrix.shape[1], missing=0)


@dataclass(frozen=True)
class Dense:
    """matrix: float32[n, n_items], -inf for what is never recalled; least: nor is what does not score above it."""

    matrix: np.ndarray
    least: float = -np.inf

    def top(self, seen: Ragged | None, count: int) -> Candidates:
        return top_dense(self.matrix, seen, count, self.least)

    def at(self, items: Ragged) -> np.ndarray:
        found = self.matrix[np.repeat(np.arange(len(items)), items.lengths), items.values]
        return np.where(np.isfinite(found), found, np.nan).astype(np.float32)


@dataclass(frozen=True)
class Same:
    """values: float32[n_items], of each of `users` users; items of 0 are not recalled."""

    values: np.ndarray
    users: int

    def top(self, seen: Ragged | None, count: int) -> Candidates:
        return most_popular(self.values, self.users, seen, count)

    def at(self, items: Ragged) -> np.ndarray:
        return self.values[items.values].astype(np.float32)


@dataclass(frozen=True)
class Listed:
    """What a source has recalled already: nothing is known of other items."""

    found: Candidates
    n_items: int

    def top(self, seen: Ragged | None, count: int) -> Candidates:
        return self.found

    def at(self, items: Ragged) -> np.ndarray:
        return _looked_up(items, self.found.items, self.found.scores, self.n_items, missing=np.nan)


def _looked_up(asked: Ragged, known: Ragged, values: np.ndarray, n_items: int, missing: float) -> np.ndarray:
    """float32[total]: of the items asked for, the values of known items of the same user."""
    keys, wanted = pair_keys(known, n_items), pair_keys(asked, n_items)
    if not len(keys):
        return np.full(len(wanted), missing, np.float32)
    order = np.argsort(keys, kind="stable")
    place = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)]
    return np.where(keys[place] == wanted, values[place], missing).astype(np.float32)
