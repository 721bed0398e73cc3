"""Shards: rows cut by bucket and laid back to back in one file, so that each bucket's part can be read alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from llmrec.ranker.ragged import offsets_of
from llmrec.schema import USER
from llmrec.tables.buckets import bucket_of


@dataclass(frozen=True)
class Shard:
    """data: bucket b's part is data[offsets[b]:offsets[b + 1]], nothing if no row falls there.

    offsets: int64[buckets + 1]; sizes: int64[buckets], bytes of each part as an arrow table in memory.
    """

    data: bytes
    offsets: np.ndarray
    sizes: np.ndarray


def cut(rows: pa.Table, buckets: int) -> Shard:
    """Rows by the bucket of their `user_id`, those of a bucket in the order in which they came."""
    users = rows[USER].combine_chunks().dictionary_encode()  # hashing is slow, and in long form users repeat
    bucket = bucket_of(users.dictionary, buckets)[users.indices.to_numpy()]
    order = np.argsort(bucket, kind="stable")
    rows = rows.take(pa.array(order)).combine_chunks()
    places = offsets_of(np.bincount(bucket, minlength=buckets))
    lengths, sizes = np.zeros(buckets, np.int64), np.zeros(buckets, np.int64)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    for b in np.flatnonzero(np.diff(places)):
        part, before = rows.slice(places[b], places[b + 1] - places[b]), sink.tell()
        with pa.ipc.new_stream(sink, rows.schema, options=options) as stream:
            stream.write_table(part)
        lengths[b], sizes[b] = sink.tell() - before, part.nbytes
    return Shard(sink.getvalue().to_pybytes(), offsets_of(lengths), sizes)


def part(data: bytes) -> pa.Table:
    """The rows of one bucket's part."""
    return pa.ipc.open_stream(data).read_all()
