"""From a bucket's clean events to histories (what models may see) and targets (what only evaluate reads)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute

from llmrec import schema
from llmrec.config import Data, context_name
from llmrec.data.clean import EVENT_WEIGHT, KIND, ROW
from llmrec.schema import CONTEXT, ITEM, ITEMS, NOW, REASON, TIMESTAMP, TIMESTAMPS, TRAIN_LENGTH, USER, WEIGHTS


@dataclass(frozen=True)
class Boundaries:
    """split=time: events before `validation` train, before `test` validate, the rest test (unix seconds)."""

    validation: int
    test: int


@dataclass(frozen=True)
class Split:
    """histories, targets: the tables; set_aside: events not used, with their reason."""

    histories: pa.Table
    targets: pa.Table
    set_aside: pl.DataFrame


def with_new_users(histories: pa.Table, users: pa.Array) -> pa.Table:
    """Histories by ascending user id, with an empty one for each of these users (none twice) who has none yet."""
    had = histories[USER].combine_chunks()
    new = users.filter(pa.compute.invert(pa.compute.is_in(users, had)))
    if not len(new):
        return histories
    wanted = histories.schema
    empty = {USER: new, TRAIN_LENGTH: pa.array(np.zeros(len(new), np.int32))}
    none = pa.array(np.zeros(len(new) + 1, np.int32))
    lists = {
        f.name: pa.ListArray.from_arrays(none, pa.array([], f.type.value_type))
        for f in wanted
        if pa.types.is_list(f.type)
    }
    rows = {f.name: (empty | lists).get(f.name, pa.nulls(len(new), f.type)) for f in wanted}
    return pa.concat_tables([histories, pa.table(rows).cast(wanted)]).sort_by(USER).combine_chunks()


def split_events(
    events: pl.DataFrame, data: Data, boundaries: Boundaries | None, user: pa.DataType, item: pa.DataType
) -> Split:
    """Split a bucket's good events (user_id, item_id, timestamp, row) user by user.

    Events are ordered by time, ties by their place in the input. The same user, item and time twice is a
    `duplicate_event`; a user with fewer than `min_user_events` left is set aside whole (`too_few_events`).
    leave_one_out: the last event is the target, the one before it is for validation.
    time: `boundaries` cut; a user without events before the test period keeps an empty history.
    none: everything is for training.
    Events may have columns event and event_weight: their kind and what they count. Of several kinds at the same user,
    item and time one stays: of a target's kind, if there is one, then the heaviest, then the first in the input; it
    counts the greatest of their weights. With `data.target_events` only events of these
    kinds are held out. leave_one_out: a user's last such event is the target, what comes after it is set aside
    (`after_target`), and validation begins with the last such event before it; without a target everything trains.
    time: of the test period other events are set aside (`no_target`).
    With `data.context` the events have columns `context_<name>`; what a user is asked about in is the context of his
    first event in the test period, null if he has none.
    """
    names = [context_name(wanted) for wanted in data.context]
    weighted = EVENT_WEIGHT in events.columns
    events = events.sort(USER, TIMESTAMP, ROW)
    if weighted:
        pair = [USER, ITEM, TIMESTAMP]
        wanted = pl.col(KIND).is_in(list(data.target_events))
        events = events.sort(wanted, EVENT_WEIGHT, descending=True, maintain_order=True)  # of copies the first stays
        events = events.with_columns(pl.col(EVENT_WEIGHT).max().over(pair))
    copies = pl.struct(USER, ITEM, TIMESTAMP).is_first_distinct().not_()
    few = pl.len().over(USER) < data.min_user_events
    duplicates = events.filter(copies).with_columns(pl.lit("duplicate_event").alias(REASON))
    events = events.filter(~copies)
    if weighted:
        events = events.sort(USER, TIMESTAMP, ROW)
    too_few = events.filter(few).with_columns(pl.lit("too_few_events").alias(REASON))
    events = events.filter(~few)

    n, place = pl.len().over(USER), pl.int_range(pl.len()).over(USER)
    aside, kept = [duplicates, too_few], ~pl.col("test")
    if data.target_events and data.split != "none":
        marks = _towards_targets(events, data, boundaries)
        kept &= pl.col(REASON).is_null()
        aside.append(marks.filter(pl.col(REASON).is_not_null()).select(events.columns))
    elif data.split == "leave_one_out":
        marks = events.with_columns(test=place == n - 1, train=place + 2 < n)
    elif data.split == "time":
        assert boundaries is not None
        marks = events.with_columns(
            test=pl.col(TIMESTAMP) >= boundaries.test, train=pl.col(TIMESTAMP) < boundaries.validation
        )
    else:
        marks = events.with_columns(test=pl.lit(False), train=pl.lit(True))
    users = marks.group_by(USER, maintain_order=True).agg(
        pl.col(ITEM).filter(kept).alias(ITEMS),
        pl.col(TIMESTAMP).filter(kept).alias(TIMESTAMPS),
        pl.col("train").sum().cast(pl.Int32).alias(TRAIN_LENGTH),
        pl.col(ITEM).filter(pl.col("test")).alias("target"),
        *([pl.col(EVENT_WEIGHT).filter(kept).alias(WEIGHTS)] if weighted else []),
        *(pl.col(CONTEXT + name).filter(kept) for name in names),
        *(pl.col(CONTEXT + name).filter(pl.col("test")).alias(f"target_{name}") for name in names),
        *(pl.col(CONTEXT + name).filter(pl.col("test")).first().alias(NOW + name) for name in names),
    )
    wanted = schema.histories(user, item, names, weighted)
    histories = users.select(wanted.names).to_arrow().cast(wanted)
    held_out = users.filter(pl.col("target").list.len() > 0)
    told = (pl.col(f"target_{name}").alias(CONTEXT + name) for name in names)
    targets = held_out.select(USER, pl.col("target").alias(ITEMS), *told).to_arrow()
    return Split(histories, targets.cast(schema.targets(user, item, names)), pl.concat(aside))


def _towards_targets(events: pl.DataFrame, data: Data, boundaries: Boundaries | None) -> pl.DataFrame:
    """Events marked as train and test where held-out ones are of some kinds alone, or with a reason not to be used."""
    wanted = pl.col(KIND).is_in(list(data.target_events))
    if data.split == "time":
        assert boundaries is not None
        late = pl.col(TIMESTAMP) >= boundaries.test
        marks = events.with_columns(test=late & wanted, train=pl.col(TIMESTAMP) < boundaries.validation)
        left_out, reason = late & ~wanted, "no_target"
    else:
        ahead = wanted.cast(pl.Int32).cum_sum(reverse=True).over(USER)  # such events from here on, this one included
        held = wanted.sum().over(USER).clip(upper_bound=2)  # the last one tests, the one before it validates
        marks = events.with_columns(test=wanted & (ahead == 1), train=(ahead > held) | (ahead == held) & ~wanted)
        left_out, reason = (held > 0) & (ahead == 0), "after_target"
    return marks.with_columns(pl.when(left_out).then(pl.lit(reason)).alias(REASON))
