"""What a recall task does: a bucket's users, every generator's candidates of theirs, and their merge.

Apart from the sources that need a model, whose code the tasks' processes need not import.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from llmrec import config
from llmrec.engine.clustered import clustered
from llmrec.engine.counts import asked_histories, known_weights
from llmrec.engine.recall_models import BUCKETS, Models, keys_of
from llmrec.engine.text_vectors import described, text_vectors
from llmrec.layout import Layout
from llmrec.ranker.ragged import Ragged
from llmrec.recall import als, content, context, ease, introduction, item_item
from llmrec.recall.candidates import Candidates, merge, pair_keys
from llmrec.recall.clusters import Clusters
from llmrec.recall.prerequisites import closed, locked
from llmrec.recall.scores import Dense, Listed, Same, Scores, Sparse, Vectors
from llmrec.schema import BUCKET, DETAIL, KEY, ORIGIN, QUARANTINE, REASON, USER, USERS
from llmrec.tables import buckets, contexts, queries, recalled

CELLS_AT_ONCE = 1 << 24
MERGED, RETRIEVE, CLOSENESS, CONTEXT, QUERY, NEW = "merged", "retrieve", "closeness", "context", "query", "new"
SEARCHED = ("als", "text", QUERY)
NO_CANDIDATES = "no_candidates"


@dataclass(frozen=True)
class _Bucket:
    """What the sources know, some of it of the users of one bucket alone: what they typed, keys of their groups, what
    was retrieved for them, the new items brought to them, and asked, int64[n, any], in which contexts they are asked.
    clusters: of the sources that look in some of them alone."""

    models: Models
    vectors: np.ndarray | None
    queries: np.ndarray | None
    keys: pa.Array | None
    retrieved: Candidates | None
    introduced: Candidates | None
    asked: np.ndarray
    clusters: dict[str, Clusters]

    def scores(
        self, name: str, users: np.ndarray, histories: Ragged, settings: config.Recall, weights: np.ndarray | None
    ) -> Scores:
        """What a source says of some users: int64[m], the histories of these, and what their events count, float32 of
        each, None if all count the same."""
        models, n_items = self.models, len(self.models.ids)
        if name == "popularity":
            return Same(models.popularity if models.weighted is None else models.weighted, len(histories))
        if name == "recent":
            assert models.recent is not None
            return Same(models.recent, len(histories))
        if name == "segment":
            assert models.groups is not None and self.keys is not None
            return models.groups.scores(self.keys.take(pa.array(users)), settings.segment.prior)
        if name == "item_item":
            assert models.similar is not None
            return Sparse(item_item.score(histories, models.similar, settings.item_item.decay, weights))
        if name == "graph":
            assert models.linked is not None
            return Sparse(item_item.score(histories, models.linked, settings.graph.decay))
        if name == "ease":
            assert models.linear is not None
            rows, weights = models.linear
            return Dense(ease.score(item_item.interaction_matrix(histories, n_items), rows, weights), rows, n_items)
        if name == "als":
            assert models.factors is not None
            events = item_item.interaction_matrix(histories, n_items, weights=weights)
            events = events if weights is None else als.confidences(events, settings.als.alpha)
            found = als.user_factors(models.factors, events, settings.als)
            return Vectors(found, models.factors, clusters=self.clusters.get(name))
        if name == RETRIEVE:
            assert self.retrieved is not None
            return Listed(self.retrieved.take(users), n_items)
        if name == NEW:
            assert self.introduced is not None
            return Listed(self.introduced.take(users), n_items)
        if name == CONTEXT:
            return context.InContext(list(models.contexts.values()), self.asked[users], models.popularity)
        assert self.vectors is not None
        if name == QUERY:
            assert self.queries is not None
            return Vectors(self.queries[users], self.vectors, settings.query.least, self.clusters.get(name))
        weighted = content.weighted(histories, self.vectors, settings.text.decay)
        return Vectors(weighted, self.vectors, settings.text.least, self.clusters.get(name))


def recall_bucket(batch: pa.Table, models: Any, settings: config.Recall, layout: Layout) -> pa.Table:
    """`recall_unit` of one bucket as Ray Data calls it. models: a reference."""
    import ray

    (unit,) = batch.to_pylist()
    return recall_unit(unit, ray.get(models), settings, layout)


def recall_unit(unit: dict[str, Any], known: Models, settings: config.Recall, layout: Layout) -> pa.Table:
    """Write the candidates of one bucket, of each source and merged, and who has none.

    unit: of `recall_models.units`. Returns one row: users, counts of each source's candidates and of the merged,
    brought, how many of these are each source's, left_out, of each source that brought none of these to some users, how
    many of its candidates had no place there, users with fewer of these than asked for, and with none, and pairs of a
    user and an item that requires what he has not had.
    """
    table = buckets.read_parquet(unit["uri"])
    histories = asked_histories(table, known.ids, settings.history)
    weights = known_weights(table, known.ids, settings.training_only) if settings.history != "none" else None
    weighted = None if weights is None else Ragged(weights, histories.offsets)
    names: list[str] = list(settings.merge)
    quotas = [settings.quotas.get(name, 0) for name in settings.merge]
    found: dict[str, list[Candidates]] = {name: [] for name in [*names, MERGED]}
    parts = [*names, *([CLOSENESS] if known.entities is not None else [])]
    decays = {f"item_item_{decay:g}": decay for decay in settings.item_item.decays}
    parts += [CONTEXT] if known.contexts and CONTEXT not in names else []
    scored: dict[str, list[np.ndarray]] = {name: [] for name in (*parts, *decays)}
    vectors = text_vectors(layout, known.ids, f"recall.{settings.by_text[0]}") if settings.by_text else None
    checked = {name: (0, 0) for name in names if name in SEARCHED and settings.search.method == "clusters"}
    here = _Bucket(
        known,
        vectors,
        queries.read(buckets.bucket_file(layout.queries, unit[BUCKET])) if QUERY in names else None,
        keys_of(table[USER].combine_chunks(), unit[USERS], settings.segment.columns) if "segment" in names else None,
        recalled.read(buckets.bucket_file(layout.candidates(RETRIEVE), unit[BUCKET]), known.ids)
        if RETRIEVE in names else None,
        _introduced(histories, unit, known, vectors, settings.new) if vectors is not None and NEW in names else None,
        context.rows_of(
            contexts.now(table, list(known.contexts), settings.training_only), known.contexts, table.num_rows
        ),
        _clusters(checked, known, vectors, settings, layout),
    )  # fmt: skip
    left_out, lacking = np.zeros(len(names), np.int64), 0
    for users in _blocks(histories, known, settings):
        part = histories.take(users)
        counted = None if weighted is None else weighted.take(users).values
        shut = closed(part, settings.exclude_seen, known.requires)
        lacking += 0 if shut is None else len(shut.values) - settings.exclude_seen * len(part.values)
        scores = {name: here.scores(name, users, part, settings, counted) for name in parts if name != CLOSENESS}
        for name in checked:
            if len(users) and users[0] == 0:  # the bucket's first ones stand for it
                source = scores[name]
                assert isinstance(source, Vectors)
                checked[name] = source.checked(shut, getattr(settings, name).top, settings.search.checked)
        lists = {name: scores[name].top(shut, getattr(settings, name).top) for name in names}
        merged = merge(list(lists.values()), settings.candidates, len(known.ids), quotas)
        left_out += [_left_out(lists[name], merged, place, len(known.ids)) for place, name in enumerate(names)]
        for name, candidates in (lists | {MERGED: merged}).items():
            found[name].append(candidates)
        for name, of in scores.items():
            scored[name].append(of.at(merged.items))
        for name, decay in decays.items():
            assert known.similar is not None
            scored[name].append(Sparse(item_item.score(part, known.similar, decay, counted)).at(merged.items))
        if known.entities is not None:
            near = settings.closeness
            scored[CLOSENESS].append(known.entities.closeness(part, merged.items, near.decay, near.weight))
    counts, lengths = [], np.empty(0, np.int64)
    for name, parts_of in found.items():
        lengths = np.concatenate([np.empty(0, np.int64), *(p.items.lengths for p in parts_of)])
        if name != RETRIEVE:  # which is there already
            labels = names if name == MERGED else [name]
            written = recalled.table(table[USER], parts_of, labels, known.ids, scored if name == MERGED else None)
            buckets.write_parquet(written, buckets.bucket_file(layout.candidates(name), unit[BUCKET]))
        counts.append(int(lengths.sum()))
    short = int((lengths < settings.candidates).sum())  # of the merge, which comes last
    brought = sum((np.bincount(p.source, minlength=len(names)) for p in found[MERGED]), np.zeros(len(names), np.int64))
    none = table[USER].filter(pa.array(lengths == 0))
    if len(none):
        where = buckets.bucket_file(layout.quarantine("recall"), unit[BUCKET])
        buckets.write_parquet(_without_candidates(none, histories.lengths[lengths == 0], names, unit["uri"]), where)
    return pa.table({
        "users": [table.num_rows], "counts": [counts], "brought": [brought.tolist()], "left_out": [left_out.tolist()],
        "short": [short], "none": [len(none)], "locked": [lacking], **tallies(checked),
    })  # fmt: skip


def _left_out(candidates: Candidates, merged: Candidates, place: int, n_items: int) -> int:
    """How many candidates of the source at a place of the merge are not in it, 0 if it brought any."""
    if (merged.source == place).any():
        return 0
    return int((~np.isin(pair_keys(candidates.items, n_items), pair_keys(merged.items, n_items))).sum())


def _introduced(
    histories: Ragged, unit: dict[str, Any], known: Models, vectors: np.ndarray, settings: config.New
) -> Candidates:
    rows = np.flatnonzero(known.popularity <= settings.max_events)
    rows = rows[np.asarray(vectors[rows]).any(axis=1)]  # of the others nobody is near
    turns = introduction.turns(rows, settings.users, unit[BUCKET], unit[BUCKETS])
    rows, turns = rows[turns > 0], turns[turns > 0]
    profiles = content.weighted(histories, vectors, settings.decay)
    first = introduction.ahead(len(rows), settings.top * int(profiles.any(axis=1).sum()), unit[BUCKET])
    shut = histories if known.requires is None else histories.joined(locked(histories, known.requires, rows))
    return introduction.introduced(profiles, vectors[rows], rows, turns, first, settings.top, shut, len(known.ids))


def tallies(checked: dict[str, tuple[int, int]]) -> dict[str, list[int]]:
    """Columns of one row for what `Vectors.checked` says of some sources."""
    return {
        f"{what}_{name}": [n] for name, both in checked.items() for what, n in zip(("best", "hit"), both, strict=True)
    }


def _clusters(
    names: Iterable[str], known: Models, vectors: np.ndarray | None, settings: config.Recall, layout: Layout
) -> dict[str, Clusters]:
    found = {}
    for name in names:
        if name == "als":
            kind, of, version = name, known.factors, known.factors_version
        else:
            kind, of, version = "text", vectors, described(layout, f"recall.{name}").version
        assert of is not None
        found[name] = clustered(kind, len(known.ids), of.view, version, settings.search, layout)
    return found


def _without_candidates(users: pa.ChunkedArray, events: np.ndarray, names: list[str], uri: str) -> pa.Table:
    """Rows of quarantine for users whom no source found anything for."""
    detail = [f"events={n} sources={','.join(names)}" for n in events.tolist()]
    n = len(users)
    columns = {KEY: users.cast(pa.string()), REASON: [NO_CANDIDATES] * n, DETAIL: detail, ORIGIN: [uri] * n}
    return pa.table(columns).cast(QUARANTINE)


def _blocks(histories: Ragged, models: Models, settings: config.Recall) -> Iterator[np.ndarray]:
    """Users one after another, int64[m] at a time, whose scores of all sources take about CELLS_AT_ONCE cells."""
    each = np.full(len(histories), settings.candidates + sum(getattr(settings, n).top for n in settings.merge))
    longest = int(histories.lengths.max(initial=0))
    for name in {"popularity", "recent", "segment"} & set(settings.merge):
        each += getattr(settings, name).top + longest  # of which the seen ones are left out
    for matrix in (models.similar, models.linked):
        if matrix is not None:
            cells = np.append(0, np.cumsum(np.diff(matrix.indptr)[histories.values], dtype=np.int64))
            each += np.minimum(np.diff(cells[histories.offsets]), len(models.ids))
    if models.linear is not None:
        each += len(models.linear[0])
    if CONTEXT in settings.merge:
        each += len(models.ids)
    if models.requires is not None:
        each += np.count_nonzero(models.requires.lengths)
    block = np.cumsum(each + histories.lengths) // CELLS_AT_ONCE
    yield from np.split(np.arange(len(histories)), np.flatnonzero(np.diff(block)) + 1)
