"""What a recall task does: a bucket's users, every generator's candidates of theirs, and their merge.

Apart from the sources that need a model, whose code the tasks' processes need not import.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from llmrec import config
from llmrec.engine.counts import known_histories
from llmrec.engine.recall_models import Models
from llmrec.engine.text_vectors import text_vectors
from llmrec.layout import Layout
from llmrec.ranker.ragged import Ragged
from llmrec.recall import als, content, context, ease, item_item
from llmrec.recall.candidates import Candidates, merge
from llmrec.recall.scores import Dense, Listed, Same, Scores, Sparse
from llmrec.schema import BUCKET, USER
from llmrec.tables import buckets, contexts, recalled

DENSE = ("ease", "als", "text", "context")  # which score every item of every user
CELLS_AT_ONCE = 1 << 24
MERGED, RETRIEVE, CONTEXT = "merged", "retrieve", "context"


def recall_bucket(batch: pa.Table, models: Any, settings: config.Recall, layout: Layout) -> pa.Table:
    """Write the candidates of one bucket, of each source and merged; how many they are. models: a reference."""
    import ray

    known: Models = ray.get(models)
    (unit,) = batch.to_pylist()
    table = buckets.read_parquet(unit["uri"])
    histories = known_histories(table, known.ids, settings.history == "training")
    names: list[str] = list(settings.merge)
    quotas = [settings.quotas.get(name, 0) for name in settings.merge]
    found: dict[str, list[Candidates]] = {name: [] for name in [*names, MERGED]}
    asked = context.rows_of(contexts.now(table, list(known.contexts), settings.history == "training"), known.contexts)
    says = [*names, CONTEXT] if known.contexts and CONTEXT not in names else names
    scored: dict[str, list[np.ndarray]] = {name: [] for name in says}
    retrieved = (
        recalled.read(buckets.bucket_file(layout.candidates(RETRIEVE), unit[BUCKET]), known.ids)
        if RETRIEVE in names else None
    )  # fmt: skip
    vectors = content.unit(text_vectors(layout, known.ids, "recall.text")) if "text" in names else None
    for users in _blocks(histories, known, settings):
        part = histories.take(users)
        seen = part if settings.exclude_seen else None
        scores = {
            name: Listed(retrieved.take(users), len(known.ids)) if name == RETRIEVE and retrieved is not None
            else context.InContext(list(known.contexts.values()), asked[users], known.popularity) if name == CONTEXT
            else _scores(name, part, known, vectors, settings)
            for name in says
        }  # fmt: skip
        lists = {name: scores[name].top(seen, getattr(settings, name).top) for name in names}
        merged = merge(list(lists.values()), settings.candidates, len(known.ids), quotas)
        for name, candidates in (lists | {MERGED: merged}).items():
            found[name].append(candidates)
        for name, of in scores.items():
            scored[name].append(of.at(merged.items))
    counts, short = [], 0
    for name, parts in found.items():
        lengths = np.concatenate([p.items.lengths for p in parts]) if parts else np.empty(0, np.int64)
        if name != RETRIEVE:  # which is there already
            labels = names if name == MERGED else [name]
            written = recalled.table(table[USER], parts, labels, known.ids, scored if name == MERGED else None)
            buckets.write_parquet(written, buckets.bucket_file(layout.candidates(name), unit[BUCKET]))
        counts.append(int(lengths.sum()))
        short = int((lengths < settings.candidates).sum())  # of the merge, which comes last
    return pa.table({"users": [table.num_rows], "counts": [counts], "short": [short]})


def _blocks(histories: Ragged, models: Models, settings: config.Recall) -> Iterator[np.ndarray]:
    """Users one after another, int64[m] at a time, who score about CELLS_AT_ONCE items together."""
    n_items = len(models.ids)
    scored = np.minimum(histories.lengths * settings.item_item.neighbours, n_items)
    dense = n_items * any(name in DENSE for name in settings.merge)
    block = np.cumsum(scored + histories.lengths + settings.candidates + dense) // CELLS_AT_ONCE
    yield from np.split(np.arange(len(histories)), np.flatnonzero(np.diff(block)) + 1)


def _scores(
    name: str, histories: Ragged, models: Models, vectors: np.ndarray | None, settings: config.Recall
) -> Scores:
    n_items = len(models.ids)
    if name == "popularity":
        return Same(models.popularity, len(histories))
    if name == "item_item":
        return Sparse(item_item.score(histories, models.similar, settings.item_item.decay))
    if name == "ease":
        assert models.linear is not None
        rows, weights = models.linear
        return Dense(ease.score(item_item.interaction_matrix(histories, n_items), rows, weights))
    if name == "als":
        assert models.factors is not None
        events = item_item.interaction_matrix(histories, n_items)
        return Dense(content.products(als.user_factors(models.factors, events, settings.als), models.factors))
    assert vectors is not None
    weighted = item_item.interaction_matrix(histories, n_items, settings.text.decay)
    return Dense(content.products(content.unit(weighted @ vectors), vectors), settings.text.least)
