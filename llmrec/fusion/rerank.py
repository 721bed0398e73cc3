"""Lists out of each user's best candidates: relevance against diversity, within rules. After what ranks is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmrec.fusion.diversity import MARGINALS, Alike, Marginal, shared, values_of
from llmrec.fusion.parts import NORMALISERS
from llmrec.ranker.ragged import Ragged, like_lengths, padded

CELLS = 1 << 22  # numbers of a block of users held at once


@dataclass(frozen=True)
class Quota:
    """At most so many items of one value in a list. of: int32 values of each item of the catalogue, none twice."""

    of: Ragged
    most: int


@dataclass(frozen=True)
class Floor:
    """Of the first k places of a list, for every k, at least floor(share * k) are these items': bool[n_items]."""

    items: np.ndarray
    share: float


@dataclass(frozen=True)
class Rerank:
    """How a list is chosen.

    window: of how many of a user's best; method: of `diversity.MARGINALS`, None for relevance alone; trade: from
    relevance alone, 0, to diversity alone, 1; alike: what makes items alike, None where nothing has to be compared.
    """

    window: int
    method: str | None = None
    trade: float = 0.0
    alike: Alike | None = None
    quotas: tuple[Quota, ...] = ()
    floors: tuple[Floor, ...] = ()


def choose(scores: np.ndarray, items: Ragged, how: Rerank, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Each user's list, one item after another: of those that the quotas still allow the one with the largest

        (1 - trade) * relevance + trade * what it adds (see `diversity.MARGINALS`).

    Relevance is the score between 0, that of the user's worst candidate here, and 1, that of his best. Of equal ones
    the one that ranks higher is chosen. A list that no candidate may join any more ends there.

    Where a floor would be broken by any other, the best one of its items is chosen (DetGreedy: Geyik, Ambler and
    Kenthapadi, "Fairness-aware ranking in search and recommendation systems", KDD 2019). It is broken only where the
    user's window, within the quotas, has no more of them, or where several floors want the same place.

    scores: float[total]; items: of each user, as they rank by score and item id, best first.
    int64[m]: where the chosen ones are among all, list by list; int64[n]: how many are of each user.
    """
    worth = NORMALISERS["min_max"](scores.astype(np.float64), items.offsets)
    lengths = items.lengths
    top_k = min(top_k, int(lengths.max(initial=0)))
    found = np.full((len(items), top_k), -1)
    for users in like_lengths(lengths, max(1, CELLS // _cells(how, top_k))):
        rows = padded(items.values, items.offsets, users, -1)
        places = _places(rows, padded(worth, items.offsets, users, 0.0), how, min(top_k, rows.shape[1]))
        at = np.where(places >= 0, items.offsets[users, None] + places, -1)
        found[users, : at.shape[1]] = at
    return found[found >= 0], (found >= 0).sum(axis=1)


def _cells(how: Rerank, top_k: int) -> int:
    """Numbers held of a candidate."""
    of_quotas = sum(3 * int(quota.of.lengths.max(initial=1)) for quota in how.quotas)
    return 4 + of_quotas + (0 if how.alike is None else how.alike.cells + 2 * top_k)


def _allowed(
    there: np.ndarray, floors: tuple[Floor, ...], wanted: list[np.ndarray], had: np.ndarray, places: int
) -> np.ndarray:
    """bool[m, w]: of the candidates that are left, those of the floors that want the next place, or all where none
    does. wanted: bool[m, w] of each floor; had: int64[floors, m], how many each list has already."""
    if not floors:
        return there
    due = np.zeros_like(there)
    for floor, of_floor, so_far in zip(floors, wanted, had, strict=True):
        due |= of_floor & (so_far < _floor_of(floor.share, places))[:, None]
    due &= there
    due[~due.any(axis=1)] = True
    return due & there


def _floor_of(share: float, places: int) -> int:
    return int(np.floor(share * places + 1e-9))


def _places(rows: np.ndarray, worth: np.ndarray, how: Rerank, count: int) -> np.ndarray:
    """int64[m, count]: where the chosen are in lists of catalogue rows (int32[m, w], -1 for none), then -1."""
    lists, there = np.arange(len(rows)), rows >= 0
    items = np.where(there, rows, 0)
    marginal: Marginal | None = None
    if how.method is not None and how.trade > 0:
        assert how.alike is not None
        alike, marginal = how.alike.among(items), MARGINALS[how.method](len(rows), rows.shape[1], count)
    held = [values_of(quota.of, items) for quota in how.quotas]
    used = [np.zeros(values.shape, np.int32) for values in held]
    found = np.full((len(rows), count), -1)
    wanted = [floor.items[items] for floor in how.floors]
    had = np.zeros((len(how.floors), len(rows)), np.int64)
    for step in range(count):
        value = worth if marginal is None else (1 - how.trade) * worth + how.trade * marginal.gain
        place = np.where(_allowed(there, how.floors, wanted, had, step + 1), value, -np.inf).argmax(axis=1)
        found[:, step] = np.where(there[lists, place], place, -1)
        for floor, of_floor in zip(had, wanted, strict=True):
            floor += of_floor[lists, place] & there[lists, place]
        there[lists, place] = False
        if step == count - 1:
            break
        for quota, values, of_value in zip(how.quotas, held, used, strict=True):
            of_value += shared(values, values[lists, place])
            there &= ~(of_value >= quota.most).any(axis=-1)
        if marginal is not None:
            marginal.take(place, alike(place))
    return found
