"""prepare: from the log and the catalogue to clean, split, bucketed tables, through Ray Data.

Two streaming passes over the input. The first judges every row and only counts, so that a bad input stops the job
before a table is touched; the second shuffles the rows to their buckets and writes one file a bucket.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from llmrec import schema, storage
from llmrec.config import Columns, Data, Privacy, context_name
from llmrec.data import context
from llmrec.data.clean import (
    DROPPED,
    EVENT_WEIGHT,
    KIND,
    ROW,
    check_kinds,
    clean_edges,
    clean_items,
    clean_users,
    interactions_quarantine,
    judge_interactions,
    weighing_the_same,
)
from llmrec.data.split import Boundaries, split_events, with_new_users
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.schema import BUCKET, CONTEXT, ITEM, REASON, TIMESTAMP, USER
from llmrec.tables import buckets, forgotten, inputs, pseudonyms
from llmrec.tables.forgotten import Forgotten
from llmrec.tables.pseudonyms import Pseudonyms

FILE, GROUP, FIRST_ROW, FED_BACK = "file", "row_group", "first_row", "fed_back"
TIME_QUANTILES = 1000


@dataclass(frozen=True)
class Prepared:
    """What prepare did. rows_in = events_kept + the counts in `set_aside`; new_users: those of the users who have no
    events; users_set_aside: rows of data.users; edges: kept ones; requests: users with one of the rows of
    data.requests."""

    items: int
    users: int
    new_users: int
    rows_in: int
    events_kept: int
    set_aside: dict[str, int]
    items_set_aside: dict[str, int]
    users_set_aside: dict[str, int]
    edges: int
    edges_set_aside: dict[str, int]
    requests: int
    buckets: int


@dataclass(frozen=True)
class _Job:
    """What every task of the second pass needs. weighted: events have a weight; user_type: of the ids that are written;
    names: None where these are the ids that are read; gone: users who are kept out. requests: object reference to the
    table of `context.requests`; known: to the users to rank whatever the log says, by bucket, and int64[buckets + 1],
    where each bucket's begin."""

    data: Data
    layout: Layout
    weighted: bool
    names: Pseudonyms | None
    gone: Forgotten | None
    user_type: pa.DataType
    item_type: pa.DataType
    boundaries: Boundaries | None
    requests: Any
    known: Any


