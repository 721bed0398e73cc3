"""bucket: candidates in any order, streamed into the buckets of the prepared histories.

A shuffle in two steps through the store. Tasks read parts of the input and write each as shards, files cut by bucket;
then a task a bucket reads its part of every shard and writes the bucket. Ray Data's keyed repartition, which prepare
uses, would hold all of the input in object stores and on the disks that they spill to, may give several buckets to one
task, and computes again what a lost node held. Here a task holds a row group and a slice, or one bucket, at any size of
the input; what lies between the steps is safe in the store; and the order of rows follows from the shards' numbers,
whichever was written first. The price is one more write and read of the input, and requests for every shard and bucket.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from llmrec import config, schema, storage
from llmrec.engine.units import each, reporting
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.schema import BUCKET, ITEMS, USER
from llmrec.tables import buckets, candidates, forgotten, inputs, pseudonyms, shards
from llmrec.tables.forgotten import Forgotten
from llmrec.tables.pseudonyms import Pseudonyms

MB = 1 << 20
UNIT_BYTES, UNIT_GROUPS = 64 * MB, 64  # of the input, decompressed but encoded; row groups of one task
BATCH_BYTES, BATCH_ROWS = 16 * MB, 1 << 16  # of the input, decoded at once
SLICE_BYTES = 128 * MB  # of a shard, in memory
BUCKET_BYTES = 2048 * MB  # arrow addresses the text of a column by 31 bits
READERS = 8
UNIT, FILE, GROUP, ROWS = "unit", "file", "row_group", "rows"


@dataclass(frozen=True)
class Bucketed:
    """What bucket did. form: long or list; rows_in: set-aside ones included; pairs: candidates written; largest_user:
    those of the user with most; table: what was written; next: how to score it.
    """

    form: str
    rows_in: int
    set_aside: dict[str, int]
    pairs: int
    users: int
    buckets: int
    largest_user: int
    bytes_in: int
    bytes_out: int
    table: str
    quarantine: str
    next: str


@dataclass(frozen=True)
class _Job:
    """What every task needs. columns: of the input, what else it has is not read; names: how its users' ids become
    those of the tables, None if they are these; gone: users who are left out; written: columns of the table. scratch: a
    folder of this run alone, since a killed run's tasks may still write."""

    columns: pa.Schema
    names: Pseudonyms | None
    gone: Forgotten | None
    written: pa.Schema
    buckets: int
    slice_bytes: int
    scratch: str
    quarantine: str
    table: str


@dataclass(frozen=True)
class _File:
    """What a footer says. groups: (rows, bytes) of each row group."""

    uri: str
    columns: pa.Schema
    groups: list[tuple[int, int]]


def bucket(settings: config.Bucket, privacy: config.Privacy, layout: Layout, say: Callable[[str], None]) -> Bucketed:
    """Write candidates/<name> under the root, bucketed like histories. The table that was there stays until all of the
    input has been read and found good.

    Raises:
        UserError: the input is missing, unreadable or of the wrong shape, a bucket would not fit in memory, or the key
            of pseudonyms is missing or another than that of the tables.
    """
    if not settings.input:
        raise UserError("bucket.input is not set; give a Parquet file or directory of candidates")
    source, table = storage.absolute(settings.input), layout.candidates(settings.name)
    if f"{source}/".startswith(f"{table}/") or f"{table}/".startswith(f"{source}/"):
        raise UserError(f"bucket.input = {source}: the job replaces {table}; bring the candidates from elsewhere")
    histories = buckets.bucket_files(layout.histories)
    prepared = _footer(min(histories.values())).columns
    storage.check(source)
    found = inputs.files(source)
    files = storage.each(_footer, list(found))
    item = prepared.field(ITEMS).type.value_type
    names, user = pseudonyms.brought(privacy, layout), prepared.field(USER).type
    given = user if names is None else schema.IDS[names.ids]
    kept = {f.uri: pa.schema([of for of in f.columns if of.name not in privacy.never]) for f in files}
    columns = candidates.common_schema(kept, given, item, source)
    written = columns.set(columns.names.index(USER), pa.field(USER, user))
    units = _units(files)
    rows_in = sum(rows for file in files for rows, _ in file.groups)
    if not rows_in:
        raise UserError(f"{source}: the table is empty")
    form = "list" if ITEMS in columns.names else "long"
    say(f"reading {rows_in:,} rows in {form} form from {len(files):,} files, for {len(histories)} buckets")
    aside, scratch = layout.quarantine(f"bucket/{settings.name}"), layout.scratch(f"bucket/{settings.name}")
    job = _Job(
        columns,
        names,
        forgotten.read(layout),
        written,
        len(histories),
        SLICE_BYTES,
        storage.join(scratch, uuid.uuid4().hex[:8]),
        aside,
        table,
    )
    storage.delete(aside)
    storage.delete(scratch)  # of a run that was cut off
    try:
        set_aside, left_out, written = _shuffle(job, units, rows_in, source, say)
    finally:
        # Tasks of a failed run may still write; the next run deletes that.
        with contextlib.suppress(OSError, UserError):
            storage.delete(scratch)
    return Bucketed(
        form=form,
        rows_in=rows_in,
        set_aside={k: n for k, n in (("null_id", set_aside), (forgotten.REASON, left_out)) if n},
        pairs=sum(row["pairs"] for row in written),
        users=sum(row["users"] for row in written),
        buckets=len(written),
        largest_user=max(row["largest"] for row in written),
        bytes_in=sum(found.values()),
        bytes_out=sum(row["bytes"] for row in written),
        table=table,
        quarantine=aside,
        next=f"python jobs/score.py --config FILE --score.candidates {table}",
    )


