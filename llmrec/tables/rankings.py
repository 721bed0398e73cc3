"""The published rankings: staged Parquet files made visible by one Delta Lake commit, and read back."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, create_table_with_add_actions
from pyarrow.dataset import Dataset, Expression, field
from pyarrow.fs import SubTreeFileSystem

from llmrec import storage
from llmrec.errors import UserError
from llmrec.schema import BUCKET, RANK, USER
from llmrec.tables.buckets import bucket_of


@dataclass(frozen=True)
class StagedFile:
    """One bucket's file. path: relative to the table."""

    bucket: int
    path: str
    size: int
    rows: int


@dataclass(frozen=True)
class Published:
    """version: the table version that shows this run; new: false when it was published before."""

    table: str
    version: int
    run_id: str
    rows: int
    new: bool


@dataclass(frozen=True)
class Commit:
    """One publication: the table version that shows the run, and when it was committed. rows: None if not recorded."""

    run_id: str
    version: int
    time: datetime
    buckets: int
    rows: int | None


@dataclass(frozen=True)
class PublishedRun:
    """A run that the table shows or showed. files_there: false once they were pruned and it cannot be read any more."""

    run_id: str
    version: int
    time: datetime
    rows: int | None
    buckets: int
    files_there: bool
    shown: bool


@dataclass(frozen=True)
class Snapshot:
    """One published run, opened for reading; later publications do not change it.

    table: absolute; buckets: of how many its users were hashed into.
    """

    table: str
    run_id: str
    version: int
    time: datetime
    buckets: int
    data: Dataset


STAGED = "runs"
# Commits of other tools that leave the rows as they are.
MAINTENANCE = ("VACUUM START", "VACUUM END", "OPTIMIZE", "SET TBLPROPERTIES")


def staged_path(run_id: str, bucket: int) -> str:
    """Where a bucket's file lies, relative to the table: in a folder of the run, unseen until the commit.

    The folder below it says the bucket once more: polars takes a partition's value from there and not from the log.
    """
    return f"{STAGED}/{run_id}/{BUCKET}={bucket}/bucket-{bucket:05d}.parquet"


def publish(
    table: str, files: Sequence[StagedFile], buckets: int, schema: pa.Schema, run_id: str, name: str = "rankings"
) -> Published:
    """Replace what the table shows by these files, in one atomic commit. The run before stays readable by its id.

    The same run published twice, one after the other or at the same time, is one commit.

    buckets: of how many the users were hashed into, files with no rows included; name: of the table, in its log.

    Raises:
        UserError: another publisher committed another run at the same time.
    """
    options = storage.delta_options(table)
    rows = sum(f.rows for f in files)
    now = int(time.time() * 1000)
    adds = [
        AddAction(f.path, f.size, {BUCKET: str(f.bucket)}, now, True, json.dumps({"numRecords": f.rows})) for f in files
    ]
    properties = CommitProperties(
        custom_metadata={"run_id": run_id, "buckets": str(buckets), "rows": str(rows)},
        app_transactions=[Transaction(run_id, 1, now)],
        max_commit_retries=0,
    )
    partitioned = Schema.from_arrow(schema.append(pa.field(BUCKET, pa.int32())))
    try:
        current = opened(table)
        if current is None:
            create_table_with_add_actions(
                table, partitioned, adds, mode="error", partition_by=[BUCKET], storage_options=options,
                name=name, commit_properties=properties,
            )  # fmt: skip
        elif shown(current)["run_id"] == run_id:
            return Published(table, _version_of(table, run_id), run_id, rows, new=False)
        else:
            current.create_write_transaction(
                adds, mode="overwrite", schema=partitioned, partition_by=[BUCKET], commit_properties=properties
            )
    except (CommitFailedError, DeltaError) as error:
        winner = opened(table)
        if winner is not None and shown(winner)["run_id"] == run_id:  # the same job was started twice
            return Published(table, _version_of(table, run_id), run_id, rows, new=False)
        raise UserError(
            f"{table}: another job changed the table while run {run_id} was being published "
            f"({storage.redact(str(error).splitlines()[0])[:160]}); publish the run again"
        ) from None
    return Published(table, _version_of(table, run_id), run_id, rows, new=True)


def shown_files(table: DeltaTable) -> list[StagedFile]:
    """The files whose rows the table shows; a bucket has one, unless another tool has written into the table."""
    found = pa.table(table.get_add_actions(flatten=True))
    columns = [found[name].to_pylist() for name in (f"partition.{BUCKET}", "path", "size_bytes", "num_records")]
    return [StagedFile(int(bucket), path, size, rows or 0) for bucket, path, size, rows in zip(*columns, strict=True)]


