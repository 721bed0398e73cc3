"""What a recall task does: a bucket's users, every generator's candidates of theirs, and their merge.

Apart from the sources that need a model, whose code the tasks' processes need not import.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from llmrec import config
from llmrec.engine.counts import known_histories
from llmrec.layout import Layout
from llmrec.ranker.ragged import Ragged
from llmrec.recall import item_item
from llmrec.recall.candidates import Candidates, merge, top
from llmrec.schema import BUCKET, USER
from llmrec.tables import buckets, recalled

CELLS_AT_ONCE = 1 << 24
MERGED, RETRIEVE = "merged", "retrieve"


@dataclass(frozen=True)
class Models:
    """What the generators know of all users. ids: ascending item ids; the rest by item row."""

    ids: pa.Array
    popularity: np.ndarray
    similar: sparse.csr_matrix


def recall_bucket(batch: pa.Table, models: Any, settings: config.Recall, layout: Layout) -> pa.Table:
    """Write the candidates of one bucket, of each source and merged; how many they are. models: a reference."""
    import ray

    known: Models = ray.get(models)
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


def _scores(name: str, histories: Ragged, models: Models, settings: config.Recall) -> np.ndarray:
    if name == "popularity":
        return np.repeat(models.popularity[None], len(histories), axis=0)
    return item_item.score(histories, models.similar, settings.item_item.decay)
