"""A run's rows as what is looked up by a user's id: one row a user with the list of his items, best first."""

from __future__ import annotations

import io

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute

from llmrec.schema import ITEM, PROBABILITY, RANK, SCORE, USER

COLUMNS = [USER, RANK, ITEM, SCORE, PROBABILITY]  # that it takes
LIST = "items"


def lists(rows: pa.Table) -> pa.Table:
    """user_id and `items`, list<struct<item_id, score: float32, probability: float32>> in the order of ranks.

    rows: `COLUMNS` of rankings, by user and rank.
    """
    return _lists(rows, [ITEM, SCORE, PROBABILITY])


def json_lines(rows: pa.Table) -> bytes:
    """An object a line, `{"user_id":17,"items":[{"item_id":5,"score":0.5},...]}`, with `probability` where there is
    one. rows: as in `lists`."""
    buffer = io.BytesIO()
    _frame(rows).write_ndjson(buffer)
    return buffer.getvalue()


def json_values(rows: pa.Table) -> tuple[list[int | str], list[str]]:
    """The users, and of each `{"items":[...]}` as in `json_lines`. rows: as in `lists`."""
    frame = _frame(rows)
    return frame[USER].to_list(), frame.select(pl.struct(LIST).struct.json_encode()).to_series().to_list()


def _frame(rows: pa.Table) -> pl.DataFrame:
    told = rows[PROBABILITY].null_count < rows.num_rows
    found = pl.from_arrow(_lists(rows, [ITEM, SCORE, PROBABILITY] if told else [ITEM, SCORE]))
    assert isinstance(found, pl.DataFrame)
    return found


def _lists(rows: pa.Table, fields: list[str]) -> pa.Table:
    rows = rows.combine_chunks()
    users = pa.compute.run_end_encode(rows[USER].combine_chunks())
    arrays = [rows[name].combine_chunks() for name in fields]
    offsets = pa.array(np.append(0, users.run_ends.to_numpy()), pa.int32())
    items = pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(arrays, fields))
    return pa.table({USER: users.values, LIST: items})