def rewrite(table: str, which: Sequence[int], files: Sequence[StagedFile]) -> int:
    """Show other files of some buckets, in one commit; the run stays the one that is shown. Its version now.

    which: the buckets; files: of those of them that have rows still, one each.

    Raises:
        UserError: another publisher committed at the same time.
    """
    current = published(table)
    run = shown(current)
    others = [f for f in shown_files(current) if f.bucket not in which]
    now = int(time.time() * 1000)
    adds = [
        AddAction(f.path, f.size, {BUCKET: str(f.bucket)}, now, True, json.dumps({"numRecords": f.rows})) for f in files
    ]
    about = {**run, "rows": str(sum(f.rows for f in (*others, *files)))}
    try:
        current.create_write_transaction(
            adds, mode="overwrite", schema=current.schema(), partition_by=[BUCKET],
            partition_filters=[(BUCKET, "in", [str(bucket) for bucket in which])],
            commit_properties=CommitProperties(custom_metadata=about, max_commit_retries=0),
        )  # fmt: skip
    except (CommitFailedError, DeltaError) as error:
        raise UserError(
            f"{table}: another job changed the table meanwhile ({storage.redact(str(error).splitlines()[0])[:160]}); "
            "run the same command again"
        ) from None
    return _version_of(table, run["run_id"])


def opened(table: str, version: int | None = None) -> DeltaTable | None:
    """The Delta table, or None if nothing is published there yet."""
    try:
        return DeltaTable(table, version=version, storage_options=storage.delta_options(table))
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as error:
        raise UserError(f"{table}: {storage.redact(str(error).splitlines()[0])[:200]}") from None


def published(table: str) -> DeltaTable:
    """The Delta table.

    Raises:
        UserError: nothing is published there yet.
    """
    found = opened(storage.absolute(table))
    if found is None:
        raise UserError(f"{table}: no rankings are published there; run jobs/score.py first")
    return found


def shown(table: DeltaTable) -> dict[str, str]:
    """`run_id` and `buckets` of the run whose rows the table shows.

    Raises:
        UserError: the newest commit that changed rows is not one of ours.
    """
    newest = _changes(table.history(1)) or _changes(table.history())
    if not newest or not _ours(newest[0]):
        raise _foreign(table)
    return {"run_id": newest[0]["run_id"], "buckets": newest[0]["buckets"]}


def log(table: str) -> list[Commit]:
    """The publications that the table's log knows, newest first; none if nothing was published yet.

    Delta keeps its log for thirty days at least; publications before that may be missing.

    Raises:
        UserError: the newest commit that changed rows is not one of ours.
    """
    return _log(table)[1] if opened(storage.absolute(table)) is not None else []


def latest(commits: Sequence[Commit]) -> dict[str, Commit]:
    """run_id -> its newest commit, newest first; what `log` gives."""
    found: dict[str, Commit] = {}
    for commit in commits:
        found.setdefault(commit.run_id, commit)
    return found


def runs(table: str) -> list[PublishedRun]:
    """Every run that the table's log knows, newest first; one published twice counts where it was last.

    Raises:
        UserError: nothing is published there.
    """
    commits = latest(_log(table)[1])
    now_shown = next(iter(commits))
    staged = storage.join(storage.absolute(table), STAGED) + "/"
    here = {uri for uri, _ in storage.list_files(staged)}
    folders = {uri.removeprefix(staged).split("/", 1)[0] for uri in here}

    def there(commit: Commit) -> bool:
        if commit.run_id == now_shown or commit.rows == 0:
            return True
        # Whether all are there takes opening that version, which reads the log.
        return commit.run_id in folders and here.issuperset(_files(table, commit))

    return [
        PublishedRun(c.run_id, c.version, c.time, c.rows, c.buckets, there(c), c.run_id == now_shown)
        for c in commits.values()
    ]


def snapshot(table: str, run_id: str | None = None) -> Snapshot:
    """The run that the table shows, or an earlier one by its id.

    Raises:
        UserError: nothing is published there, the run never was, or its files were pruned.
    """
    handle, commits = _log(table, 1 if run_id is None else None)
    now_shown = commits[0].run_id
    commit = latest(commits).get(run_id or now_shown)
    if commit is None:
        raise UserError(
            f"{table}: run '{run_id}' was never published there; it shows run {now_shown}, list the earlier ones with: "
            "llmrec runs"
        )
    if commit.run_id != now_shown:
        folder = storage.join(storage.absolute(table), STAGED, commit.run_id)
        if not {uri for uri, _ in storage.list_files(folder)}.issuperset(_files(table, commit)):
            raise _gone(table, commit.run_id)
        handle = _at(table, commit.version)
    return Snapshot(
        storage.absolute(table), commit.run_id, commit.version, commit.time, commit.buckets, _dataset(handle, table)
    )


