"""A bucket's work on its way through Ray Data: one row, so that no block boundary can ever cut it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from llmrec import schema
from llmrec.ranker.ragged import Ragged
from llmrec.schema import BUCKET, NOW, PART_OF_RECALL, USER
from llmrec.tables import fingerprints
from llmrec.tables.requests import Work


@dataclass(frozen=True)
class Bucket:
    """A bucket, read, and what scoring it gave.

    source: its candidates' file; scores: float32[pairs]; copied: users whose rows come from an earlier run;
    marks: the fingerprints of all users; facts: how scoring went, as JSON can hold it.
    """

    number: int
    source: str
    work: Work
    scores: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    copied: pa.Array | None = None
    marks: pa.Table | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def to_row(bucket: Bucket) -> pa.Table:
    """One row: the number, a JSON header, and the arrays as Arrow streams. Quarantined rows do not travel."""
    work, sink = bucket.work, pa.BufferOutputStream()
    none = work.users.slice(0, 0)
    tables = [
        pa.table(
            {USER: work.users}
            | ({} if work.openings is None else {"opening": work.openings})
            | ({} if work.contexts is None else {NOW + n: work.contexts[n] for n in work.contexts.column_names})
        ),
        pa.table(
            {"candidate": work.candidates.values, "recall": work.recall_scores, "source": work.sources}
            | {PART_OF_RECALL + name: values for name, values in work.parts.items()}
        ),
        pa.table({"event": work.histories.values}),
        pa.table({"h": work.histories.offsets, "c": work.candidates.offsets}),
        pa.table({"score": bucket.scores}),
        pa.table({USER: none if bucket.copied is None else bucket.copied}),
        fingerprints.table(none, np.empty(0, np.uint64)) if bucket.marks is None else bucket.marks,
    ]
    sizes = []
    for table in tables:
        before = sink.tell()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        sizes.append(sink.tell() - before)
    header = {"source": bucket.source, "counts": work.counts, "facts": bucket.facts, "sizes": sizes}
    return pa.table({
        BUCKET: pa.array([bucket.number], pa.int32()), "header": [json.dumps(header)],
        "body": pa.Array.from_buffers(pa.large_binary(), 1, _one_value(sink.getvalue())),
    })  # fmt: skip


def from_row(row: pa.Table) -> Bucket:
    header = json.loads(row["header"][0].as_py())
    body, tables, start = row["body"][0].as_buffer(), [], 0
    for size in header["sizes"]:
        tables.append(pa.ipc.open_stream(body.slice(start, size)).read_all().combine_chunks())
        start += size
    users, pairs, events, lengths, scores, copied, marks = tables
    asked = {name.removeprefix(NOW): users[name] for name in users.column_names if name.startswith(NOW)}
    work = Work(
        users=_array(users[USER]),
        histories=Ragged(events["event"].to_numpy(), lengths["h"].to_numpy()),
        candidates=Ragged(pairs["candidate"].to_numpy(), lengths["c"].to_numpy()),
        recall_scores=pairs["recall"].to_numpy(),
        sources=_array(pairs["source"]),
        counts=header["counts"],
        quarantine=schema.QUARANTINE.empty_table(),
        openings=_array(users["opening"]) if "opening" in users.column_names else None,
        contexts=pa.table(asked) if asked else None,
        parts={
            name.removeprefix(PART_OF_RECALL): pairs[name].to_numpy()
            for name in pairs.column_names
            if name.startswith(PART_OF_RECALL)
        },
    )
    return Bucket(
        row[BUCKET][0].as_py(), header["source"], work, scores["score"].to_numpy(), _array(copied[USER]), marks,
        header["facts"],
    )  # fmt: skip


def _one_value(buffer: pa.Buffer) -> list[pa.Buffer | None]:
    """The buffers of an array of one large binary, without a copy of it."""
    return [None, pa.py_buffer(np.asarray([0, buffer.size], np.int64)), buffer]


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)