def prepare(
    data: Data, privacy: Privacy, layout: Layout, say: Callable[[str], None], feedback: bool = False
) -> Prepared:
    """Write items, users, edges, histories, targets and quarantine under the root.

    feedback: what was taken of published rankings, as feedback left it, is part of the log.

    Raises:
        UserError: the input is missing, unreadable or of the wrong shape, more of it is bad than allowed, or the key of
            pseudonyms is missing, too short or another than before.
    """
    import ray

    for name in ("items", "interactions"):
        if not getattr(data, name):
            raise UserError(f"data.{name} is not set; give a Parquet file or directory")
    _check_never(data, privacy.never)
    items = _without(inputs.read(data.items), privacy.never)
    if items.num_rows == 0:
        raise UserError(f"{data.items}: the items table is empty")
    items, bad_items = clean_items(items, data.columns, data.items)
    edges, bad_edges = _read_edges(data, items[ITEM].combine_chunks())
    units, user_type, item_type = _input_units(data, layout.feedback if feedback else "", privacy.pseudonyms)
    weighted = feedback or bool(data.event_weights)
    names = pseudonyms.begun(privacy, layout, user_type)
    gone = forgotten.read(layout)
    users = _read_users(data, user_type, names, privacy.never)
    users = users if users is None or gone is None else gone.without(users, USER)
    bad_users = schema.QUARANTINE.empty_table()
    if users is not None:
        users, bad_users = clean_users(users, data.users)
    user_type = user_type if names is None else pa.string()
    asked = None
    if data.requests:
        rows = inputs.read(data.requests)
        rows = pseudonyms.replaced(rows, data.columns.user, names, data.requests)
        asked = context.requests(rows, data.context, data.columns, user_type, data.requests)
        asked = asked if gone is None else gone.without(asked, USER)

    known = ray.put(items[ITEM].combine_chunks())
    source = ray.data.from_items(units, override_num_blocks=min(len(units), 1000))
    say(f"checking {sum(u['rows'] for u in units):,} rows in {len(units)} row groups")
    counted = source.map_batches(
        _count,
        batch_size=1,
        fn_kwargs={"data": data, "known": known, "weighted": weighted, "names": names, "gone": gone},
        batch_format="pyarrow",
    ).take_all()
    reasons: Counter[str] = Counter()
    for row in counted:
        reasons.update(dict(zip(row["reasons"], row["counts"], strict=True)))
    total = sum(reasons.values())
    on_purpose = {name: reasons[name] for name in (DROPPED, forgotten.REASON) if reasons[name]}
    bad = total - reasons["good"] - sum(on_purpose.values())
    if reasons["good"] == 0:
        raise UserError(f"{data.interactions}: none of its {total:,} rows is usable ({_tally(reasons, data)})")
    if bad > data.max_bad_share * total:
        raise UserError(
            f"{data.interactions}: {bad:,} of {total:,} rows are bad ({_tally(reasons, data)}), more than "
            f"data.max_bad_share = {data.max_bad_share} allows; nothing was written"
        )
    boundaries = _boundaries(counted, data) if data.split == "time" else None

    storage.delete(layout.quarantine("prepare"))
    if names is not None:
        pseudonyms.write(names, layout)
    buckets.write_parquet(items, layout.items)
    buckets.write_parquet(bad_items, storage.join(layout.quarantine("prepare"), "items.parquet"))
    storage.delete(layout.edges)
    if data.edges:
        buckets.write_parquet(edges, layout.edges)
        buckets.write_parquet(bad_edges, storage.join(layout.quarantine("prepare"), "edges.parquet"))
    storage.delete(layout.users)
    if users is not None:
        buckets.write_parquet(bad_users, storage.join(layout.quarantine("prepare"), "users.parquet"))
        which = buckets.bucket_of(users[USER], data.buckets)
        for bucket in np.unique(which):
            here = buckets.sorted_by_user(users.filter(pa.array(which == bucket)))
            buckets.write_parquet(here, buckets.bucket_file(layout.users, int(bucket)))

    say(f"sorting {reasons['good']:,} events into {data.buckets} buckets")
    anyway = [table[USER].combine_chunks() for table in (users, asked) if table is not None and data.new_users]
    job = _Job(
        data, layout, weighted, names, gone, user_type, item_type, boundaries,
        None if asked is None else ray.put(asked),
        ray.put(_by_bucket(pa.concat_arrays([pa.array([], user_type), *anyway]), data.buckets)),
    )  # fmt: skip
    running = ray.data.DataContext.get_current()
    block_size = running.target_max_block_size
    running.target_max_block_size = None  # a bucket must reach its task whole
    try:
        written = (
            source.map_batches(_read_unit, batch_size=1, fn_kwargs={"job": job, "known": known}, batch_format="pyarrow")
            .repartition(data.buckets, keys=[BUCKET])
            .map_batches(_write_buckets, batch_size=None, fn_kwargs={"job": job}, batch_format="pyarrow")
            .take_all()
        )
    finally:
        running.target_max_block_size = block_size
    done = {row[BUCKET] for row in written}
    for empty in set(range(data.buckets)) - done:  # no user hashes there
        written.append(_write_bucket(empty, _no_events(job), job))
    for table in (layout.histories, layout.targets):
        buckets.delete_others(table, range(data.buckets))
    set_aside: Counter[str] = Counter(on_purpose)
    for row in written:
        set_aside.update(dict(zip(row["reasons"], row["counts"], strict=True)))
    return Prepared(
        items=items.num_rows,
        users=sum(row["users"] for row in written),
        new_users=sum(row["new"] for row in written),
        rows_in=total,
        events_kept=sum(row["kept"] for row in written),
        set_aside=dict(sorted(set_aside.items())),
        items_set_aside=dict(Counter(bad_items[REASON].to_pylist())),
        users_set_aside=dict(Counter(bad_users[REASON].to_pylist())),
        edges=edges.num_rows,
        edges_set_aside=dict(Counter(bad_edges[REASON].to_pylist())),
        requests=sum(row["requests"] for row in written),
        buckets=data.buckets,
    )


