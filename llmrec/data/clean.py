"""Which rows of the input are used, and why the others are set aside. Plain arrow and polars, no cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl
import pyarrow as pa
import pyarrow.compute

from llmrec.config import Columns
from llmrec.data.context import has_text, texts, unix_seconds, values
from llmrec.errors import UserError
from llmrec.schema import (
    DETAIL,
    HEAD,
    ITEM,
    KEY,
    ORIGIN,
    QUARANTINE,
    REASON,
    RELATION,
    TAIL,
    TIMESTAMP,
    TITLE,
    USER,
    WEIGHT,
    as_ids,
    edges,
    require,
)

ROW = "row"
"""int64: place of an event in the input, files in name order; breaks ties in time."""

KIND, EVENT_WEIGHT = "event", "event_weight"
"""string, float32: an event's kind and what it counts, where data.event_weights tells."""

DROPPED = "dropped_event"
"""Reason of rows whose kind counts nothing: left out on purpose, so that they are counted, but neither bad nor kept."""


def clean_items(items: pa.Table, columns: Columns, source: str) -> tuple[pa.Table, pa.Table]:
    """Usable items and set-aside ones.

    Reasons: `null_id`, `duplicate_item` (the first that is usable stays), `no_title`. Extra columns pass through.

    Raises:
        UserError: a column is missing or of the wrong type, or no item is usable.
    """
    ids = as_ids(items, columns.item, source)
    items = with_plain_texts(items, columns.title)
    require(items.schema, {columns.title: "text"}, source)
    if clash := {ITEM, TITLE} & (set(items.column_names) - {columns.item, columns.title}):
        raise UserError(f"{source}: column '{min(clash)}' is there beside the one mapped to it; drop or rename one")
    items = items.rename_columns({columns.item: ITEM, columns.title: TITLE})
    items = items.set_column(items.column_names.index(ITEM), ITEM, ids)
    frame = pl.from_arrow(items.select([ITEM, TITLE]))
    assert isinstance(frame, pl.DataFrame)
    titled = pl.col(TITLE).is_not_null() & (pl.col(TITLE).str.strip_chars() != "")
    before = (titled.cast(pl.Int64).cum_sum() - titled.cast(pl.Int64)).over(ITEM)
    reason = frame.select(
        pl.when(pl.col(ITEM).is_null())
        .then(pl.lit("null_id"))
        .when(before > 0)
        .then(pl.lit("duplicate_item"))
        .when(~titled)
        .then(pl.lit("no_title"))
        .alias(REASON)
    )[REASON]
    good = reason.is_null()
    if not good.any():
        raise UserError(f"{source}: none of its {len(reason)} items is usable (no id or no title)")
    bad = frame.with_columns(reason).filter(~good)
    set_aside = _quarantine(bad.select(pl.col(ITEM).alias(KEY), REASON, pl.col(TITLE).alias(DETAIL)), source)
    return items.filter(good.to_arrow()), set_aside


def with_plain_texts(rows: pa.Table, column: str) -> pa.Table:
    """The rows with a column of dictionary-encoded texts, as pandas' categories are written, as plain texts."""
    if column not in rows.column_names or not pa.types.is_dictionary(kind := rows.schema.field(column).type):
        return rows
    return rows.set_column(rows.column_names.index(column), column, rows[column].cast(kind.value_type))


def clean_users(users: pa.Table, source: str) -> tuple[pa.Table, pa.Table]:
    """Usable rows of users' attributes and set-aside ones, whose detail is their place in the input. users: with a
    column user_id.

    Reasons: `null_id`, `duplicate_user` (the first stays).
    """
    frame = pl.DataFrame({KEY: pl.Series(values=users[USER].combine_chunks())}).with_row_index(ROW)
    reason = frame.select(
        pl.when(pl.col(KEY).is_null())
        .then(pl.lit("null_id"))
        .when(~pl.col(KEY).is_first_distinct())
        .then(pl.lit("duplicate_user"))
        .alias(REASON)
    )[REASON]
    bad = frame.with_columns(reason, pl.format("row={}", ROW).alias(DETAIL)).filter(reason.is_not_null())
    return users.filter(reason.is_null().to_arrow()), _quarantine(bad, source)


