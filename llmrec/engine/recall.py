"""recall: candidates for every user from each generator and their merge, bucket by bucket."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from llmrec import config, schema
from llmrec.engine.counts import cooccurrence, known_histories
from llmrec.engine.retrieve import RETRIEVE, retrieve
from llmrec.engine.units import each, reporting
from llmrec.layout import Layout
from llmrec.ranker.ragged import Ragged
from llmrec.recall import item_item
from llmrec.recall.candidates import Candidates, merge, top
from llmrec.schema import BUCKET, ITEM, USER
from llmrec.tables import buckets, recalled

CELLS_AT_ONCE = 1 << 24
MERGED = "merged"


@dataclass(frozen=True)
class Recalled:
    """What recall did: users, candidates per user of each source and of the merge, users who got fewer than asked."""

    users: int
    per_user: dict[str, float]
    short_lists: int
    table: str


@dataclass(frozen=True)
class _Models:
    """What the generators know of all users. ids: ascending item ids; the rest by item row."""

    ids: pa.Array
    popularity: np.ndarray
    similar: sparse.csr_matrix


def recall(settings: config.Recall, layout: Layout, say: Callable[[str], None], attention: str = "auto") -> Recalled:
    """Write candidates/<source>, candidates/merged and popularity under the root, candidates bucketed like histories.

    attention: how a ranker that retrieves attends.

    Raises:
        UserError: prepare has not written its tables.
    """
    import ray

    ids = buckets.catalogue_ids(layout.items)
    say(f"counting co-occurrence of {len(ids):,} items")
    counts = cooccurrence(layout.histories, ids, settings.history == "training")
    models = _Models(
        ids,
        counts.diagonal().astype(np.float32),
        item_item.neighbours(counts, settings.item_item.neighbours, settings.item_item.shrinkage),
    )
    popularity = pa.table({ITEM: ids, schema.USERS: models.popularity.astype(np.int64)})
    buckets.write_parquet(popularity, layout.popularity)
    files = buckets.bucket_files(layout.histories)
    if settings.retrieve.top:
        retrieve(settings, layout, attention, say)
    units = [{BUCKET: bucket, "uri": uri} for bucket, uri in files.items()]
    arguments = {"models": ray.put(models), "settings": settings, "layout": layout}
    rows = reporting(each(units, _recall_bucket, arguments), len(units), say, "recall")
    users = sum(row["users"] for row in rows)
    names = [*settings.merge, MERGED]
    for name in names:
        buckets.delete_others(layout.candidates(name), files)
    totals = np.sum([row["counts"] for row in rows], axis=0) / max(users, 1)
    return Recalled(
        users=users,
        per_user={name: round(float(n), 1) for name, n in zip(names, totals, strict=True)},
        short_lists=sum(row["short"] for row in rows),
        table=layout.candidates(MERGED),
    )


def _recall_bucket(batch: pa.Table, models: Any, settings: config.Recall, layout: Layout) -> pa.Table:
    import ray

    known: _Models = ray.get(models)
    (unit,) = batch.to_pylist()
    table = buckets.read_parquet(unit["uri"])
    histories = known_histories(table, known.ids, settings.history == "training")
    n_items = len(known.ids)
    step = max(1, CELLS_AT_ONCE // max(n_items, 1))
    names: list[str] = list(settings.merge)
    found: dict[str, list[Candidates]] = {name: [] for name in [*names, MERGED]}
    retrieved = (
        recalled.read(buckets.bucket_file(layout.candidates(RETRIEVE), unit[BUCKET]), known.ids)
        if RETRIEVE in names else None
    )  # fmt: skip
    for start in range(0, len(histories), step):
        users = np.arange(start, min(start + step, len(histories)))
        part = histories.take(users)
        seen = part if settings.exclude_seen else None
        sources = [
            retrieved.take(users) if name == RETRIEVE and retrieved is not None
            else top(_scores(name, part, known, settings), seen, getattr(settings, name).top)
            for name in names
        ]  # fmt: skip
        for name, candidates in zip(names, sources, strict=True):
            found[name].append(candidates)
        found[MERGED].append(merge(sources, settings.candidates, n_items))
    counts, short = [], 0
    for name, parts in found.items():
        lengths = np.concatenate([p.items.lengths for p in parts]) if parts else np.empty(0, np.int64)
        if name != RETRIEVE:  # which is there already
            labels = names if name == MERGED else [name]
            written = recalled.table(table[USER], parts, labels, known.ids)
            buckets.write_parquet(written, buckets.bucket_file(layout.candidates(name), unit[BUCKET]))
        counts.append(int(lengths.sum()))
        short = int((lengths < settings.candidates).sum())  # of the merge, which comes last
    return pa.table({"users": [table.num_rows], "counts": [counts], "short": [short]})


def _scores(name: str, histories: Ragged, models: _Models, settings: config.Recall) -> np.ndarray:
    if name == "popularity":
        return np.repeat(models.popularity[None], len(histories), axis=0)
    return item_item.score(histories, models.similar, settings.item_item.decay)
