"""Counts over all users, one task a bucket."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
from scipy import sparse

from llmrec.ranker.ragged import Ragged, within
from llmrec.recall import context, item_item
from llmrec.schema import ITEMS, TRAIN_LENGTH
from llmrec.tables import buckets, contexts
from llmrec.tables.histories import item_rows, keep


def cooccurrence(
    histories: str, catalogue_ids: pa.Array, training_only: bool, shared: bool = False
) -> sparse.csr_matrix:
    """float32[n_items, n_items]: `item_item.cooccurrence` of a histories table, with or without validation events."""
    import ray

    ids = ray.put(catalogue_ids)
    count = ray.remote(_of_bucket)
    waiting = [count.remote(uri, ids, training_only, shared) for uri in buckets.bucket_files(histories).values()]
    total = sparse.csr_matrix((len(catalogue_ids), len(catalogue_ids)), dtype="float32")
    while waiting:  # in the order of buckets, so that sums of fractions are the same each time
        total = total + ray.get(waiting.pop(0))
    return total.tocsr()


def _of_bucket(uri: str, catalogue_ids: pa.Array, training_only: bool, shared: bool) -> sparse.csr_matrix:
    table = buckets.read_parquet(uri)
    histories = known_histories(table, catalogue_ids, training_only)
    return item_item.cooccurrence(histories, len(catalogue_ids), shared)


def training_events(histories: str, catalogue_ids: pa.Array) -> tuple[np.ndarray, int]:
    """int64[n_items]: training events of each item, and how many users have any event, one that validates included."""
    import ray

    ids = ray.put(catalogue_ids)
    count = ray.remote(_events_of_bucket)
    waiting = [count.remote(uri, ids) for uri in buckets.bucket_files(histories).values()]
    total, users = np.zeros(len(catalogue_ids), np.int64), 0
    while waiting:
        rows, events, here = ray.get(waiting.pop(0))
        total[rows] += events
        users += here
    return total, users


def _events_of_bucket(uri: str, catalogue_ids: pa.Array) -> tuple[np.ndarray, np.ndarray, int]:
    table = buckets.read_parquet(uri, [ITEMS, TRAIN_LENGTH])
    rows, events = np.unique(known_histories(table, catalogue_ids, training_only=True).values, return_counts=True)
    return rows, events, int((item_rows(table[ITEMS], catalogue_ids).lengths > 0).sum())


def in_context(histories: str, catalogue_ids: pa.Array, training_only: bool) -> pl.DataFrame:
    """`context.counted` of a histories table, with or without validation events."""
    import ray

    ids = ray.put(catalogue_ids)
    count = ray.remote(_in_context_of_bucket)
    waiting = [count.remote(uri, ids, training_only) for uri in buckets.bucket_files(histories).values()]
    return context.added([ray.get(each) for each in waiting])


def _in_context_of_bucket(uri: str, catalogue_ids: pa.Array, training_only: bool) -> pl.DataFrame:
    table = buckets.read_parquet(uri)
    known = known_histories(table, catalogue_ids, training_only)
    return context.counted(known, known_contexts(table, catalogue_ids, training_only))


def known_histories(table: pa.Table, catalogue_ids: pa.Array, training_only: bool) -> Ragged:
    """Histories as catalogue rows, items that left the catalogue dropped, oldest first."""
    rows = item_rows(table[ITEMS], catalogue_ids)
    return keep(rows, _known(table, rows, training_only))


def known_contexts(table: pa.Table, catalogue_ids: pa.Array, training_only: bool) -> dict[str, pa.Array]:
    """By its name, each context of the events of `known_histories`, string[total]."""
    mask = pa.array(_known(table, item_rows(table[ITEMS], catalogue_ids), training_only))
    return {name: values.filter(mask) for name, values in contexts.of_events(table).items()}


def _known(table: pa.Table, rows: Ragged, training_only: bool) -> np.ndarray:
    mask = rows.values >= 0
    if training_only:
        mask &= within(rows.lengths) < table[TRAIN_LENGTH].to_numpy().repeat(rows.lengths)
    return mask
