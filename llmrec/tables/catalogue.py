"""From item ids to rows of the catalogue."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute

WIDEST, SPARSEST = 1 << 18, 4


def rows_of(ids: pa.Array, catalogue_ids: pa.Array) -> np.ndarray:
    """int32[n]: the row of each id, -1 for one that the catalogue lacks and for null.

    ids: int64, string, or a dictionary of either; catalogue_ids: ascending, row i is catalogue_ids[i].
    """
    if pa.types.is_dictionary(ids.type):
        rows = np.append(rows_of(ids.dictionary, catalogue_ids), np.int32(-1))
        return rows[ids.indices.cast(pa.int32()).fill_null(len(ids.dictionary)).to_numpy()]
    if pa.types.is_integer(ids.type) and len(catalogue_ids):
        first, last = catalogue_ids[0].as_py(), catalogue_ids[-1].as_py()
        if last - first < max(SPARSEST * len(catalogue_ids), WIDEST):
            return _rows_by_table(ids, catalogue_ids.to_numpy(), first, last)
    return pa.compute.index_in(ids, catalogue_ids).fill_null(-1).to_numpy()


def _rows_by_table(ids: pa.Array, catalogue_ids: np.ndarray, first: int, last: int) -> np.ndarray:
    """By one look into a table of all integers from first to last, which beats hashing where not too many are no id."""
    table = np.full(last - first + 3, -1, np.int32)  # one more at either end stands for all beyond
    table[catalogue_ids - first + 1] = np.arange(len(catalogue_ids), dtype=np.int32)
    rows = table.take(ids.fill_null(first).to_numpy() - first + 1, mode="clip")
    if ids.null_count:
        rows[ids.is_null().to_numpy(zero_copy_only=False)] = -1
    return rows
