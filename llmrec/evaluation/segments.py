"""Groups of users and of items, and how each ranking does in every group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
from scipy import sparse

from llmrec.evaluation import bootstrap

BINS = ((0, 0), (1, 4), (5, 19), (20, 99), (100, None))  # of counts, from and to
THIRDS = ("least popular third", "middle third", "most popular third")
MISSING, OTHER = "(missing)", "(other)"  # which no text of a column is likely to be


@dataclass(frozen=True)
class Grouping:
    """n users or items in g groups, of which each is in one or, where it has several values, in some.

    by: what groups them; names: of the groups; members: csr float64[n, g], 1 for each group that one is in.
    """

    by: str
    names: tuple[str, ...]
    members: sparse.csr_matrix

    def of_pairs(self, groups: np.ndarray) -> Grouping:
        """Of users in these groups (int[m]), a user as often as he is in one."""
        return _grouping(self.by, self.names, groups)

    def shares(self) -> sparse.csr_matrix:
        """csr float64[n, g]: one that is in several groups is shared out among them."""
        each = np.diff(self.members.indptr)
        return sparse.csr_matrix(self.members.multiply((1 / np.maximum(each, 1))[:, None]))


@dataclass(frozen=True)
class GroupRow:
    """One ranking's metrics over a group; interval: 95% bootstrap interval of each mean."""

    name: str
    values: dict[str, float]
    interval: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Group:
    """users: how many it holds; rows: one a ranking, none where it holds nobody."""

    name: str
    users: int
    rows: list[GroupRow]


@dataclass(frozen=True)
class Segments:
    """All groups by one thing. of: whether users are grouped, or true items: then a user is in each group that one of
    his true items is in, and is measured by those alone."""

    by: str
    of: Literal["user", "item"]
    groups: list[Group]


def by_counts(by: str, counts: np.ndarray) -> Grouping:
    """int[n] by BINS, all of them, also those that hold none."""
    names = [f"{low}+" if high is None else f"{low}-{high}" if high > low else f"{low}" for low, high in BINS]
    return _grouping(by, names, np.searchsorted([low for low, _ in BINS], counts, side="right") - 1)


def by_popularity(by: str, had: np.ndarray) -> Grouping:
    """Items by how many users had each (int[n]): three groups of about as many items, ties by row."""
    place = np.empty(len(had), np.int64)
    place[np.argsort(had, kind="stable")] = np.arange(len(had))
    return _grouping(by, THIRDS, place * len(THIRDS) // max(len(had), 1))


def by_numbers(by: str, values: np.ndarray, bins: int, edges: Sequence[float] = ()) -> Grouping:
    """float[n] in bins of about as many, or between given edges; NaN is missing.

    A bin goes from its edge to below the next. Without edges it is named by the least and the greatest in it, and equal
    numbers share one, so that there may be fewer.
    """
    known = values[np.isfinite(values)]
    if len(edges):
        names = [f"below {edges[0]:g}"]
        names += [f"{low:g} to below {high:g}" for low, high in pairwise(edges)]
        names += [f"{edges[-1]:g} and above"]
        codes = np.searchsorted(np.asarray(edges), values, side="right")
    else:
        cuts = np.unique(np.quantile(known, np.arange(1, bins) / bins)) if len(known) else np.empty(0)
        of_known, codes = (np.searchsorted(cuts, some, side="right") for some in (known, values))
        there, codes_of = np.unique(of_known, return_inverse=True)
        names = [_span(known[codes_of == g]) for g in range(len(there))]
        codes = np.searchsorted(there, codes)
    missing = ~np.isfinite(values)
    return _grouping(by, [*names, MISSING] if missing.any() else names, np.where(missing, len(names), codes))


def by_texts(by: str, values: pa.Array, largest: int, lengths: np.ndarray | None = None) -> Grouping:
    """Texts, the `largest` commonest as groups of their own, ties by name, and all rarer ones as one.

    values: string[n], or without gaps those of n lists, whose lengths are int[n]; null, an empty text, or an empty
    list, is missing.
    """
    n = len(values) if lengths is None else len(lengths)
    owner = np.arange(n) if lengths is None else np.repeat(np.arange(n), lengths)
    values = values.cast(pa.string())
    encoded = pa.compute.if_else(pa.compute.equal(values, ""), pa.scalar(None, pa.string()), values).dictionary_encode()
    known = encoded.is_valid().to_numpy(zero_copy_only=False)
    owner, codes = owner[known], encoded.indices.drop_null().to_numpy()
    texts = np.asarray(encoded.dictionary.to_pylist(), object)
    pairs = np.unique(np.stack([owner, codes], axis=1), axis=0)  # a list may hold a value twice
    owner, codes = pairs[:, 0], pairs[:, 1]
    order = np.lexsort((texts.astype(str), -np.bincount(codes, minlength=len(texts))))
    group = np.empty(len(texts), np.int64)
    group[order] = np.minimum(np.arange(len(texts)), largest)
    names = [str(text) for text in texts[order[:largest]]]
    if len(texts) > largest:
        names.append(OTHER)
    none = np.setdiff1d(np.arange(n), owner)
    owner, groups = np.concatenate([owner, none]), np.concatenate([group[codes], np.full(len(none), len(names))])
    if len(none):
        names.append(MISSING)
    return _grouping(by, names, groups.astype(np.int64), owner, n)


def measure(
    grouping: Grouping, of: Literal["user", "item"], rankings: Sequence[str], labels: Sequence[str],
    values: np.ndarray, resamples: int, seed: int,
) -> Segments:  # fmt: skip
    """Each group's metrics of every ranking.

    grouping: of the columns of values: users, or users as often as their true items are in groups; values:
    float64[rankings, metrics, columns].
    """
    groups = []
    for g, (name, users) in enumerate(zip(grouping.names, inside(grouping), strict=True)):
        if not len(users):
            groups.append(Group(name, 0, []))
            continue
        part = values[:, :, users]
        means, flat = part.mean(axis=2), part.reshape(-1, len(users))
        samples = bootstrap.means(flat, resamples, [seed, g]).reshape(*means.shape, resamples)
        rows = [
            GroupRow(
                ranking,
                dict(zip(labels, means[r].tolist(), strict=True)),
                dict(zip(labels, map(bootstrap.bounds, samples[r]), strict=True)),
            )
            for r, ranking in enumerate(rankings)
        ]
        groups.append(Group(name, len(users), rows))
    return Segments(grouping.by, of, groups)


def inside(grouping: Grouping) -> list[np.ndarray]:
    """int[users] of each group, ascending."""
    columns = grouping.members.tocsc()
    columns.sort_indices()
    return np.split(columns.indices, columns.indptr[1:-1])


def _grouping(
    by: str, names: Sequence[str], codes: np.ndarray, owner: np.ndarray | None = None, n: int | None = None
) -> Grouping:
    rows = np.arange(len(codes)) if owner is None else owner
    shape = (len(codes) if n is None else n, len(names))
    # A rare value and another may both be of the group of others.
    members = sparse.csr_matrix((np.ones(len(codes)), (rows, codes)), shape=shape)
    members.data[:] = 1
    return Grouping(by, tuple(names), members)


def _span(values: np.ndarray) -> str:
    low, high = values.min(), values.max()
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