def _shuffle(
    job: _Job, units: list[dict[str, Any]], rows_in: int, source: str, say: Callable[[str], None]
) -> tuple[int, int, list[dict[str, Any]]]:
    """Both steps: how many rows were set aside, how many are of users who are left out, what each bucket counted."""
    import ray

    read = reporting(each(units, _split, {"job": job}), len(units), say, "bucket: read", "parts")
    read.sort(key=lambda row: row[UNIT])  # the order of the input, whichever task was first
    set_aside = sum(row["set_aside"] for row in read)
    if set_aside == rows_in:
        raise UserError(f"{source}: none of its {rows_in:,} rows has a {USER}")
    sizes = np.sum([np.frombuffer(row["sizes"], np.int64) for row in read], axis=0)
    if sizes.max() > BUCKET_BYTES:
        raise UserError(
            f"{source}: bucket {sizes.argmax()} would take {sizes.max() / MB:,.0f} MB of memory, more than "
            f"{BUCKET_BYTES / MB:,.0f}; run prepare with data.buckets above {job.buckets}, which is too few"
        )
    uris = [_shard(job, row[UNIT], i) for row in read for i in range(len(row["offsets"]))]
    offsets = np.stack([np.frombuffer(o, np.int64) for row in read for o in row["offsets"]])
    say(f"writing {job.buckets} buckets to {job.table}")
    index = ray.put((uris, offsets))
    with buckets.rewriting(job.table):
        todo = [{BUCKET: b} for b in range(job.buckets)]
        written = reporting(each(todo, _write, {"job": job, "index": index}), len(todo), say, "bucket: written")
        assert {row[BUCKET] for row in written} == set(range(job.buckets)), "a bucket was not written"
    return set_aside, sum(row["left_out"] for row in read), written


def _footer(uri: str) -> _File:
    with _opened(uri) as file:
        footer = file.metadata
        groups = [footer.row_group(g) for g in range(footer.num_row_groups)]
        return _File(uri, file.schema_arrow, [(g.num_rows, g.total_byte_size) for g in groups])


