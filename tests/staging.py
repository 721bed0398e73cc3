"""Runs staged and published without scoring."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from llmrec import schema, storage
from llmrec.layout import Layout
from llmrec.tables import buckets, rankings
from llmrec.tables.rankings import StagedFile

BUCKETS = 4
INTEGER = pa.int64()


def rows(run_id: str, users: Iterable[Any], kind: pa.DataType = INTEGER) -> pa.Table:
    """Each user's items by rank, from a mapping; three items for each if there are only users."""
    lists = users if isinstance(users, Mapping) else {u: [0, 1, 2] for u in users}
    made = [(u, r, i, 1.0 / r) for u, items in lists.items() for r, i in enumerate(items, 1)]
    n = len(made)
    columns = [[row[i] for row in made] for i in range(4)]
    columns += [*[[None] * n] * 3, [""] * n, ["m"] * n, [run_id] * n]
    wanted = schema.rankings(kind, pa.int64())
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, wanted, strict=True)], schema=wanted)


def stage(
    table: str, run_id: str, users: Iterable[Any], kind: pa.DataType = INTEGER, count: int = BUCKETS
) -> list[StagedFile]:
    data = rows(run_id, users, kind)
    bucket = buckets.bucket_of(data["user_id"], count)
    files = []
    for b in sorted(set(bucket.tolist())):
        part, path = data.filter(pa.array(bucket == b)), rankings.staged_path(run_id, b)
        size = buckets.write_parquet(part, storage.join(table, path))
        files.append(StagedFile(b, path, size, part.num_rows))
    return files


def commit(
    table: str, run_id: str, files: list[StagedFile], kind: pa.DataType = INTEGER, count: int = BUCKETS
) -> rankings.Published:
    return rankings.publish(table, files, count, schema.rankings(kind, pa.int64()), run_id)


def publish(
    table: str, run_id: str, users: Iterable[Any], kind: pa.DataType = INTEGER, count: int = BUCKETS
) -> rankings.Published:
    return commit(table, run_id, stage(table, run_id, users, kind, count), kind, count)


def write_ledger(layout: Layout, table: str, run_id: str, files: list[StagedFile], complete: bool = True) -> None:
    """The run's folder as score leaves it: an entry a bucket, and the summary once all are there."""
    for file in files:
        entry = {"bucket": file.bucket, "path": file.path, "size": file.size, "rows": file.rows, "counts": {}}
        storage.write_json(storage.join(layout.ledger(run_id), f"bucket-{file.bucket:05d}.json"), entry)
    if complete:
        storage.write_json(layout.run_summary(run_id), {"run_id": run_id, "output": table, "staged": len(files)})