def _by_bucket(users: pa.Array, count: int) -> tuple[pa.Array, np.ndarray]:
    """These users, none twice, bucket by bucket, and int64[count + 1], where each bucket's begin."""
    users = pa.compute.unique(users)
    which = buckets.bucket_of(users, count)
    order = np.argsort(which, kind="stable")
    return users.take(pa.array(order)), np.searchsorted(which[order], np.arange(count + 1))


def _check_never(data: Data, never: Sequence[str]) -> None:
    """A misspelt name would keep nothing out."""
    if not never:
        return
    there = list[str]()
    for uri in filter(None, (data.items, data.users, data.interactions, data.requests)):
        there += [name for file in list(inputs.found(uri))[:1] for name in buckets.schema_of(file).names]
    for name in never:
        if name not in there:
            raise UserError(
                f"privacy.never names '{name}', a column of none of the inputs (they have: "
                f"{', '.join(dict.fromkeys(there))})"
            )


def _without(rows: pa.Table, never: Sequence[str]) -> pa.Table:
    return rows.drop_columns([name for name in never if name in rows.column_names])


def _read_users(data: Data, user_type: pa.DataType, names: Pseudonyms | None, never: Sequence[str]) -> pa.Table | None:
    if not data.users:
        return None
    users = _without(inputs.read(data.users), never)
    kind = schema.id_type(users.schema, data.columns.user, data.users)
    if kind != user_type:
        raise UserError(
            f"{data.users}: column '{data.columns.user}' holds {kind} ids, but the log holds {user_type}; give both "
            "the same type"
        )
    if data.columns.user != USER and USER in users.column_names:
        raise UserError(f"{data.users}: column '{USER}' is there beside the one mapped to it; drop or rename one")
    users = users.rename_columns({data.columns.user: USER})
    users = users.set_column(users.column_names.index(USER), USER, schema.as_ids(users, USER, data.users))
    return pseudonyms.replaced(users, USER, names, data.users)


def _read_edges(data: Data, known_items: pa.Array) -> tuple[pa.Table, pa.Table]:
    """Usable edges and set-aside ones. A graph is mostly of more things than these items, so that edges from others are
    no sign of bad data."""
    if not data.edges:
        return schema.edges(known_items.type).empty_table(), schema.QUARANTINE.empty_table()
    rows = inputs.read(data.edges)
    edges, set_aside = clean_edges(rows, known_items, data.edges)
    reasons = Counter(set_aside[REASON].to_pylist())
    if sum(reasons.values()) - reasons["unknown_item"] > data.max_bad_share * rows.num_rows:
        raise UserError(
            f"{data.edges}: of {rows.num_rows:,} edges {_tally(reasons, data)}, more bad ones than "
            f"data.max_bad_share = {data.max_bad_share} allows; nothing was written"
        )
    return edges, set_aside


def _input_units(data: Data, feedback: str, named: bool) -> tuple[list[dict[str, Any]], pa.DataType, pa.DataType]:
    """Every row group of the log, in file order, then those of what was fed back, and the types of the log's ids. Reads
    footers only. named: users have pseudonyms in what was fed back."""
    files = inputs.files(data.interactions)
    fs, _ = storage.filesystem(data.interactions)
    units: list[dict[str, Any]] = []
    first_row = 0
    types: set[tuple[pa.DataType, str]] = set()
    fed_back = storage.list_files(feedback, ".parquet") if feedback else []
    for uri, own in [(uri, False) for uri in files] + [(uri, True) for uri, _ in fed_back]:
        try:
            footer = pq.read_metadata(uri.removeprefix("s3://"), filesystem=fs)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{uri}: not a readable Parquet file ({str(error).splitlines()[0][:120]})") from None
        columns, arrow = Columns() if own else data.columns, footer.schema.to_arrow_schema()
        types.add((schema.id_type(arrow, columns.item, uri), "item"))
        if not (own and named):
            types.add((schema.id_type(arrow, columns.user, uri), "user"))
        schema.require(arrow, {columns.timestamp: "time"}, uri)
        if not own:  # which may lack contexts
            context.check(arrow, data.context, uri)
        if data.event_weights:
            check_kinds(arrow, columns, uri)
        for group in range(footer.num_row_groups):
            rows = footer.row_group(group).num_rows
            if rows:
                units.append({FILE: uri, GROUP: group, FIRST_ROW: first_row, "rows": rows, FED_BACK: own})
            first_row += rows
    if not units:
        raise UserError(f"{data.interactions}: the table is empty")
    found = {}
    for of in ("user", "item"):
        kinds = sorted(str(kind) for kind, which in types if which == of)
        if len(kinds) > 1:
            where = f"{data.interactions} and {feedback}" if fed_back else data.interactions
            raise UserError(f"{where}: files disagree on the type of {of} ids ({', '.join(kinds)})")
        found[of] = next(kind for kind, which in types if which == of)
    return units, found["user"], found["item"]


