"""What an event happened in (place, device, weather, time of day ...), as texts. Plain arrow and polars, no cluster."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import pyarrow as pa
import pyarrow.compute

from llmrec.config import TIME, Columns, context_name
from llmrec.errors import UserError
from llmrec.schema import CONTEXT, NOW, USER, as_ids, require

PARTS_OF_DAY = ("night", "morning", "afternoon", "evening")  # six hours each, from midnight


def columns_of(context: Sequence[str], columns: Columns) -> list[str]:
    """The columns of the log that `data.context` reads."""
    derived = any(name.startswith(TIME) for name in context)
    return [name for name in context if not name.startswith(TIME)] + [columns.timestamp] * derived


def check(found: pa.Schema, context: Sequence[str], source: str) -> None:
    """Does a table have the columns that `data.context` names, of texts, whole numbers or booleans?

    Raises:
        UserError: one is missing or of another type.
    """
    for name in context:
        if name.startswith(TIME):
            continue
        if name not in found.names:
            raise UserError(
                f"{source}: column '{name}', which data.context names, is missing (it has: {', '.join(found.names)})"
            )
        kind = found.field(name).type
        if not has_text(kind):
            number = pa.types.is_floating(kind) or pa.types.is_decimal(kind)
            what = (
                "cut its numbers into a few named ranges, as texts (cold, mild, warm)"
                if number
                else "make it one of these"
            )
            raise UserError(
                f"{source}: column '{name}' has type {kind}; data.context takes texts, whole numbers and booleans: "
                f"{what}"
            )


def has_text(kind: pa.DataType) -> bool:
    """Whether values of a type are texts, whole numbers or booleans (or nulls), which `texts` takes."""
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    text = pa.types.is_string(plain) or pa.types.is_large_string(plain) or pa.types.is_string_view(plain)
    return bool(text or pa.types.is_integer(plain) or pa.types.is_boolean(plain) or pa.types.is_null(plain))


def texts(given: pa.ChunkedArray) -> pl.Series:
    """String[n] of a column of such a type."""
    given = given.cast(given.type.value_type) if pa.types.is_dictionary(given.type) else given
    return pl.Series(values=given.cast(pa.string()), dtype=pl.String)


def values(rows: pa.Table, seconds: pl.Series, context: Sequence[str], source: str) -> list[pl.Series]:
    """A column `context_<name>` of texts for each name of `data.context`, null where nothing is known.

    seconds: int64[n] unix seconds of the rows, null where there are none to derive from; hours are those of UTC.

    Raises:
        UserError: as `check`.
    """
    check(rows.schema, context, source)
    time = pl.from_epoch(seconds, time_unit="s").dt
    hour = pl.Series(PARTS_OF_DAY)
    derived = {
        "hour": lambda: time.strftime("%H"),
        "weekday": lambda: time.strftime("%A").str.to_lowercase(),
        "part_of_day": lambda: hour.gather((time.hour() // 6).cast(pl.UInt32)),
        "month": lambda: time.strftime("%B").str.to_lowercase(),
    }
    found = []
    for name in context:
        column = derived[context_name(name)]() if name.startswith(TIME) else texts(rows[name])
        found.append(column.alias(CONTEXT + context_name(name)))
    return found


def requests(rows: pa.Table, context: Sequence[str], columns: Columns, user: pa.DataType, source: str) -> pa.Table:
    """user_id and `now_<name>` of users who are to be scored in a context of theirs.

    rows: one a user: his id, the columns that `data.context` names, and for what it derives the log's time column.

    Raises:
        UserError: a column is missing or of the wrong type, ids are of another type than the log's, or a user is
            missing or has several rows.
    """
    users = as_ids(rows, columns.user, source).combine_chunks()
    if users.type != user:
        raise UserError(f"{source}: column '{columns.user}' holds {users.type} ids, but the log holds {user}")
    if users.null_count:
        raise UserError(f"{source}: {users.null_count} rows have no '{columns.user}'; give each one or leave them out")
    counted = pa.compute.value_counts(users)
    several = counted.filter(pa.compute.greater(counted.field("counts"), 1))
    if len(several):
        raise UserError(f"{source}: user {several[0]['values'].as_py()!r} has several rows; leave one of each user")
    seconds = pl.Series([None] * len(users), dtype=pl.Int64)
    if columns.timestamp in columns_of(context, columns):
        require(rows.schema, {columns.timestamp: "time"}, source)
        seconds = pl.Series(values=unix_seconds(rows[columns.timestamp]))
    found = values(rows, seconds, context, source)
    return pa.table({USER: users} | {NOW + s.name.removeprefix(CONTEXT): s.to_arrow().cast(pa.string()) for s in found})


def asked(histories: pa.Table, requests: pa.Table) -> tuple[pa.Table, int]:
    """Histories whose `now_<name>` are those of `requests`, null for a user who has none; and how many have one."""
    place = pa.compute.index_in(histories[USER].combine_chunks(), requests[USER].combine_chunks())
    for name in requests.column_names:
        if name != USER:
            column = requests[name].combine_chunks().take(place)
            histories = histories.set_column(histories.column_names.index(name), name, column)
    return histories, len(place) - place.null_count


def unix_seconds(time: pa.ChunkedArray) -> pa.ChunkedArray:
    """int64 unix seconds of a column of numbers or timestamps; null where there are none, -1 beyond all numbers."""
    if pa.types.is_timestamp(time.type):
        time = time.cast(pa.timestamp("s"), safe=False)
    elif pa.types.is_floating(time.type):
        time = pa.compute.floor(pa.compute.if_else(pa.compute.is_finite(time), time, None))
        time = pa.compute.if_else(pa.compute.less(pa.compute.abs(time), 2.0**62), time, -1)
    return time.cast(pa.int64(), safe=False)
