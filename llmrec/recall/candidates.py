"""From scores over the catalogue to each user's candidates, and the merge of several sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from llmrec.ranker.ragged import Ragged, offsets_of, within
from llmrec.recall.neighbours import best_of_rows


@dataclass(frozen=True)
class Candidates:
    """Candidates of n users, best first.

    items: catalogue rows per user; scores: float32[total]; source: int8[total], index into the sources merged.
    """

    items: Ragged
    scores: np.ndarray
    source: np.ndarray

    def relabelled(self, sources: int) -> Candidates:
        """Of so many sources, each of which was given more than once, in the same order."""
        return Candidates(self.items, self.scores, self.source % np.int8(sources))

    def take(self, users: np.ndarray) -> Candidates:
        """Those of some users (int64[m])."""
        at = Ragged(np.arange(len(self.scores), dtype=np.int32), self.items.offsets).take(users)
        return Candidates(
            Ragged(self.items.values[at.values], at.offsets), self.scores[at.values], self.source[at.values]
        )


def _within_quotas(sources: Sequence[Candidates], quotas: Sequence[int], n_items: int) -> Iterator[Candidates]:
    taken = np.empty(0, np.int64)
    for source, quota in zip(sources, quotas, strict=True):
        users = len(source.items)
        user = np.repeat(np.arange(users), source.items.lengths)
        keys = pair_keys(source.items, n_items)
        new = np.flatnonzero(~np.isin(keys, taken))
        kept = new[within(np.bincount(user[new], minlength=users)) < quota]
        taken = np.concatenate([taken, keys[kept]])
        lengths = np.bincount(user[kept], minlength=users)
        yield Candidates(
            Ragged(source.items.values[kept], offsets_of(lengths)), source.scores[kept], source.source[kept]
        )


def top(scores: sparse.csr_matrix, seen: Ragged | None, count: int) -> Candidates:
    """The `count` best-scored items of each user, seen ones and items not scored above 0 left out; ties go to the
    smaller row.

    scores: float32[users, n_items]; seen: users' item rows.
    """
    open_ = scores.data > 0
    if not open_.all():
        ends = np.append(0, np.cumsum(open_))[scores.indptr]
        scores = sparse.csr_matrix((scores.data[open_], scores.indices[open_], ends), shape=scores.shape)
    longest = int(seen.lengths.max(initial=0)) if seen is not None else 0
    few = best_of_rows(scores, count + longest)  # so many are left of what was not seen
    found = Ragged(few.indices, few.indptr.astype(np.int64))
    return best_unseen(found, few.data, seen, count, scores.shape[1])


def best_unseen(items: Ragged, scores: np.ndarray, seen: Ragged | None, count: int, n_items: int) -> Candidates:
    """Of each user's items, in any order, the `count` best-scored that he has not seen; ties go to the smaller row."""
    user = np.repeat(np.arange(len(items)), items.lengths)
    open_ = np.ones(len(user), bool)
    if seen is not None:
        open_ &= ~np.isin(pair_keys(items, n_items), pair_keys(seen, n_items))
    return _best(user[open_], items.values[open_], scores[open_], len(items), count)


def top_dense(scores: np.ndarray, seen: Ragged | None, count: int, least: float = -np.inf) -> Candidates:
    """`top` of float32[users, n_items] that may be negative: items not scored above `least` are left out."""
    users, n_items = scores.shape
    open_ = scores > least
    if seen is not None:
        open_[np.repeat(np.arange(users), seen.lengths), seen.values] = False
    hidden = np.where(open_, -scores, np.inf)
    if count < n_items:  # a sort of the few that can be among the first is enough
        open_ &= hidden <= np.partition(hidden, count - 1, axis=1)[:, count - 1 : count] if count else False
    user, item = np.nonzero(open_)
    return _best(user, item, scores[user, item], users, count)


def most_popular(popularity: np.ndarray, users: int, seen: Ragged | None, count: int) -> Candidates:
    """The same for every user, by what `top` would say of a score for each item, float32[n_items]."""
    there = np.flatnonzero(popularity > 0)
    longest = int(seen.lengths.max(initial=0)) if seen is not None else 0
    best = there[np.argsort(-popularity[there], kind="stable")][: count + longest]
    place = np.full(len(popularity), len(best))
    place[best] = np.arange(len(best))
    open_ = np.ones((users, len(best) + 1), bool)
    if seen is not None:
        open_[np.repeat(np.arange(users), seen.lengths), place[seen.values]] = False
    open_[:, len(best)] = False
    open_ &= open_.cumsum(axis=1) <= count
    item = best[np.nonzero(open_)[1]]
    return _ranked(item, popularity[item], open_.sum(axis=1))


def pair_keys(items: Ragged, n_items: int) -> np.ndarray:
    """int64[total]: a number for each pair of a user and one of his items, the same for the same pair anywhere."""
    return np.repeat(np.arange(len(items)), items.lengths) * n_items + items.values


def _best(user: np.ndarray, item: np.ndarray, score: np.ndarray, users: int, count: int) -> Candidates:
    """Of pairs in any order, the `count` best of each user. Rows follow ids, so ties do too."""
    order = np.lexsort((item, -score, user))
    lengths = np.bincount(user, minlength=users)
    kept = order[within(lengths) < count]
    return _ranked(item[kept], score[kept], np.minimum(lengths, count))


def _ranked(items: np.ndarray, scores: np.ndarray, lengths: np.ndarray) -> Candidates:
    """Of one source, user after user, best first."""
    return Candidates(
        Ragged(items.astype(np.int32), offsets_of(lengths)),
        scores.astype(np.float32),
        np.zeros(len(items), np.int8),
    )


def merge(sources: Sequence[Candidates], count: int, n_items: int, quotas: Sequence[int] = ()) -> Candidates:
    """Fill each user's list from the sources in order, without duplicates, up to `count`.

    quotas: of each source, how many places it fills before any source fills more: with its best that no earlier one has
    brought. A candidate keeps the score of the source that brought it; scores of different sources are not comparable.
    """
    if any(quotas):
        return merge([*_within_quotas(sources, quotas, n_items), *sources], count, n_items).relabelled(len(sources))
    users = len(sources[0].items)
    user = np.concatenate([np.repeat(np.arange(users), s.items.lengths) for s in sources])
    item = np.concatenate([s.items.values for s in sources]).astype(np.int64)
    score = np.concatenate([s.scores for s in sources])
    source = np.repeat(np.arange(len(sources), dtype=np.int8), [len(s.scores) for s in sources])
    _, first = np.unique(user * n_items + item, return_index=True)
    order = np.sort(first)  # sources in order, each best first
    order = order[np.argsort(user[order], kind="stable")]
    lengths = np.bincount(user[order], minlength=users)
    order = order[within(lengths) < count]
    lengths = np.minimum(lengths, count)
    return Candidates(Ragged(item[order].astype(np.int32), offsets_of(lengths)), score[order], source[order])