def _judged(
    unit: dict[str, Any], data: Data, known: pa.Array, weighted: bool, names: Pseudonyms | None,
    gone: Forgotten | None, wanted: Sequence[str] = (),
) -> pl.DataFrame:  # fmt: skip
    """wanted: of data.context, where it is asked for."""
    own = unit[FED_BACK]
    columns = Columns() if own else data.columns
    fs, _ = storage.filesystem(unit[FILE])
    file = pq.ParquetFile(unit[FILE].removeprefix("s3://"), filesystem=fs)
    read = (columns.user, columns.item, columns.timestamp, *context.columns_of(wanted, columns))
    read = (*read, columns.event) if data.event_weights else read
    read = (*read, schema.WEIGHT) if own else read
    rows = file.read_row_group(unit[GROUP], columns=list(dict.fromkeys(read)))
    for name in context.columns_of(wanted, columns):
        if own and name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(rows.num_rows, pa.string()))
    # What was fed back has pseudonyms already.
    rows = rows if own else pseudonyms.replaced(rows, columns.user, names, unit[FILE])
    judged = judge_interactions(
        rows, columns, known, data.min_timestamp, data.max_timestamp, unit[FILE], wanted, data.event_weights,
        schema.WEIGHT if own else "",
    )  # fmt: skip
    judged = weighing_the_same(judged, "") if weighted and EVENT_WEIGHT not in judged.columns else judged
    if gone is None:
        return judged
    out = pl.Series(values=gone.among(judged[USER].to_arrow().cast(pa.string())))
    return judged.with_columns(pl.when(out).then(pl.lit(forgotten.REASON)).otherwise(pl.col(REASON)).alias(REASON))


def _count(
    batch: pa.Table, data: Data, known: Any, weighted: bool, names: Pseudonyms | None, gone: Forgotten | None
) -> pa.Table:
    """Rows per reason of one unit, and quantiles of the good rows' times."""
    (unit,) = batch.to_pylist()
    if names is not None:
        names.ready()  # a node without the key is found before a table is touched
    judged = _judged(unit, data, _fetched(known), weighted, names if gone else None, gone)
    tally = judged.group_by(pl.col(REASON).fill_null("good")).len().sort(REASON)
    times = judged.filter(pl.col(REASON).is_null())[TIMESTAMP].to_numpy()
    marks = np.quantile(times, np.linspace(0, 1, TIME_QUANTILES), method="nearest") if len(times) else []
    return pa.table({
        "reasons": [tally[REASON].to_list()], "counts": [tally["len"].to_list()],
        "times": pa.array([np.asarray(marks, np.int64).tolist()], pa.list_(pa.int64())),
    })  # fmt: skip


def _boundaries(counted: list[dict[str, Any]], data: Data) -> Boundaries:
    """Times that cut off the newest shares, to within a thousandth of a unit's rows."""
    times, weights = [], []
    for row in counted:
        good = sum(n for r, n in zip(row["reasons"], row["counts"], strict=True) if r == "good")
        times.append(np.asarray(row["times"]))
        weights.append(np.full(len(row["times"]), good / max(len(row["times"]), 1)))
    time, weight = np.concatenate(times), np.concatenate(weights)
    order = np.argsort(time, kind="stable")
    below = np.cumsum(weight[order]) / weight.sum()

    def cut(newest: float) -> int:
        return int(time[order][min(int(np.searchsorted(below, 1 - newest)), len(time) - 1)])

    test = cut(data.test_share)
    return Boundaries(validation=cut(data.test_share + data.validation_share * (1 - data.test_share)), test=test)


