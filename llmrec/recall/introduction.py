"""New items, brought to users: not the user looks for items, the item for users whose history is nearest to it.

A source that each user chooses from leaves most new items to nobody, since a few are everyone's nearest. Here every new
item has its turn before any has a second one.
"""

from __future__ import annotations

import numpy as np

from llmrec.ranker.ragged import Ragged, offsets_of
from llmrec.recall.candidates import Candidates, best_unseen
from llmrec.recall.search import nearest

LOOKED_AT = 20  # users that an item may ask for each one that it is brought to, before it goes without


def turns(rows: np.ndarray, users: int, bucket: int, buckets: int) -> np.ndarray:
    """int64[m]: to how many users of one bucket each item (int64[m] rows) is brought, so that over all buckets it is
    brought to `users`."""
    found: np.ndarray = users // buckets + ((rows + bucket) % buckets < users % buckets)
    return found


def ahead(items: int, room: int, bucket: int) -> np.ndarray:
    """bool[items]: which go first in a bucket that has room for so many. Every bucket goes on where the one before it
    ends, so that items that are nobody's nearest go first somewhere, too."""
    return (np.arange(items) - bucket * room) % max(items, 1) < room


def introduced(
    profiles: np.ndarray,
    items: np.ndarray,
    rows: np.ndarray,
    turns: np.ndarray,
    first: np.ndarray,
    places: int,
    seen: Ragged,
    n_items: int,
) -> Candidates:
    """What is brought to each user, at most `places` items, nearest first.

    In turns, those of `first` before the others and of either the item first that is nearest to somebody, each takes
    the nearest user who has a place left and has not had it, until it has had its turns or has asked LOOKED_AT times as
    many. profiles: float32[n_users, d], what users had, zeros where nothing is known; items: float32[m, d], new ones,
    and rows: int64[m], where these are in the catalogue; turns: int64[m]; first: bool[m]; seen: users' item rows.
    """
    wanted = int(turns.max(initial=0))
    asked = nearest(items, profiles, None, min(LOOKED_AT * wanted, len(profiles)))
    had = seen.values.astype(np.int64) * len(profiles) + np.repeat(np.arange(len(seen)), seen.lengths)
    item = np.repeat(np.arange(len(rows)), asked.items.lengths)
    new = ~np.isin(rows[item] * len(profiles) + asked.items.values, had[np.isin(seen.values, rows)])
    offsets = offsets_of(np.bincount(item[new], minlength=len(rows))).tolist()
    of, scores = asked.items.values[new].tolist(), asked.scores[new]
    next_, left = offsets[:-1], [places] * len(profiles)
    ends, taken = offsets[1:], []
    best = np.asarray([scores[at] if at < end else -np.inf for at, end in zip(next_, ends, strict=True)])
    order = np.lexsort((-best, ~first)).tolist()
    for turn in range(wanted):
        for i in order:
            if turn >= turns[i]:
                continue
            while next_[i] < ends[i] and not left[of[next_[i]]]:
                next_[i] += 1
            if next_[i] < ends[i]:
                left[of[next_[i]]] -= 1
                taken.append((of[next_[i]], rows[i], scores[next_[i]]))
                next_[i] += 1
    user, row, score = np.asarray(taken, np.float64).reshape(-1, 3).T
    by_user = np.argsort(user, kind="stable")
    lists = Ragged(
        row[by_user].astype(np.int32), offsets_of(np.bincount(user.astype(np.int64), minlength=len(profiles)))
    )
    return best_unseen(lists, score[by_user].astype(np.float32), None, places, n_items)
