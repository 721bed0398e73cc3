"""Histories and candidates as catalogue rows: the bridge from arrow lists to flat integer arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec.ranker.ragged import Ragged, offsets_of, within
from llmrec.schema import ITEMS, TRAIN_LENGTH
from llmrec.tables.catalogue import rows_of


def item_rows(lists: pa.Array | pa.ChunkedArray, catalogue_ids: pa.Array) -> Ragged:
    """Each list of item ids as rows of the catalogue, -1 for an id (or null) that it lacks.

    catalogue_ids: ascending ids; row i is catalogue_ids[i].
    """
    flat, offsets = flatten(lists)
    return Ragged(rows_of(flat, catalogue_ids), offsets)


def flatten(lists: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """The values of a list column back to back and their int64[n + 1] offsets; a null list counts as empty."""
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.chunk(0) if lists.num_chunks == 1 else lists.combine_chunks()  # which copies
    lengths = pa.compute.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    return lists.flatten(), offsets_of(lengths)


def as_lists(values: pa.Array, offsets: np.ndarray) -> pa.Array:
    """The inverse of `flatten`."""
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def training_part(histories: pa.Table) -> pa.Table:
    """A histories table whose lists end where training does."""
    flat, offsets = flatten(histories[ITEMS])
    lengths = np.diff(offsets)
    kept = np.minimum(lengths, histories[TRAIN_LENGTH].to_numpy())
    lists = as_lists(flat.filter(pa.array(within(lengths) < kept.repeat(lengths))), offsets_of(kept))
    place = histories.column_names.index(ITEMS)
    return histories.set_column(place, ITEMS, lists.cast(histories.schema.field(ITEMS).type))


def without_events(histories: pa.Table) -> pa.Table:
    """A histories table in which nobody has a history."""
    none = as_lists(flatten(histories[ITEMS])[0][:0], np.zeros(histories.num_rows + 1, np.int64))
    place = histories.column_names.index(ITEMS)
    return histories.set_column(place, ITEMS, none.cast(histories.schema.field(ITEMS).type))


def keep(ragged: Ragged, mask: np.ndarray) -> Ragged:
    """The values where mask (bool[total]) is true; sequences may become empty."""
    lengths = (
        np.add.reduceat(np.append(mask, False).astype(np.int64), ragged.offsets[:-1]) if len(ragged) else np.empty(0)
    )
    lengths = np.where(ragged.lengths > 0, lengths, 0)
    return Ragged(ragged.values[mask], offsets_of(lengths.astype(np.int64)))