def clean_edges(rows: pa.Table, known_items: pa.Array, source: str) -> tuple[pa.Table, pa.Table]:
    """Usable edges, as `schema.edges`, and set-aside ones, whose key is the head.

    Reasons: `null_id` (head, relation or tail), `impossible_weight` (null, not finite, or not above 0), `unknown_item`
    (the head is none). Without a column `weight` every edge weighs 1. Heads are brought to the type of the items' ids.

    Raises:
        UserError: a column is missing or of the wrong type.
    """
    item_type = known_items.type
    for column in (HEAD, RELATION, TAIL):
        if column not in rows.column_names:
            raise UserError(
                f"{source}: column '{column}' is missing (it has: {', '.join(rows.column_names)}); edges have "
                f"{HEAD}, {RELATION}, {TAIL} and maybe {WEIGHT}"
            )
    given = {column: as_ids(rows, column, source) for column in (HEAD, RELATION, TAIL)}
    if WEIGHT in rows.column_names:
        require(rows.schema, {WEIGHT: "number"}, source)
    weight = rows[WEIGHT].cast(pa.float32()) if WEIGHT in rows.column_names else [1.0] * rows.num_rows
    frame = pl.DataFrame({
        KEY: pl.Series(values=given[HEAD]), RELATION: pl.Series(values=given[RELATION]).cast(pl.String),
        TAIL: pl.Series(values=given[TAIL]).cast(pl.String), WEIGHT: pl.Series(values=weight, dtype=pl.Float32),
    })  # fmt: skip
    kind = pl.Int64 if pa.types.is_integer(item_type) else pl.String
    frame = frame.with_columns(pl.col(KEY).cast(kind, strict=False).alias(HEAD))
    known = pl.Series(values=known_items)
    frame = frame.with_columns(
        pl.when(pl.any_horizontal(pl.col(KEY, RELATION, TAIL).is_null()))
        .then(pl.lit("null_id"))
        .when((pl.col(WEIGHT).is_finite() & (pl.col(WEIGHT) > 0)).fill_null(False).not_())
        .then(pl.lit("impossible_weight"))
        .when(pl.col(HEAD).is_in(known.implode()).fill_null(False).not_())
        .then(pl.lit("unknown_item"))
        .alias(REASON)
    )
    shown = [pl.col(column).cast(pl.String).fill_null("null") for column in (RELATION, TAIL, WEIGHT)]
    frame = frame.with_columns(pl.format("relation={} tail={} weight={}", *shown).alias(DETAIL))
    good, bad = frame.filter(pl.col(REASON).is_null()), frame.filter(pl.col(REASON).is_not_null())
    wanted = edges(item_type)
    return good.select(wanted.names).to_arrow().cast(wanted), _quarantine(bad, source)


