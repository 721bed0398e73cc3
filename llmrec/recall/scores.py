"""Scores of some users over the catalogue, as each source has them: stored, computed where they are asked for, or the
same for everyone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import sparse

from llmrec.ranker.ragged import Ragged, offsets_of
from llmrec.recall import clusters, search
from llmrec.recall.candidates import Candidates, best_unseen, most_popular, pair_keys, top, top_dense
from llmrec.recall.clusters import Clusters


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
    """Of few items, all scores. matrix: float32[n, m], -inf for what is never recalled; rows: int64[m], the items,
    ascending; n_items: how many there are of these and others."""

    matrix: np.ndarray
    rows: np.ndarray
    n_items: int

    def top(self, seen: Ragged | None, count: int) -> Candidates:
        found = top_dense(self.matrix, None if seen is None else self._columns(seen), count)
        items = Ragged(self.rows[found.items.values].astype(np.int32), found.items.offsets)
        return Candidates(items, found.scores, found.source)

    def at(self, items: Ragged) -> np.ndarray:
        column, known = self._places(items.values)
        found = np.full(len(column), np.nan, np.float32)
        user = np.repeat(np.arange(len(items)), items.lengths)[known]
        values = self.matrix[user, column[known]]
        found[known] = np.where(np.isfinite(values), values, np.nan)
        return found

    def _places(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        place = np.full(self.n_items, -1)
        place[self.rows] = np.arange(len(self.rows))
        return place[items], place[items] >= 0

    def _columns(self, seen: Ragged) -> Ragged:
        column, known = self._places(seen.values)
        user = np.repeat(np.arange(len(seen)), seen.lengths)
        return Ragged(column[known].astype(np.int32), offsets_of(np.bincount(user[known], minlength=len(seen))))


@dataclass(frozen=True)
class Vectors:
    """The product of a user's vector and an item's; nothing is known where either is 0.

    users: float32[n, d]; items: float32[n_items, d]; least: what does not score above it is not recalled; clusters: of
    these items, to look among some alone; None: exact search.
    """

    users: np.ndarray
    items: np.ndarray
    least: float = -np.inf
    clusters: Clusters | None = None

    def top(self, seen: Ragged | None, count: int) -> Candidates:
        if self.clusters is None:
            return search.nearest(self.users, self.items, seen, count, self.least)
        return self.clusters.nearest(self.users, seen, count, self.least)

    def checked(self, seen: Ragged | None, count: int, users: int) -> tuple[int, int]:
        """Of exact search's best for the first so many users: how many there are, and how many `top` finds."""
        some = np.arange(min(users, len(self.users)))
        past = None if seen is None else seen.take(some)
        few = Vectors(self.users[some], self.items, self.least, self.clusters)
        exact, found = search.nearest(few.users, self.items, past, count, self.least), few.top(past, count)
        return len(exact.scores), clusters.shared(exact, found, len(self.items))

    def at(self, items: Ragged) -> np.ndarray:
        return search.products(self.users, self.items, items)


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
class Grouped:
    """An item's share of the users of one's group, drawn towards its share of all users: the mean that a group's users
    have together with `prior` more of whom each had what all users had on average,

        (counts[g, i] + prior * share[i]) / (sizes[g] + prior).

    So a group of few users says little of its own. Items of 0 are not recalled. counts: float32[groups, n_items], users
    of a group who had an item; sizes: float64[groups], its users; share: float64[n_items], of all users; group:
    int64[n], of each user, which may have no users at all.
    """

    counts: sparse.csr_matrix
    sizes: np.ndarray
    share: np.ndarray
    prior: float
    group: np.ndarray

    def top(self, seen: Ragged | None, count: int) -> Candidates:
        longest = int(seen.lengths.max(initial=0)) if seen is not None else 0
        groups, which = np.unique(self.group, return_inverse=True)
        found = self._best(groups, count + longest).take(which)
        return best_unseen(found.items, found.scores, seen, count, len(self.share))

    def at(self, items: Ragged) -> np.ndarray:
        groups, which = np.unique(self.group, return_inverse=True)
        user = np.repeat(which, items.lengths)
        order = np.argsort(user, kind="stable")
        lists = Ragged(items.values[order], offsets_of(np.bincount(user, minlength=len(groups))))
        found = np.empty(len(order), np.float32)
        found[order] = self._scores(groups, lists)
        return found

    def _best(self, groups: np.ndarray, count: int) -> Candidates:
        """Of each of these groups."""
        # What none of a group had is in the order of all users, and behind no more than `count` of that order's first.
        there = np.flatnonzero(self.share > 0)
        first = there[np.argsort(-self.share[there], kind="stable")][:count].astype(np.int32)
        own = self.counts[groups]
        place = np.arange(len(groups))
        user = np.concatenate([np.repeat(place, np.diff(own.indptr)), np.repeat(place, len(first))])
        keys = np.unique(user * len(self.share) + np.concatenate([own.indices, np.tile(first, len(groups))]))
        user, item = np.divmod(keys, len(self.share))
        lists = Ragged(item.astype(np.int32), offsets_of(np.bincount(user, minlength=len(groups))))
        return best_unseen(lists, self._scores(groups, lists), None, count, len(self.share))

    def _scores(self, groups: np.ndarray, items: Ragged) -> np.ndarray:
        own = self.counts[groups]
        n = _looked_up(items, Ragged(own.indices, own.indptr.astype(np.int64)), own.data, len(self.share), missing=0)
        size = np.repeat(self.sizes[groups], items.lengths)
        return ((n + self.prior * self.share[items.values]) / (size + self.prior)).astype(np.float32)


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
    some = np.zeros(n_items, bool)
    some[asked.values] = True
    there = some[known.values]  # most of many are asked for of nobody
    user = np.repeat(np.arange(len(known)), known.lengths)[there]
    keys, values = user * n_items + known.values[there], values[there]
    wanted = pair_keys(asked, n_items)
    if not len(keys):
        return np.full(len(wanted), missing, np.float32)
    order = np.argsort(keys, kind="stable")
    place = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)]
    return np.where(keys[place] == wanted, values[place], missing).astype(np.float32)
