"""Counts over all users, one task a bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from scipy import sparse

from llmrec import config
from llmrec.ranker.ragged import Ragged, offsets_of, within
from llmrec.recall import context, item_item
from llmrec.recall.neighbours import by_column, by_users, by_vectors, in_blocks, work_of
from llmrec.schema import ITEMS, TIMESTAMPS, TRAIN_LENGTH, WEIGHTS
from llmrec.tables import buckets, contexts
from llmrec.tables.histories import flatten, item_rows, keep

# Multiplications of the sparse product of some items with all: what a task holds of it is at most so many cells.
WORK_AT_ONCE = 1 << 24


def _of_buckets(task: Callable[..., Any], histories: str, catalogue_ids: pa.Array, *arguments: Any) -> Iterator[Any]:
    """What a task says of each bucket, in the order of buckets, so that sums of fractions are the same each time."""
    import ray

    ids, remote = ray.put(catalogue_ids), ray.remote(task)
    waiting = [remote.remote(uri, ids, *arguments) for uri in buckets.bucket_files(histories).values()]
    while waiting:
        yield ray.get(waiting.pop(0))


def events(histories: str, catalogue_ids: pa.Array, training_only: bool) -> Ragged:
    """Every user's different items as catalogue rows, an item where its newest event is, oldest first: 4 bytes each."""
    return joined(list(_of_buckets(_events, histories, catalogue_ids, training_only)))


def _events(uri: str, catalogue_ids: pa.Array, training_only: bool) -> Ragged:
    return item_item.distinct(known_histories(buckets.read_parquet(uri), catalogue_ids, training_only))[0]


def events_and_weights(
    histories: str, catalogue_ids: pa.Array, training_only: bool
) -> tuple[Ragged, np.ndarray | None]:
    """`events`, and of each item the greatest weight of the user's events of it: float32[total], None if all count the
    same."""
    found = list(_of_buckets(_events_and_weights, histories, catalogue_ids, training_only))
    weights = [part for _, part in found if part is not None]
    return joined([items for items, _ in found]), np.concatenate(weights) if weights else None


def _events_and_weights(uri: str, catalogue_ids: pa.Array, training_only: bool) -> tuple[Ragged, np.ndarray | None]:
    table = buckets.read_parquet(uri)
    known, weights = known_histories(table, catalogue_ids, training_only), None
    if (given := known_weights(table, catalogue_ids, training_only)) is not None:
        weights = item_item.heaviest(known, given)
    return item_item.distinct(known)[0], weights


def joined(parts: list[Ragged]) -> Ragged:
    """Some sequences after others."""
    values = np.concatenate([np.empty(0, np.int32), *(part.values for part in parts)])
    return Ragged(values, offsets_of(np.concatenate([np.empty(0, np.int64), *(part.lengths for part in parts)])))


def matrix(items: Ragged, n_items: int, weights: np.ndarray | None = None) -> sparse.csr_matrix:
    """float32[users, n_items]: 1 where a user had an item, or its weight, float32[total]. items: of `events`."""
    data = np.ones(len(items.values), np.float32) if weights is None else weights.copy()
    rows = items.values.copy()  # shared memory is read-only, and they are sorted where they are
    found = sparse.csr_matrix((data, rows, items.offsets), shape=(len(items), n_items))
    found.sort_indices()
    return found


def similar_by_users(
    events: Ragged, n_items: int, settings: config.ItemItem, weights: np.ndarray | None = None
) -> sparse.csr_matrix:
    """float32[n_items, n_items]: column j holds item j's nearest by who had them, one task some items.

    What all users had lies in shared memory, by user and by item, at about 12 bytes an event; a task's memory goes by
    WORK_AT_ONCE. events: of `events`; weights: of `events_and_weights`, see `neighbours.by_users`.
    """
    newest, at = item_item.distinct(events, settings.max_history)
    if weights is None:
        users = matrix(newest, n_items)
        items, squares = users.T.tocsr(), None
        items.data = users.data  # all 1: one array, which then lies there once
    else:
        users = matrix(newest, n_items, weights[at])
        items, squares = users.T.tocsr(), np.bincount(newest.values, weights[at].astype(np.float64) ** 2, n_items)
    return _similar(items, users, _of_users, (settings.neighbours, settings.shrinkage, squares), settings.reach)


def similar_by_vectors(vectors: sparse.csr_matrix, settings: config.Graph) -> sparse.csr_matrix:
    """float32[n_items, n_items]: column j holds item j's nearest by these vectors of length 1 or 0."""
    return _similar(vectors, vectors.T.tocsr(), _of_vectors, (settings.neighbours,), settings.reach)


def _similar(
    items: sparse.csr_matrix, transposed: sparse.csr_matrix, block: Any, arguments: tuple[Any, ...], reach: int
) -> sparse.csr_matrix:
    import ray

    both = ray.put((items, transposed))
    task = ray.remote(block)
    rows = in_blocks(work_of(items, transposed), WORK_AT_ONCE)
    return by_column(ray.get([task.remote(both, some, *arguments) for some in rows]), reach)


