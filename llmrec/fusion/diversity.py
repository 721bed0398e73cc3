"""How alike items are, and what an item adds to a list: maximal marginal relevance, determinantal point processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llmrec.ranker.ragged import Ragged, like_lengths, padded

LEAST = 1e-6  # of a volume: what is smaller is rounding, of an item that those chosen say all about


class Alike(Protocol):
    """How alike any two items are: at most 1, of an item and itself 1, such that any matrix of it is positive
    semidefinite. cells: numbers held of an item while it is compared."""

    @property
    def cells(self) -> int: ...

    def among(self, items: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """From one place of each list, int64[m], to float[m, w]: how alike the item there is to each of its list.

        items: int[m, w] of lists, -1 where there is none, of which anything may be told.
        """

    def known(self, items: np.ndarray) -> np.ndarray:
        """bool, as items: those of which anything is known that could make them like others."""


@dataclass(frozen=True)
class Vectors:
    """The cosine. of: float32[n_items, d]; a row of zeros is like no other item."""

    of: np.ndarray

    @property
    def cells(self) -> int:
        return 2 * self.of.shape[1]

    def among(self, items: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        rows, held = np.arange(len(items)), np.asarray(self.of[items])
        # vecdot does each pair by itself, so that what it gives depends on no other item or list, as a product of
        # matrices may in its last bits.
        lengths = np.sqrt(np.vecdot(held, held))
        held = np.divide(held, lengths[..., None], out=held, where=lengths[..., None] > 0)
        return lambda place: np.vecdot(held, held[rows, place][:, None])

    def known(self, items: np.ndarray) -> np.ndarray:
        return np.asarray(self.of[items].any(axis=-1))


@dataclass(frozen=True)
class Categories:
    """The share of two items' values that both have, of those that either has (Jaccard). of: the values of each item,
    none twice; an item without any is like no other."""

    of: Ragged

    @property
    def cells(self) -> int:
        return 3 * int(self.of.lengths.max(initial=1))

    def among(self, items: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        rows, held = np.arange(len(items)), values_of(self.of, items)
        counts = (held >= 0).sum(axis=-1)

        def to(place: np.ndarray) -> np.ndarray:
            both = shared(held, held[rows, place]).sum(axis=-1)
            either: np.ndarray = counts + counts[rows, place][:, None] - both
            return both / np.maximum(either, 1)

        return to

    def known(self, items: np.ndarray) -> np.ndarray:
        return self.of.lengths[items] > 0


def values_of(values: Ragged, items: np.ndarray) -> np.ndarray:
    """int32[m, w, c]: the values of items (int[m, w]), -1 on their right."""
    found = padded(values.values, values.offsets, items.ravel(), -1)
    return found.reshape(*items.shape, found.shape[1])


def shared(values: np.ndarray, with_: np.ndarray) -> np.ndarray:
    """bool[m, w, c]: which of the values (int32[m, w, c]) is among some others of its list (int32[m, c])."""
    found = np.zeros(values.shape, bool)
    for one in with_.T:
        found |= values == one[:, None, None]
    return found & (values >= 0)


class Marginal:
    """What each candidate adds to the list so far. gain: float64[m, w]."""

    gain: np.ndarray

    def __init__(self, lists: int, width: int, length: int) -> None:
        self.gain = np.zeros((lists, width))

    def take(self, place: np.ndarray, alike: np.ndarray) -> None:
        """One item more in each list: where it is (int64[m]), how alike it is to each candidate (float[m, w])."""
        raise NotImplementedError


class MaximalMarginalRelevance(Marginal):
    """Minus the likeness to the item of the list that is most like it (Carbonell and Goldstein, "The use of MMR,
    diversity-based reranking for reordering documents and producing summaries", SIGIR 1998); 0 before there is one."""

    nearest: np.ndarray | None = None

    def take(self, place: np.ndarray, alike: np.ndarray) -> None:
        self.nearest = alike if self.nearest is None else np.maximum(self.nearest, alike)
        self.gain = -self.nearest.astype(np.float64)


class Determinant(Marginal):
    """The logarithm of the factor by which it enlarges the determinant of the list's likenesses, by one row of their
    Cholesky factor a pick (Chen, Zhang and Zhou, "Fast greedy MAP inference for determinantal point process to improve
    recommendation diversity", NeurIPS 2018, algorithm 1). An item of which those chosen say all adds log(LEAST), where
    the paper ends the list."""

    def __init__(self, lists: int, width: int, length: int) -> None:
        super().__init__(lists, width, length)
        self.left = np.ones((lists, width))  # d squared in the paper
        self.rows = np.zeros((lists, width, length))  # c in the paper
        self.taken = 0

    def take(self, place: np.ndarray, alike: np.ndarray) -> None:
        lists, rows = np.arange(len(place)), self.rows[:, :, : self.taken]
        left = self.left[lists, place][:, None]
        new = alike - np.vecdot(rows, rows[lists, place][:, None])
        new = np.divide(new, np.sqrt(np.maximum(left, LEAST)), out=np.zeros_like(self.left), where=left > LEAST)
        self.rows[:, :, self.taken] = new
        self.taken += 1
        self.left -= new**2
        self.gain = np.log(np.maximum(self.left, LEAST))


MARGINALS: Mapping[str, type[Marginal]] = {"mmr": MaximalMarginalRelevance, "dpp": Determinant}


def unlikeness(lists: Ragged, alike: Alike, cells: int) -> np.ndarray:
    """float64[n]: 1 minus how alike two items of a list are, its mean over all pairs (Ziegler et al., "Improving
    recommendation lists through topic diversification", WWW 2005); NaN for a list of fewer than two. Items of which
    nothing is known are left out, as in `evaluation.beyond.diversity`: they say nothing of how alike a list is.

    cells: how many numbers to hold at once.
    """
    found = np.full(len(lists), np.nan)
    for users in like_lengths(lists.lengths, max(1, cells // alike.cells)):
        items = padded(lists.values, lists.offsets, users, -1)
        counted = (items >= 0) & alike.known(items)
        to, total = alike.among(items), np.zeros(len(users))
        for place in range(items.shape[1]):
            before = to(np.full(len(users), place))[:, :place].sum(axis=1, where=counted[:, :place])
            total += np.where(counted[:, place], before, 0)
        count = counted.sum(axis=1)
        pairs = count * (count - 1) / 2
        found[users] = np.divide(pairs - total, pairs, out=np.full(len(users), np.nan), where=pairs > 0)
    return found