@contextlib.contextmanager
def _opened(uri: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file; whatever cannot be read of it, now or later, is an error that names it."""
    fs, path = storage.filesystem(uri)
    try:
        with pq.ParquetFile(path, filesystem=fs) as file:
            yield file
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{uri}: not a readable Parquet file ({str(error).splitlines()[0][:120]})") from None


def _units(files: list[_File]) -> list[dict[str, Any]]:
    """The row groups of the input in order, so many to a task that small files make no small shards."""
    units: list[list[dict[str, Any]]] = []
    held = 0
    for file in files:
        for group, (rows, size) in enumerate(file.groups):
            if not rows:
                continue
            if not units or held + size > UNIT_BYTES or len(units[-1]) == UNIT_GROUPS:
                units.append([])
                held = 0
            at_once = min(BATCH_ROWS, max(1, rows * BATCH_BYTES // max(size, 1)))  # rows may hold long lists
            units[-1].append({FILE: file.uri, GROUP: group, ROWS: at_once})
            held += size
    return [{UNIT: i, "groups": groups} for i, groups in enumerate(units)]


def _split(batch: pa.Table, job: _Job) -> pa.Table:
    """Write the shards of one unit; rows without a user go to quarantine."""
    (unit,) = batch.to_pylist()
    aside, left_out = list[pa.Table](), list[int]()
    offsets, sizes = [], np.zeros(job.buckets, np.int64)
    for i, rows in enumerate(_slices(_usable(unit["groups"], job, aside, left_out), job.slice_bytes)):
        shard = shards.cut(rows, job.buckets)
        storage.write_bytes(_shard(job, unit[UNIT], i), shard.data)
        offsets.append(shard.offsets.tobytes())
        sizes += shard.sizes
    if aside:
        buckets.write_parquet(pa.concat_tables(aside), storage.join(job.quarantine, f"part-{unit[UNIT]:05d}.parquet"))
    return pa.table({
        UNIT: [unit[UNIT]], "set_aside": [sum(t.num_rows for t in aside)], "left_out": [sum(left_out)],
        "offsets": pa.array([offsets], pa.list_(pa.binary())), "sizes": [sizes.tobytes()],
    })  # fmt: skip


def _usable(groups: list[dict[str, Any]], job: _Job, aside: list[pa.Table], left_out: list[int]) -> Iterator[pa.Table]:
    """The rows of row groups in small tables, in order; those without a user are put to `aside`, to `left_out` the
    numbers of those of users who were forgotten."""
    for group in groups:
        with _opened(group[FILE]) as file:
            read = [name for name in file.schema_arrow.names if name in job.columns.names]
            for batch in file.iter_batches(group[ROWS], row_groups=[group[GROUP]], columns=read):
                rows = candidates.fitted(pa.Table.from_batches([batch]), job.columns, group[FILE])
                null = pa.compute.is_null(rows[USER])
                if pa.compute.any(null).as_py():
                    aside.append(candidates.without_user(rows.filter(null), group[FILE]))
                    rows = rows.filter(pa.compute.invert(null))
                rows = pseudonyms.replaced(rows, USER, job.names, group[FILE])
                kept = rows if job.gone is None else job.gone.without(rows, USER)
                left_out.append(rows.num_rows - kept.num_rows)
                yield kept


def _slices(tables: Iterator[pa.Table], limit: int) -> Iterator[pa.Table]:
    """Tables in a row put together until they hold this many bytes; none without rows."""
    waiting: list[pa.Table] = []
    held = 0
    for table in tables:
        if table.num_rows:
            waiting.append(table)
            held += table.nbytes
        if held >= limit:
            yield pa.concat_tables(waiting)
            waiting, held = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


def _shard(job: _Job, unit: int, number: int) -> str:
    return storage.join(job.scratch, f"shard-{unit:06d}-{number:04d}")


def _write(batch: pa.Table, job: _Job, index: Any) -> pa.Table:
    """Put a bucket together from its part of every shard, and write it."""
    import ray

    (unit,) = batch.to_pylist()
    uris, offsets = ray.get(index)
    starts, ends = offsets[:, unit[BUCKET]], offsets[:, unit[BUCKET] + 1]
    fs, _ = storage.filesystem(job.scratch)

    def part(i: int) -> pa.Table:
        with fs.open_input_file(uris[i].removeprefix("s3://")) as file:
            return shards.part(file.read_at(int(ends[i] - starts[i]), int(starts[i])))

    with ThreadPoolExecutor(READERS) as pool:
        parts = list(pool.map(part, np.flatnonzero(ends > starts)))
    rows = candidates.by_user(pa.concat_tables([job.written.empty_table(), *parts]))
    size = buckets.write_parquet(rows, buckets.bucket_file(job.table, unit[BUCKET]))
    pairs = candidates.pairs_per_user(rows)
    counted = {"users": len(pairs), "pairs": int(pairs.sum()), "largest": int(pairs.max(initial=0)), "bytes": size}
    return pa.Table.from_pylist([{BUCKET: unit[BUCKET], **counted}])
