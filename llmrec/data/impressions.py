"""What users were shown of published rankings and what came of it, row by row. Plain arrow and polars, no cluster."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import pyarrow as pa

from llmrec.config import Columns, Feedback
from llmrec.data.context import texts, unix_seconds
from llmrec.errors import UserError
from llmrec.schema import DETAIL, ITEM, KEY, ORIGIN, QUARANTINE, REASON, RUN_ID, TIMESTAMP, USER, as_ids, require

POSITION, TAKEN = "position", "taken"


def judge_impressions(
    rows: pa.Table, columns: Columns, settings: Feedback, min_timestamp: int, max_timestamp: int, source: str,
    context: Sequence[str] = (),
) -> pl.DataFrame:  # fmt: skip
    """user_id, item_id, timestamp, position (int64, from 1 on), taken (bool), run_id where the rows have one, the
    columns of `context` as they are, and the reason why a row cannot be used, null if it can.

    Reasons: `null_id`, `null_timestamp`, `impossible_timestamp`, `impossible_position` (null, or below 1),
    `null_outcome`.

    Raises:
        UserError: a column is missing or of the wrong type.
    """
    users, items = (as_ids(rows, name, source) for name in (columns.user, columns.item))
    require(rows.schema, {columns.timestamp: "time"}, source)
    frame = pl.DataFrame({
        USER: pl.Series(values=users),
        ITEM: pl.Series(values=items),
        TIMESTAMP: pl.Series(values=unix_seconds(rows[columns.timestamp])),
        POSITION: _whole(rows, settings.position, source),
        TAKEN: _outcome(rows, settings.outcome, source),
    })  # fmt: skip
    if RUN_ID in rows.column_names:
        frame = frame.with_columns(texts(rows[RUN_ID]).alias(RUN_ID))
    frame = frame.with_columns(pl.Series(name, values=rows[name]) for name in context if name in rows.column_names)
    return frame.with_columns(
        pl.when(pl.col(USER).is_null() | pl.col(ITEM).is_null())
        .then(pl.lit("null_id"))
        .when(pl.col(TIMESTAMP).is_null())
        .then(pl.lit("null_timestamp"))
        .when(~pl.col(TIMESTAMP).is_between(min_timestamp, max_timestamp))
        .then(pl.lit("impossible_timestamp"))
        .when((pl.col(POSITION) < 1).fill_null(True))
        .then(pl.lit("impossible_position"))
        .when(pl.col(TAKEN).is_null())
        .then(pl.lit("null_outcome"))
        .alias(REASON)
    )


def _whole(rows: pa.Table, column: str, source: str) -> pl.Series:
    kind = _typed(rows, column, "position", source)
    if not pa.types.is_integer(kind):
        raise UserError(
            f"{source}: column '{column}' has type {kind}; feedback.position is a whole number, 1 the first"
        )
    return pl.Series(values=rows[column].cast(pa.int64()))


def _outcome(rows: pa.Table, column: str, source: str) -> pl.Series:
    kind = _typed(rows, column, "outcome", source)
    found = pl.Series(values=rows[column])
    if pa.types.is_boolean(kind):
        return found
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise UserError(
            f"{source}: column '{column}' has type {kind}; feedback.outcome is a boolean, or a number above 0 where "
            "the user took the item"
        )
    return pl.select(pl.when(found.is_nan() if found.dtype.is_float() else False).then(None).otherwise(found > 0))[
        "literal"
    ]


def _typed(rows: pa.Table, column: str, setting: str, source: str) -> pa.DataType:
    if column not in rows.column_names:
        raise UserError(
            f"{source}: column '{column}' is missing (it has: {', '.join(rows.column_names)}); name it in "
            f"feedback.{setting}"
        )
    return rows.schema.field(column).type


def counted(good: pl.DataFrame, positions: int) -> pl.DataFrame:
    """item_id, position, shown, taken: how often. Positions beyond `positions` count as it."""
    place = pl.min_horizontal(POSITION, pl.lit(positions)).alias(POSITION)
    return added(
        [good.group_by(ITEM, place).agg(shown=pl.len().cast(pl.Int64), taken=pl.col(TAKEN).sum().cast(pl.Int64))]
    )


def added(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Several of `counted` as one. An empty one may have lost the types of its columns."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return pl.DataFrame(schema={ITEM: pl.String, POSITION: pl.Int64, "shown": pl.Int64, "taken": pl.Int64})
    return pl.concat(parts).group_by(ITEM, POSITION).agg(pl.col("shown", "taken").sum()).sort(ITEM, POSITION)


def impressions_quarantine(bad: pl.DataFrame, source: str) -> pa.Table:
    """Set-aside impressions: the key is the user, the detail is item, time and position."""
    detail = pl.format(
        "item={} timestamp={} position={}",
        *(pl.col(name).cast(pl.String).fill_null("null") for name in (ITEM, TIMESTAMP, POSITION)),
    )
    shown = bad.select(
        pl.col(USER).cast(pl.String).alias(KEY), REASON, detail.alias(DETAIL), pl.lit(source).alias(ORIGIN)
    )
    return shown.to_arrow().cast(QUARANTINE)