def _of_users(
    both: tuple[sparse.csr_matrix, sparse.csr_matrix], rows: slice, count: int, shrinkage: float,
    squares: np.ndarray | None,
) -> sparse.csr_matrix:  # fmt: skip
    return by_users(*both, rows, count, shrinkage, squares)


def _of_vectors(both: tuple[sparse.csr_matrix, sparse.csr_matrix], rows: slice, count: int) -> sparse.csr_matrix:
    return by_vectors(*both, rows, count)


def cooccurrence(
    histories: str, catalogue_ids: pa.Array, training_only: bool, shared: bool = False
) -> sparse.csr_matrix:
    """float32[n_items, n_items]: `item_item.cooccurrence` of a histories table, with or without validation events."""
    total = sparse.csr_matrix((len(catalogue_ids), len(catalogue_ids)), dtype="float32")
    for part in _of_buckets(_of_bucket, histories, catalogue_ids, training_only, shared):
        total = total + part
    return total.tocsr()


def _of_bucket(uri: str, catalogue_ids: pa.Array, training_only: bool, shared: bool) -> sparse.csr_matrix:
    table = buckets.read_parquet(uri)
    histories = known_histories(table, catalogue_ids, training_only)
    return item_item.cooccurrence(histories, len(catalogue_ids), shared)


def training_events(histories: str, catalogue_ids: pa.Array) -> tuple[np.ndarray, int]:
    """int64[n_items]: training events of each item, and how many users have any event, one that validates included."""
    total, users = np.zeros(len(catalogue_ids), np.int64), 0
    for rows, events, here in _of_buckets(_events_of_bucket, histories, catalogue_ids):
        total[rows] += events
        users += here
    return total, users


def _events_of_bucket(uri: str, catalogue_ids: pa.Array) -> tuple[np.ndarray, np.ndarray, int]:
    table = buckets.read_parquet(uri, [ITEMS, TRAIN_LENGTH])
    rows, events = np.unique(known_histories(table, catalogue_ids, training_only=True).values, return_counts=True)
    return rows, events, int((item_rows(table[ITEMS], catalogue_ids).lengths > 0).sum())


def in_context(histories: str, catalogue_ids: pa.Array, training_only: bool, without: str = "") -> pl.DataFrame:
    """`context.counted` of a histories table, with or without validation events. without: a context left out."""
    return context.added(list(_of_buckets(_in_context_of_bucket, histories, catalogue_ids, training_only, without)))


def _in_context_of_bucket(uri: str, catalogue_ids: pa.Array, training_only: bool, without: str) -> pl.DataFrame:
    table = buckets.read_parquet(uri)
    known = known_histories(table, catalogue_ids, training_only)
    told = known_contexts(table, catalogue_ids, training_only)
    return context.counted(known, {name: values for name, values in told.items() if name != without})


def known_histories(table: pa.Table, catalogue_ids: pa.Array, training_only: bool) -> Ragged:
    """Histories as catalogue rows, items that left the catalogue dropped, oldest first."""
    return keep(*_known(table, catalogue_ids, training_only))


def asked_histories(table: pa.Table, catalogue_ids: pa.Array, history: str) -> Ragged:
    """The histories that users are asked about with: all that is known, of training events alone, or none at all."""
    if history == "none":
        return Ragged(np.empty(0, np.int32), np.zeros(table.num_rows + 1, np.int64))
    return known_histories(table, catalogue_ids, history == "training")


def known_events(table: pa.Table, catalogue_ids: pa.Array, training_only: bool) -> tuple[Ragged, np.ndarray]:
    """`known_histories`, and when each event was: int64[total], seconds."""
    rows, mask = _known(table, catalogue_ids, training_only)
    return keep(rows, mask), flatten(table[TIMESTAMPS])[0].to_numpy(zero_copy_only=False)[mask]


def known_weights(table: pa.Table, catalogue_ids: pa.Array, training_only: bool) -> np.ndarray | None:
    """What each event of `known_histories` counts, float32[total]; None if all count the same."""
    if WEIGHTS not in table.column_names:
        return None
    return flatten(table[WEIGHTS])[0].to_numpy(zero_copy_only=False)[_known(table, catalogue_ids, training_only)[1]]


def known_contexts(table: pa.Table, catalogue_ids: pa.Array, training_only: bool) -> dict[str, pa.Array]:
    """By its name, each context of the events of `known_histories`, string[total]."""
    mask = pa.array(_known(table, catalogue_ids, training_only)[1])
    return {name: values.filter(mask) for name, values in contexts.of_events(table).items()}


def _known(table: pa.Table, catalogue_ids: pa.Array, training_only: bool) -> tuple[Ragged, np.ndarray]:
    """All events as catalogue rows, and bool[total]: those of items in the catalogue, and of training if asked."""
    rows = item_rows(table[ITEMS], catalogue_ids)
    mask = rows.values >= 0
    if training_only:
        mask &= within(rows.lengths) < table[TRAIN_LENGTH].to_numpy().repeat(rows.lengths)
    return rows, mask