def rows(run: Snapshot, buckets: Sequence[int] | None = None, columns: list[str] | None = None) -> pa.Table:
    """Rows of a run, of some buckets or all, by user and rank. columns: fewer, user and rank among them.

    Raises:
        UserError: its files were pruned meanwhile.
    """
    return _rows(run, None if buckets is None else field(BUCKET).isin(list(buckets)), columns)


def read(table: str, user_id: int | str | None = None, run_id: str | None = None) -> pa.Table:
    """The published rows, all or one user's (which opens one file only), by user and rank.

    run_id: an earlier run than the one that the table shows.

    Raises:
        UserError: nothing is published there, the run never was or was pruned, or the user's id is of another type.
    """
    if user_id is None and run_id is None:
        return _dataset(published(table), table).to_table().sort_by(_ORDER)
    run = snapshot(table, run_id)
    if user_id is None:
        return rows(run)
    kind = run.data.schema.field(USER).type
    try:
        key = pa.array([user_id]).cast(kind)
    except (pa.ArrowInvalid, OverflowError):
        raise UserError(f"user '{user_id}': ids in {table} are {kind}") from None
    bucket = int(bucket_of(key, run.buckets)[0])
    return _rows(run, (field(BUCKET) == bucket) & (field(USER) == key[0]))


def read_bucket(table: str, bucket: int) -> pa.Table:
    """The published rows of one bucket, by user and rank.

    Raises:
        UserError: nothing is published there.
    """
    return _dataset(published(table), table).to_table(filter=field(BUCKET) == bucket).sort_by(_ORDER)


_ORDER = [(USER, "ascending"), (RANK, "ascending")]


def _rows(run: Snapshot, chosen: Expression | None = None, columns: list[str] | None = None) -> pa.Table:
    try:
        return run.data.to_table(columns=columns, filter=chosen).sort_by(_ORDER)
    except FileNotFoundError:
        raise _gone(run.table, run.run_id) from None


def _gone(table: str, run_id: str) -> UserError:
    return UserError(
        f"{table}: files of run '{run_id}' are gone, deleted by llmrec prune or a vacuum; list what can be read with: "
        "llmrec runs"
    )


def _ours(commit: dict[str, Any]) -> bool:
    return "run_id" in commit and "buckets" in commit


def _changes(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [c for c in history if c["operation"] not in MAINTENANCE]


def _foreign(table: DeltaTable) -> UserError:
    return UserError(f"{table.table_uri}: its newest commit was not made by llmrec; choose another score.output")


def _log(table: str, limit: int | None = None) -> tuple[DeltaTable, list[Commit]]:
    """The table as it is and its publications, newest first, which is the one that it shows.

    limit: how many commits to read; all of them if those change no rows.
    """
    handle = published(table)
    while True:
        history = handle.history(limit)
        again = published(table)
        # Delta reads the newest commits there are but numbers them from the handle's version: right if none came since.
        if again.version() == handle.version():
            break
        handle = again
    changes = _changes(history)
    if not changes and limit is not None:
        return _log(table)
    if not changes or not _ours(changes[0]):
        raise _foreign(handle)
    return handle, [
        Commit(
            c["run_id"], c["version"], datetime.fromtimestamp(c["timestamp"] / 1000, UTC), int(c["buckets"]),
            int(c["rows"]) if "rows" in c else None,
        )
        for c in changes if _ours(c)
    ]  # fmt: skip


def _version_of(table: str, run_id: str) -> int:
    return latest(_log(table)[1])[run_id].version


def _files(table: str, commit: Commit) -> set[str]:
    """URIs of the files that a commit showed."""
    found = pa.table(_at(table, commit.version).get_add_actions())["path"].to_pylist()
    return {storage.join(storage.absolute(table), path) for path in found}


def _at(table: str, version: int) -> DeltaTable:
    found = opened(storage.absolute(table), version)
    assert found is not None
    return found


def _dataset(found: DeltaTable, table: str) -> Dataset:
    fs, path = storage.filesystem(table)
    return found.to_pyarrow_dataset(filesystem=SubTreeFileSystem(path, fs))
