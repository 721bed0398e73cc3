"""Histories to train on and to validate on, from the buckets that prepare wrote.

What Ray Data's tasks call lies here, apart from the model's code, which their processes need not import.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute

from llmrec import storage
from llmrec.config import Train
from llmrec.schema import (
    BUCKET,
    CONTEXT,
    ITEM,
    ITEMS,
    RANK,
    SCORE,
    TEACHER_ITEMS,
    TEACHER_SCORES,
    TIMESTAMPS,
    TRAIN_LENGTH,
    USER,
    WEIGHTS,
)
from llmrec.tables import buckets, rankings
from llmrec.tables.histories import flatten

MIN_EVENTS = 2


@dataclass(frozen=True)
class Counted:
    """users: who can be trained on; held_out: with events that validate; newest: unix seconds of the last training
    event, None if there is none."""

    users: int
    held_out: int
    newest: int | None


def streamed(histories: str, train: Train, names: Sequence[str] = (), since: int | None = None) -> Any:
    """A Ray Data set of the users with MIN_EVENTS or more training events, with their teacher's scores if there is one.

    histories: URI of a bucketed table, whose weights go along; names: of the contexts of events that do; since: unix
    seconds; only users with later training events, and the times of all their events go along.
    """
    import ray

    files = buckets.bucket_files(histories)
    weighted = WEIGHTS in buckets.schema_of(next(iter(files.values()))).names
    columns = [USER, ITEMS, TRAIN_LENGTH, *(CONTEXT + name for name in names), *([WEIGHTS] if weighted else [])]
    columns += [] if since is None else [TIMESTAMPS]
    if train.teacher:
        units = [{BUCKET: bucket, "uri": uri} for bucket, uri in files.items()]
        found = ray.data.from_items(units, override_num_blocks=min(len(units), 10_000)).map_batches(
            _with_lessons, batch_size=1, batch_format="pyarrow",
            fn_kwargs={"teacher": storage.absolute(train.teacher), "columns": columns},
        )  # fmt: skip
    else:
        found = ray.data.read_parquet(list(files.values())).select_columns(columns)
    return found.map_batches(
        _trainable, fn_kwargs={"training_only": train.events == "training", "since": since}, batch_format="pyarrow"
    )


def count(histories: str, training_only: bool, since: int | None = None) -> Counted:
    """What can be trained on. since: as of `streamed`."""
    users = held_out = 0
    newest: int | None = None
    for uri in buckets.bucket_files(histories).values():
        table = buckets.read_parquet(uri, [ITEMS, TIMESTAMPS, TRAIN_LENGTH])
        users += _trainable(table, training_only, since).num_rows
        held_out += int((_lengths(table) > table[TRAIN_LENGTH].to_numpy()).sum()) if training_only else 0
        last = _last_times(table, training_only)
        if len(last):
            newest = max(int(last.max()), newest if newest is not None else int(last.max()))
    return Counted(users, held_out, newest)


def validation(histories: str, wanted: int, held_out: int) -> pa.Table:
    """Histories of a stable choice of about `wanted` of the `held_out` users with validation events; of none if all
    events train."""
    share = 0.0 if held_out == 0 else min(1.0, wanted / held_out)
    parts = []
    for uri in buckets.bucket_files(histories).values():
        table = buckets.read_parquet(uri)
        train_length = table[TRAIN_LENGTH].to_numpy()
        mask = (_lengths(table) > train_length) & (train_length > 0) & buckets.share_of(table[USER], share)
        parts.append(table.filter(pa.array(mask)))
    return pa.concat_tables(parts)


def _with_lessons(batch: pa.Table, teacher: str, columns: list[str]) -> pa.Table:
    """A bucket's histories, each user with the items that the teacher has scored, if he has, as lists."""
    (unit,) = batch.to_pylist()
    histories = pl.from_arrow(buckets.read_parquet(unit["uri"], columns))
    scored = pl.from_arrow(rankings.read_bucket(teacher, unit[BUCKET]).select([USER, RANK, ITEM, SCORE]))
    assert isinstance(histories, pl.DataFrame) and isinstance(scored, pl.DataFrame)
    lists = scored.sort(USER, RANK).group_by(USER, maintain_order=True)
    lessons = lists.agg(pl.col(ITEM).alias(TEACHER_ITEMS), pl.col(SCORE).alias(TEACHER_SCORES))
    return histories.join(lessons, on=USER, how="left", maintain_order="left").to_arrow()


def _trainable(batch: pa.Table, training_only: bool, since: int | None) -> pa.Table:
    enough = _trained_lengths(batch, training_only) >= MIN_EVENTS
    batch = batch.filter(pa.array(enough))
    return batch if since is None else batch.filter(pa.array(_last_times(batch, training_only) > since))


def _trained_lengths(batch: pa.Table, training_only: bool) -> np.ndarray:
    return batch[TRAIN_LENGTH].to_numpy() if training_only else _lengths(batch)


def _last_times(batch: pa.Table, training_only: bool) -> np.ndarray:
    """int64: when the last training event was of each user who has any."""
    lengths = _trained_lengths(batch, training_only)
    times, offsets = flatten(batch[TIMESTAMPS])
    return times.to_numpy()[(offsets[:-1] + lengths - 1)[lengths > 0]]


def _lengths(table: pa.Table) -> np.ndarray:
    return pa.compute.list_value_length(table[ITEMS]).to_numpy()