def _read_unit(batch: pa.Table, job: _Job, known: Any) -> pa.Table:
    """One unit's rows, good and bad, with their bucket; those that are left out on purpose end here."""
    (unit,) = batch.to_pylist()
    judged = _judged(unit, job.data, _fetched(known), job.weighted, job.names, job.gone, job.data.context)
    on_purpose = pl.col(REASON).eq_missing(DROPPED) | pl.col(REASON).eq_missing(forgotten.REASON)
    rows = _numbered(judged, unit[FIRST_ROW], unit[FILE]).filter(~on_purpose)
    wanted = _no_events(job).schema.remove(0)
    table = rows.select(wanted.names).to_arrow().cast(wanted)
    bucket = buckets.bucket_of(table[USER], job.data.buckets)
    return table.add_column(0, BUCKET, pa.array(bucket))


def _numbered(judged: pl.DataFrame, first: int, file: str) -> pl.DataFrame:
    """With each row's place in the whole log, int64, and its file."""
    return judged.with_columns((pl.int_range(pl.len(), dtype=pl.Int64) + first).alias(ROW), pl.lit(file).alias(FILE))


def _write_buckets(batch: pa.Table, job: _Job) -> pa.Table:
    written = [
        _write_bucket(bucket, batch.filter(pa.compute.equal(batch[BUCKET], bucket)), job)
        for bucket in pa.compute.unique(batch[BUCKET]).to_pylist()
    ]
    return pa.Table.from_pylist(written, schema=_WRITTEN)


def _write_bucket(bucket: int, rows: pa.Table, job: _Job) -> dict[str, Any]:
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    good = frame.filter(pl.col(REASON).is_null())
    split = split_events(good, job.data, job.boundaries, job.user_type, job.item_type)
    bad = pl.concat([frame.filter(pl.col(REASON).is_not_null()), split.set_aside], how="diagonal_relaxed").sort(ROW)
    if len(bad):
        parts = [interactions_quarantine(part, str(name[0])) for name, part in bad.group_by(FILE, maintain_order=True)]
        buckets.write_parquet(pa.concat_tables(parts), buckets.bucket_file(job.layout.quarantine("prepare"), bucket))
    users, starts = _fetched(job.known)
    histories = with_new_users(split.histories, users[int(starts[bucket]) : int(starts[bucket + 1])])
    n, requests = histories.num_rows, 0
    if job.requests is not None:
        histories, requests = context.asked(histories, _fetched(job.requests))
    buckets.write_parquet(histories, buckets.bucket_file(job.layout.histories, bucket))
    buckets.write_parquet(split.targets, buckets.bucket_file(job.layout.targets, bucket))
    tally = bad.group_by(REASON).len().sort(REASON)
    return {
        BUCKET: bucket, "users": n, "new": n - split.histories.num_rows, "kept": len(good) - len(split.set_aside),
        "requests": requests, "reasons": tally[REASON].to_list(), "counts": tally["len"].to_list(),
    }  # fmt: skip


_WRITTEN = pa.schema([
    (BUCKET, pa.int32()), ("users", pa.int64()), ("new", pa.int64()), ("kept", pa.int64()), ("requests", pa.int64()),
    ("reasons", pa.list_(pa.string())), ("counts", pa.list_(pa.int64())),
])  # fmt: skip


def _no_events(job: _Job) -> pa.Table:
    kinds = [(KIND, pa.string()), (EVENT_WEIGHT, pa.float32())] if job.weighted else []
    return pa.schema([
        (BUCKET, pa.int32()), (ROW, pa.int64()), (USER, job.user_type), (ITEM, job.item_type),
        (TIMESTAMP, pa.int64()), *kinds, (REASON, pa.string()),
        *((CONTEXT + context_name(wanted), pa.string()) for wanted in job.data.context),
        (FILE, pa.string()),
    ]).empty_table()  # fmt: skip


def _fetched(reference: Any) -> Any:
    """An object reference inside keyword arguments reaches a task as it is."""
    import ray

    return ray.get(reference) if isinstance(reference, ray.ObjectRef) else reference


def _tally(reasons: Counter[str], data: Data) -> str:
    counts = ", ".join(f"{n:,} {reason}" for reason, n in sorted(reasons.items()) if reason != "good") or "none bad"
    if not reasons["impossible_timestamp"]:
        return counts
    return (
        f"{counts}; numbers in '{data.columns.timestamp}' are unix seconds, from data.min_timestamp = "
        f"{data.min_timestamp} to data.max_timestamp = {data.max_timestamp}"
    )
