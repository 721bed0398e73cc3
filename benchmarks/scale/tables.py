"""Synthetic tables as prepare and recall leave them: items, histories and candidates in buckets."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from llmrec.layout import Layout
from llmrec.schema import ITEM, ITEMS, RECALL_SCORES, SOURCES, TITLE, USER
from llmrec.tables import buckets
from llmrec.tables.histories import as_lists

FIRST_ITEM, ITEM_STEP = 7, 3
USERS_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Shape:
    """What the tables hold. per_user: candidates in a list; events: items in a history; full: candidates have recall
    scores and sources, too."""

    pairs: int
    per_user: int
    items: int
    events: int
    users_per_bucket: int
    full: bool

    @property
    def users(self) -> int:
        return max(1, self.pairs // self.per_user)

    @property
    def buckets(self) -> int:
        return -(-self.users // self.users_per_bucket)


def write(root: Path, shape: Shape) -> Layout:
    """The tables under `root`, or those that an earlier call left there. Memory is that of one bucket.

    An item is in a user's list at most once, and never in his history, so that no candidate has to be left out.
    """
    layout, done = Layout(str(root)), root / "shape.json"
    if done.exists() and json.loads(done.read_text()) == asdict(shape):
        return layout
    root.mkdir(parents=True, exist_ok=True)
    ids = FIRST_ITEM + ITEM_STEP * np.arange(shape.items)
    titles = pa.array([f"item {i}" for i in ids.tolist()])
    buckets.write_parquet(pa.table({ITEM: ids, TITLE: titles}), layout.items)
    of = np.concatenate([
        buckets.bucket_of(pa.array(np.arange(start, min(start + USERS_AT_ONCE, shape.users))), shape.buckets)
        for start in range(0, shape.users, USERS_AT_ONCE)
    ])  # fmt: skip
    mixed = np.random.default_rng(shape.pairs).permutation(ids)
    by_bucket = np.split(np.argsort(of, kind="stable"), np.cumsum(np.bincount(of, minlength=shape.buckets))[:-1])
    for bucket, users in enumerate(by_bucket):
        rng = np.random.default_rng([bucket, shape.pairs])
        rows = _different(rng, len(users), shape.per_user + shape.events, shape.items)
        tables = {layout.candidates(): rows[:, : shape.per_user], layout.histories: rows[:, shape.per_user :]}
        for table, lists in tables.items():
            columns = {USER: pa.array(users), ITEMS: _lists(mixed[lists], lists.shape)}
            if shape.full and table == layout.candidates():
                columns |= _recalled(rng, lists.shape)
            buckets.write_parquet(pa.table(columns), buckets.bucket_file(table, bucket))
    done.write_text(json.dumps(asdict(shape)))
    return layout


def _different(rng: np.random.Generator, users: int, wanted: int, items: int) -> np.ndarray:
    """int64[users, wanted] places in the catalogue, none twice for a user: equal steps around it, in any order.

    Raises:
        ValueError: the catalogue is smaller than what a user is to have of it.
    """
    start, step = rng.integers(0, items, (users, 1)), rng.integers(1, items // wanted + 1, (users, 1))
    return rng.permuted((start + step * np.arange(wanted)) % items, axis=1)


def _lists(values: np.ndarray, shape: tuple[int, ...]) -> pa.Array:
    return as_lists(pa.array(values.ravel()), np.arange(0, shape[0] * shape[1] + 1, shape[1]))


def _recalled(rng: np.random.Generator, shape: tuple[int, ...]) -> dict[str, pa.Array]:
    names = pa.DictionaryArray.from_arrays(
        pa.array(rng.integers(0, 2, shape[0] * shape[1], np.int8)), pa.array(["item_item", "popularity"])
    )
    offsets = np.arange(0, shape[0] * shape[1] + 1, shape[1])
    return {
        RECALL_SCORES: _lists(rng.random(shape, np.float32), shape),
        SOURCES: as_lists(names.cast(pa.string()), offsets),
    }
