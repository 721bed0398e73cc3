"""From scores over the catalogue to each user's candidates, and the merge of several sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.ranker.ragged import Ragged, offsets_of, within


@dataclass(frozen=True)
class Candidates:
    """Candidates of n users, best first.

    items: catalogue rows per user; scores: float32[total]; source: int8[total], index into the sources merged.
    """

    items: Ragged
    scores: np.ndarray
    source: np.ndarray

    def take(self, users: np.ndarray) -> Candidates:
        """Those of some users (int64[m])."""
        at = Ragged(np.arange(len(self.scores), dtype=np.int32), self.items.offsets).take(users)
        return Candidates(
            Ragged(self.items.values[at.values], at.offsets), self.scores[at.values], self.source[at.values]
        )


def top(scores: np.ndarray, seen: Ragged | None, count: int) -> Candidates:
    """The `count` best-scored items of each user, seen ones and items scored 0 left out; ties go to the smaller row.

    scores: float32[users, n_items], not negative; overwritten at seen items. Rows follow ids, so ties do too.
    """
    users, n_items = scores.shape
    if seen is not None:
        scores[np.repeat(np.arange(users), seen.lengths), seen.values] = 0
    count = min(count, n_items)
    # A stable sort of the negated scores keeps tied items in row order.
    best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    kept_scores = np.take_along_axis(scores, best, axis=1)
    kept = kept_scores > 0
    items = Ragged(best[kept].astype(np.int32), offsets_of(kept.sum(axis=1)))
    return Candidates(items, kept_scores[kept].astype(np.float32), np.zeros(int(kept.sum()), np.int8))


def merge(sources: Sequence[Candidates], count: int, n_items: int) -> Candidates:
    """Fill each user's list from the sources in order, without duplicates, up to `count`.

    A candidate keeps the score of the first source that brought it; scores of different sources are not comparable.
    """
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
