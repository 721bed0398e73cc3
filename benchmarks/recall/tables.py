"""Synthetic tables as prepare leaves them: items, and histories of users who prefer popular ones; and vectors."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmrec import schema
from llmrec.layout import Layout
from llmrec.ranker.ragged import Ragged, offsets_of, within
from llmrec.recall.item_item import distinct
from llmrec.schema import ITEM, TITLE
from llmrec.tables import buckets
from llmrec.tables.histories import as_lists

FIRST_ITEM, ITEM_STEP, TOPICS = 7, 3, 1000


@dataclass(frozen=True)
class Shape:
    """What the tables hold. events: items of a user on the average; zipf: the power of popularity's fall by rank."""

    items: int
    users: int
    events: float
    zipf: float
    users_per_bucket: int

    @property
    def buckets(self) -> int:
        return -(-self.users // self.users_per_bucket)


def write(root: Path, shape: Shape) -> Layout:
    """The tables under `root`, or those that an earlier call left there. Memory is that of one bucket."""
    layout, done = Layout(str(root)), root / "shape.json"
    if done.exists() and json.loads(done.read_text()) == asdict(shape):
        return layout
    root.mkdir(parents=True, exist_ok=True)
    ids = FIRST_ITEM + ITEM_STEP * np.arange(shape.items)
    buckets.write_parquet(pa.table({ITEM: ids, TITLE: pa.array([f"item {i}" for i in ids.tolist()])}), layout.items)
    by_rank = np.random.default_rng(0).permutation(ids)
    below = np.cumsum(np.arange(1, shape.items + 1.0) ** -shape.zipf)
    of = buckets.bucket_of(pa.array(np.arange(shape.users)), shape.buckets)
    for bucket in range(shape.buckets):
        users, rng = np.flatnonzero(of == bucket), np.random.default_rng([bucket, shape.items])
        lengths = rng.geometric(1 / shape.events, len(users))
        drawn = np.searchsorted(below, rng.random(lengths.sum()) * below[-1])
        lists, _ = distinct(Ragged(drawn.astype(np.int32), offsets_of(lengths)))
        columns = [
            pa.array(users), as_lists(pa.array(by_rank[lists.values]), lists.offsets),
            as_lists(pa.array(1_000_000_000 + 60 * within(lists.lengths)), lists.offsets),
            pa.array(np.maximum(lists.lengths - 1, 0).astype(np.int32)),
        ]  # fmt: skip
        wanted = schema.histories(pa.int64(), pa.int64())
        made = pa.table([c.cast(f.type) for c, f in zip(columns, wanted, strict=True)], schema=wanted)
        buckets.write_parquet(made, buckets.bucket_file(layout.histories, bucket))
    done.write_text(json.dumps(asdict(shape)))
    return layout


def vectors(folder: Path, items: int, users: int, dimensions: int) -> tuple[Path, Path]:
    """Files of float32[items, d] and of float32[users, d] of length 1, made if they are not there: each about one of
    TOPICS directions, as far from it as that is long."""
    topics = _unit(np.random.default_rng(dimensions).standard_normal((TOPICS, dimensions), np.float32))
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, rows in (("items", items), ("users", users)):
        file = folder / f"{name}-{rows}x{dimensions}.npy"
        if not file.exists():
            rng = np.random.default_rng([rows, dimensions])
            made = np.lib.format.open_memmap(file, "w+", np.float32, (rows, dimensions))
            for start in range(0, rows, 1 << 16):
                here = topics[rng.integers(TOPICS, size=min(1 << 16, rows - start))]
                made[start : start + len(here)] = _unit(here + _unit(rng.standard_normal(here.shape, np.float32)))
            made.flush()
        found.append(file)
    return found[0], found[1]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)
