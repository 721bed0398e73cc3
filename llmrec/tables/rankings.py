"""The published rankings: staged Parquet files made visible by one Delta Lake commit, and read back."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, create_table_with_add_actions
from pyarrow.dataset import Dataset, field
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


def staged_path(run_id: str, bucket: int) -> str:
    """Where a bucket's file lies, relative to the table: in a folder of the run, unseen until the commit."""
    return f"runs/{run_id}/bucket-{bucket:05d}.parquet"


def publish(table: str, files: Sequence[StagedFile], buckets: int, schema: pa.Schema, run_id: str) -> Published:
    """Replace what the table shows by these files, in one atomic commit. The run before stays readable by its version.

    buckets: of how many the users were hashed into, files with no rows included.

    Raises:
        UserError: another publisher committed at the same time.
    """
    options = storage.delta_options(table)
    rows = sum(f.rows for f in files)
    now = int(time.time() * 1000)
    adds = [
        AddAction(f.path, f.size, {BUCKET: str(f.bucket)}, now, True, json.dumps({"numRecords": f.rows})) for f in files
    ]
    properties = CommitProperties(
        custom_metadata={"run_id": run_id, "buckets": str(buckets)},
        app_transactions=[Transaction(run_id, 1, now)],
        max_commit_retries=0,
    )
    partitioned = Schema.from_arrow(schema.append(pa.field(BUCKET, pa.int32())))
    try:
        current = opened(table)
        if current is None:
            create_table_with_add_actions(
                table, partitioned, adds, mode="error", partition_by=[BUCKET], storage_options=options,
                name="rankings", commit_properties=properties,
            )  # fmt: skip
        elif shown(current)["run_id"] == run_id:
            return Published(table, current.version(), run_id, rows, new=False)
        else:
            current.create_write_transaction(
                adds, mode="overwrite", schema=partitioned, partition_by=[BUCKET], commit_properties=properties
            )
    except (CommitFailedError, DeltaError) as error:
        raise UserError(
            f"{table}: another job changed the table while run {run_id} was being published "
            f"({storage.redact(str(error).splitlines()[0])[:160]}); publish the run again"
        ) from None
    after = opened(table)
    assert after is not None
    return Published(table, after.version(), run_id, rows, new=True)


def opened(table: str, version: int | None = None) -> DeltaTable | None:
    """The Delta table, or None if nothing is published there yet."""
    try:
        return DeltaTable(table, version=version, storage_options=storage.delta_options(table))
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as error:
        raise UserError(f"{table}: {storage.redact(str(error).splitlines()[0])[:200]}") from None


def shown(table: DeltaTable) -> dict[str, str]:
    """`run_id` and `buckets` of the run whose rows the table shows.

    Raises:
        UserError: the newest commit is not one of ours.
    """
    newest = table.history(1)[0]
    if "run_id" not in newest or "buckets" not in newest:
        raise UserError(f"{table.table_uri}: its newest commit was not made by llmrec; choose another score.output")
    return {"run_id": newest["run_id"], "buckets": newest["buckets"]}


def read(table: str, user_id: int | str | None = None) -> pa.Table:
    """The published rows, all or one user's (which opens one file only), by user and rank.

    Raises:
        UserError: nothing is published there, or the id is of another type.
    """
    found = _published(table)
    dataset = _dataset(found, table)
    if user_id is None:
        return dataset.to_table().sort_by(_ORDER)
    kind = dataset.schema.field(USER).type
    try:
        key = pa.array([user_id]).cast(kind)
    except (pa.ArrowInvalid, OverflowError):
        raise UserError(f"user '{user_id}': ids in {table} are {kind}") from None
    bucket = int(bucket_of(key, int(shown(found)["buckets"]))[0])
    return dataset.to_table(filter=(field(BUCKET) == bucket) & (field(USER) == key[0])).sort_by(_ORDER)


def read_bucket(table: str, bucket: int) -> pa.Table:
    """The published rows of one bucket, by user and rank.

    Raises:
        UserError: nothing is published there.
    """
    return _dataset(_published(table), table).to_table(filter=field(BUCKET) == bucket).sort_by(_ORDER)


_ORDER = [(USER, "ascending"), (RANK, "ascending")]


def _published(table: str) -> DeltaTable:
    found = opened(storage.absolute(table))
    if found is None:
        raise UserError(f"{table}: no rankings are published there; run jobs/score.py first")
    return found


def _dataset(found: DeltaTable, table: str) -> Dataset:
    fs, path = storage.filesystem(table)
    return found.to_pyarrow_dataset(filesystem=SubTreeFileSystem(path, fs))