def judge_interactions(
    rows: pa.Table, columns: Columns, known_items: pa.Array, min_timestamp: int, max_timestamp: int, source: str,
    context: Sequence[str] = (), event_weights: Mapping[str, float] | None = None, own_weight: str = "",
) -> pl.DataFrame:  # fmt: skip
    """The rows as user_id, item_id, timestamp (int64 seconds) and reason_code, which is null for good ones, and for
    each name in `context` a column `context_<name>`, see `context.values`.

    Reasons: `null_id`, `null_timestamp`, `impossible_timestamp`, `unknown_item`. With event_weights (kinds of events
    and what they count) there are columns event (String) and event_weight (Float32), and two more reasons:
    `dropped_event`, before all others, where the weight is 0, and `unknown_event`, after them, where the kind is null
    or not named. own_weight: a column of what each row counts, by which the weight of its kind is multiplied; without
    kinds that is its weight.

    Raises:
        UserError: a column is missing or of the wrong type.
    """
    users, items = (as_ids(rows, name, source) for name in (columns.user, columns.item))
    require(rows.schema, {columns.timestamp: "time"}, source)
    if items.type != known_items.type:
        raise UserError(
            f"{source}: column '{columns.item}' holds {items.type} ids, but the items table holds {known_items.type}; "
            "give both the same type"
        )
    frame = pl.DataFrame(
        {
            USER: pl.Series(values=users),
            ITEM: pl.Series(values=items),
            TIMESTAMP: pl.Series(values=unix_seconds(rows[columns.timestamp])),
        }
    )
    known, weights = pl.Series(values=known_items), event_weights or {}
    if weights:
        check_kinds(rows.schema, columns, source)
        kind = texts(rows[columns.event]).alias(KIND)
        told = kind.replace_strict(list(weights), list(weights.values()), default=None, return_dtype=pl.Float32)
        frame = frame.with_columns(kind, told.alias(EVENT_WEIGHT))
    if own_weight:
        own = pl.Series(values=rows[own_weight].cast(pa.float32()))
        frame = frame if weights else weighing_the_same(frame, "")
        frame = frame.with_columns(pl.col(EVENT_WEIGHT) * own)
    judged = frame.with_columns(
        pl.when(pl.col(EVENT_WEIGHT) == 0 if weights else pl.lit(False))
        .then(pl.lit(DROPPED))
        .when(pl.col(USER).is_null() | pl.col(ITEM).is_null())
        .then(pl.lit("null_id"))
        .when(pl.col(TIMESTAMP).is_null())
        .then(pl.lit("null_timestamp"))
        .when(~pl.col(TIMESTAMP).is_between(min_timestamp, max_timestamp))
        .then(pl.lit("impossible_timestamp"))
        .when(~pl.col(ITEM).is_in(known.implode()))
        .then(pl.lit("unknown_item"))
        .when(pl.col(EVENT_WEIGHT).is_null() if weights else pl.lit(False))
        .then(pl.lit("unknown_event"))
        .alias(REASON)
    )
    if not context:
        return judged
    good = judged.select(pl.when(pl.col(REASON).is_null()).then(pl.col(TIMESTAMP)).alias(TIMESTAMP))[TIMESTAMP]
    return judged.with_columns(values(rows, good, context, source))


def weighing_the_same(events: pl.DataFrame, kind: str) -> pl.DataFrame:
    """Events that are all of one kind and count 1."""
    return events.with_columns(pl.lit(kind).alias(KIND), pl.lit(1.0, pl.Float32).alias(EVENT_WEIGHT))


def check_kinds(found: pa.Schema, columns: Columns, source: str) -> None:
    """Does a table have the column of the kinds of events, of texts, whole numbers or booleans?

    Raises:
        UserError: it is missing or of another type.
    """
    if columns.event not in found.names:
        raise UserError(
            f"{source}: column '{columns.event}', whose kinds data.event_weights weighs, is missing (it has: "
            f"{', '.join(found.names)}); map it in data.columns.event"
        )
    if not has_text(kind := found.field(columns.event).type):
        raise UserError(
            f"{source}: column '{columns.event}' has type {kind}; kinds of events are texts, whole numbers or booleans"
        )


def interactions_quarantine(bad: pl.DataFrame, source: str) -> pa.Table:
    """Set-aside events: the key is the user, the detail is item and time, and the kind where there are kinds."""
    shown = {"item": ITEM, "timestamp": TIMESTAMP} | ({"event": KIND} if KIND in bad.columns else {})
    detail = pl.format(
        " ".join(f"{name}={{}}" for name in shown),
        *(pl.col(column).cast(pl.String).fill_null("null") for column in shown.values()),
    )
    return _quarantine(bad.select(pl.col(USER).alias(KEY), REASON, detail.alias(DETAIL)), source)


def _quarantine(frame: pl.DataFrame, source: str) -> pa.Table:
    return frame.select(
        pl.col(KEY).cast(pl.String), pl.col(REASON).cast(pl.String), pl.col(DETAIL).cast(pl.String),
        pl.lit(source).alias(ORIGIN),
    ).to_arrow().cast(QUARANTINE)  # fmt: skip
