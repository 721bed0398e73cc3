"""Exact search of the nearest items by blocks of users and of items: never a score for every item of every user."""

from __future__ import annotations

import numpy as np

from llmrec.ranker.ragged import Ragged, offsets_of
from llmrec.recall.candidates import Candidates

USERS_AT_ONCE, ITEMS_AT_ONCE = 512, 1 << 15


def nearest(
    users: np.ndarray, items: np.ndarray, seen: Ragged | None, count: int, least: float = -np.inf
) -> Candidates:
    """Each user's `count` items of the largest product above `least`, best first; ties go to the smaller row.

    A vector of zeros stands for what nothing is known of: such an item is never found, such a user finds nothing.
    users: float32[m, d]; items: float32[n, d], which may be mapped from a file: read once for USERS_AT_ONCE users,
    ITEMS_AT_ONCE at a time; seen: m users' item rows that are no choice.
    """
    parts = []
    for first in range(0, len(users), USERS_AT_ONCE):
        some = users[first : first + USERS_AT_ONCE]
        without = None if seen is None else seen.take(np.arange(first, first + len(some)))
        parts.append(_nearest(some, items, without, count, least))
    rows = np.concatenate([np.empty((0, count), np.int32), *(p[0] for p in parts)])
    scores = np.concatenate([np.empty((0, count), np.float32), *(p[1] for p in parts)])
    found = scores > -np.inf
    return Candidates(
        Ragged(rows[found], offsets_of(found.sum(axis=1))), scores[found], np.zeros(int(found.sum()), np.int8)
    )


def products(users: np.ndarray, items: np.ndarray, asked: Ragged) -> np.ndarray:
    """float32[total]: of each user's vector with those of the items asked for, NaN where either is 0.

    They may differ in their last bits from those that `nearest` found.
    """
    found = np.empty(len(asked.values), np.float32)
    user = np.repeat(np.arange(len(asked)), asked.lengths)
    for first in range(0, len(found), ITEMS_AT_ONCE):
        here = slice(first, first + ITEMS_AT_ONCE)
        mine, theirs = users[user[here]], items[asked.values[here]]
        known = mine.any(axis=1) & theirs.any(axis=1)
        found[here] = np.where(known, np.einsum("ij,ij->i", mine, theirs), np.nan)
    return found


def _nearest(
    users: np.ndarray, items: np.ndarray, seen: Ragged | None, count: int, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """int32[m, count] rows and float32[m, count], best first, -inf where there are no more."""
    m = len(users)
    rows, scores = np.zeros((m, count), np.int32), np.full((m, count), -np.inf, np.float32)
    known = users.any(axis=1)
    floor = np.where(known, np.float32(least), np.float32(np.inf))  # what an item has to be above
    if not known.any() or not count:
        return rows, scores
    buffer = np.empty((m, min(ITEMS_AT_ONCE, len(items))), np.float32)
    for start in range(0, len(items), ITEMS_AT_ONCE):
        block = items[start : start + ITEMS_AT_ONCE]
        products = np.matmul(users, block.T, out=buffer[:, : len(block)])
        products[:, ~block.any(axis=1)] = -np.inf
        if seen is not None:
            _hide(products, seen, start)
        # Who scores what the last of the best does comes after it, since his row is larger.
        user, item = np.nonzero(_best(products, products > floor[:, None], count))
        if not len(user):
            continue
        new = np.bincount(user, minlength=m)
        column = np.arange(len(user)) - np.repeat(offsets_of(new)[:-1], new)
        wide_scores = np.full((m, count + int(new.max())), -np.inf, np.float32)
        wide_rows = np.zeros(wide_scores.shape, np.int32)
        wide_scores[:, :count], wide_rows[:, :count] = scores, rows
        wide_scores[user, count + column] = products[user, item]
        wide_rows[user, count + column] = start + item
        order = np.argsort(-wide_scores, axis=1, kind="stable")[:, :count]
        scores, rows = np.take_along_axis(wide_scores, order, 1), np.take_along_axis(wide_rows, order, 1)
        floor = np.maximum(floor, scores[:, -1])
    return rows, scores


def _best(scores: np.ndarray, open_: np.ndarray, count: int) -> np.ndarray:
    """bool[m, b]: of those open, which can be among a row's `count` best; no more than these where a row has many."""
    many = np.flatnonzero(open_.sum(axis=1) > 2 * count)
    if not len(many):
        return open_
    some = np.where(open_[many], scores[many], -np.inf)
    last = np.partition(some, some.shape[1] - count, axis=1)[:, some.shape[1] - count, None]
    above, ties = some > last, some == last
    open_[many] = above | (ties & (ties.cumsum(axis=1) <= count - above.sum(axis=1, keepdims=True)))
    return open_


def _hide(scores: np.ndarray, seen: Ragged, start: int) -> None:
    """Scores of items start .. to -inf where a user has seen them, in place."""
    user = np.repeat(np.arange(len(seen)), seen.lengths)
    item = seen.values.astype(np.int64) - start
    here = (item >= 0) & (item < scores.shape[1])
    scores[user[here], item[here]] = -np.inf
