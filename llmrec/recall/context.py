"""How well an item goes with what a user is asked about in: pointwise mutual information of items and contexts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute
from scipy import sparse

from llmrec.ranker.ragged import Ragged
from llmrec.recall.candidates import Candidates, top_dense

NAME, VALUE, ITEM, USERS = "context", "value", "item", "users"


def counted(histories: Ragged, contexts: Mapping[str, pa.Array]) -> pl.DataFrame:
    """How many users had each item in each context: columns context (its name), value, item (row) and users.

    histories: item rows; contexts: string[total] of their events, by the context's name; null says nothing. Adds up
    over any partition of the users.
    """
    user = np.repeat(np.arange(len(histories)), histories.lengths)
    parts = [
        pl.DataFrame({VALUE: pl.Series(values=values, dtype=pl.String), ITEM: histories.values, "user": user})
        .filter(pl.col(VALUE).is_not_null())
        .unique()
        .group_by(VALUE, ITEM)
        .agg(pl.len().cast(pl.Int64).alias(USERS))
        .select(pl.lit(name).alias(NAME), VALUE, ITEM, USERS)
        for name, values in contexts.items()
    ]
    return added(parts)


def added(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The sum of some counts, rows in ascending order."""
    nothing = pl.DataFrame(schema={NAME: pl.String, VALUE: pl.String, ITEM: pl.Int32, USERS: pl.Int64})
    return pl.concat([nothing, *parts]).group_by(NAME, VALUE, ITEM).agg(pl.col(USERS).sum()).sort(NAME, VALUE, ITEM)


def values_of(counts: pl.DataFrame, least: int) -> dict[str, list[str]]:
    """By the context's name, the values that are counted so often at least, over all items, ascending."""
    common = counts.group_by(NAME, VALUE).agg(pl.col(USERS).sum()).filter(pl.col(USERS) >= least).sort(NAME, VALUE)
    lists = common.group_by(NAME, maintain_order=True).agg(VALUE)
    return dict(zip(lists[NAME].to_list(), lists[VALUE].to_list(), strict=True))


@dataclass(frozen=True)
class Association:
    """How items go with the values of one context.

    values: string[v], ascending; common: float32[n_items], what an item gets in each value, and without: above that,
    float32[v, n_items], what it gets in a value that it was had in.
    """

    values: pa.Array
    common: np.ndarray
    above: sparse.csr_matrix


def learn(counts: pl.DataFrame, n_items: int, prior: float) -> dict[str, Association]:
    """The association of items with each context, by its name: smoothed pointwise mutual information.

    log P(item | value) - log P(item), which is log P(value | item) - log P(value), with P(value | item) =
    (n(value, item) + prior * P(value)) / (n(item) + prior): as if `prior` more users had had the item, in contexts as
    all others' are, so that an item of few users gets little, and one of none 0. n counts users, each once a value.
    """
    found = {}
    for (name,), of in counts.group_by(NAME, maintain_order=True):
        values = of[VALUE].unique(maintain_order=True)
        row = of[VALUE].replace_strict(values, np.arange(len(values)), return_dtype=pl.Int64).to_numpy()
        item, users = of[ITEM].to_numpy(), of[USERS].to_numpy().astype(np.float64)
        share = np.bincount(row, users, len(values)) / users.sum()
        common = -np.log1p(np.bincount(item, users, n_items) / prior)
        above = np.log1p(users / (prior * share[row])).astype(np.float32)
        matrix = sparse.csr_matrix((above, (row, item)), shape=(len(values), n_items))
        matrix.sort_indices()
        found[str(name)] = Association(values.to_arrow().cast(pa.string()), common.astype(np.float32), matrix)
    return found


def rows_of(asked: pa.Table, associations: Mapping[str, Association], users: int) -> np.ndarray:
    """int64[n, c]: which value of each association n users are asked about in, -1 where that is not known.

    asked: a column string[n] of each.
    """
    found = [
        pa.compute.index_in(asked[name].combine_chunks(), of.values).fill_null(-1).to_numpy(zero_copy_only=False)
        for name, of in associations.items()
    ]
    return np.stack(found, axis=1).astype(np.int64) if found else np.empty((users, 0), np.int64)


@dataclass(frozen=True)
class InContext:
    """What contexts say of items to n users; see `scores.Scores`. An item's score is the sum of its associations with
    what the user is asked about in; recalled are those most likely there: log popularity and that sum, which is naive
    Bayes.

    rows: int64[n, c] of `rows_of`; popularity: float32[n_items], items of 0 are not recalled.
    """

    associations: Sequence[Association]
    rows: np.ndarray
    popularity: np.ndarray

    def top(self, seen: Ragged | None, count: int) -> Candidates:
        different, place = np.unique(self.rows, axis=0, return_inverse=True)
        with np.errstate(divide="ignore"):
            scores = np.repeat(np.log(self.popularity)[None], len(different), axis=0)
        for column, of in enumerate(self.associations):
            there = np.flatnonzero(different[:, column] >= 0)
            scores[there] += of.common
            scores[there] += of.above[different[there, column]].toarray()
        return top_dense(scores[place.ravel()], seen, count)

    def at(self, items: Ragged) -> np.ndarray:
        total = np.zeros(len(items.values), np.float32)
        for column, of in enumerate(self.associations):
            row = np.repeat(self.rows[:, column], items.lengths)
            total += np.where(row >= 0, of.common[items.values] + _stored(of.above, row, items.values), 0)
        return np.where(np.repeat((self.rows >= 0).any(axis=1), items.lengths), total, np.nan).astype(np.float32)


def _stored(matrix: sparse.csr_matrix, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """float32[total]: the entries at these places, 0 where none is stored. matrix: with sorted indices."""
    if not matrix.nnz:
        return np.zeros(len(rows), np.float32)
    width = matrix.shape[1]
    keys = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)) * width + matrix.indices
    wanted = rows * width + columns
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, matrix.data[place], np.float32(0))
