"""What the generators learn of all users, before any user's candidates are looked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute
from scipy import sparse

from llmrec import config, storage
from llmrec.engine import counts
from llmrec.engine.counts import in_context, known_events, known_histories
from llmrec.engine.prerequisites import required_by
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.ranker.graph import incidence
from llmrec.ranker.ragged import Ragged
from llmrec.recall import als, context, ease, popularity
from llmrec.recall.graph import Entities, entity_vectors
from llmrec.recall.popularity import Groups, group_counts, group_keys, grouped
from llmrec.schema import BUCKET, USER, USERS
from llmrec.tables import buckets, contexts

EASE_CPUS = GRAPH_CPUS = 1
BUCKETS = "buckets"


@dataclass(frozen=True)
class Models:
    """ids: ascending item ids; popularity: float32[n_items], users who had each; weighted: the same, each user counting
    the greatest weight of his events of it, where events have weights; recent: float32[n_items], of
    `popularity.recent`; groups: users by group and item; similar, linked: each item's neighbours by who had them and by
    what the graph says; linear: item rows and the float32[m, m] weights of `ease.weights` among them; factors:
    float32[n_items, any] of `als.item_factors`, with a hash of them where clusters need it; entities: what closeness
    is had from; requires: rows of the items that each item requires. None for what nobody asks for.
    contexts: of `context.learn`, by what histories tell of.
    """

    ids: pa.Array
    popularity: np.ndarray
    weighted: np.ndarray | None = None
    recent: np.ndarray | None = None
    groups: Groups | None = None
    similar: sparse.csr_matrix | None = None
    linked: sparse.csr_matrix | None = None
    linear: tuple[np.ndarray, np.ndarray] | None = None
    factors: np.ndarray | None = None
    factors_version: str = ""
    entities: Entities | None = None
    requires: Ragged | None = None
    contexts: dict[str, context.Association] = field(default_factory=dict)


def units(settings: config.Recall, layout: Layout) -> list[dict[str, str | int]]:
    """The buckets: where each one's histories are, its users' attributes (empty if there are none, or nobody asks), and
    how many buckets there are.

    Raises:
        UserError: prepare has not written its tables, or not the users' attributes that a source needs.
    """
    known: dict[int, str] = {}
    if "segment" in settings.merge:
        if not storage.exists(layout.users):
            raise UserError(
                f"recall.segment needs users' attributes, and {layout.users} has none; set data.users and run "
                "jobs/prepare.py, or leave segment out of recall.merge"
            )
        known = buckets.bucket_files(layout.users)
        group_keys(
            buckets.schema_of(next(iter(known.values()))).empty_table(), settings.segment.columns, layout.users
        )  # or a task would be the first to tell
    histories = buckets.bucket_files(layout.histories)
    of = len(histories)
    return [
        {BUCKET: bucket, "uri": uri, USERS: known.get(bucket, ""), BUCKETS: of} for bucket, uri in histories.items()
    ]


def fit(settings: config.Recall, layout: Layout, requires: str = "") -> Models:
    """Learn what the sources that merge names need, and which items require others by the relation `requires`.

    Raises:
        UserError: prepare has not written its tables, or a setting does not suit the data.
    """
    import ray

    where = units(settings, layout)
    ids, training_only = buckets.catalogue_ids(layout.items), settings.training_only
    graph, prerequisites = _edges(settings, layout, ids), required_by(requires, layout, ids)
    items, weights = counts.events_and_weights(layout.histories, ids, training_only)
    had = np.bincount(items.values, minlength=len(ids)).astype(np.float32)
    users = int((items.lengths > 0).sum())
    linear, factors, similar, linked = None, None, None, None
    if "ease" in settings.merge:
        known = np.sort(np.argsort(-had, kind="stable")[: settings.ease.items])
        known = known[had[known] > 0]
        linear = known, ray.get(ray.remote(_linear).options(num_cpus=EASE_CPUS).remote(items, known, settings.ease.l2))
    if "als" in settings.merge:
        factors = ray.get(
            ray.remote(_factors).options(num_cpus=settings.als.cpus).remote(items, weights, len(ids), settings.als)
        )
    if "item_item" in settings.merge:
        similar = counts.similar_by_users(items, len(ids), settings.item_item, weights)
    if "graph" in settings.merge:
        linked = counts.similar_by_vectors(entity_vectors(graph, settings.graph.max_items), settings.graph)
    return Models(
        ids, had,
        weighted=None if weights is None else np.bincount(items.values, weights, len(ids)).astype(np.float32),
        recent=_recent(where, ids, training_only, settings.recent) if "recent" in settings.merge else None,
        groups=_groups(where, ids, settings, had, users) if "segment" in settings.merge else None,
        similar=similar, linked=linked, linear=linear, factors=factors,
        factors_version=_version(factors) if factors is not None and settings.search.method == "clusters" else "",
        entities=Entities.of(graph, settings.closeness.smoothing) if settings.closeness.weight else None,
        contexts=_contexts(settings, layout, ids, training_only),
        requires=prerequisites,
    )  # fmt: skip


def _version(factors: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(factors).data).hexdigest()


def _contexts(
    settings: config.Recall, layout: Layout, ids: pa.Array, training_only: bool
) -> dict[str, context.Association]:
    first = next(iter(buckets.bucket_files(layout.histories).values()))
    names = contexts.names_of(buckets.schema_of(first))
    typed = settings.query.context if "query" in settings.merge else ""  # hardly anybody types the same
    if [name for name in names if name != typed]:
        seen = in_context(layout.histories, ids, training_only, typed)
        return context.learn(seen, len(ids), settings.context.prior)
    if "context" in settings.merge:
        raise UserError(
            f"recall.merge names 'context', and {layout.histories} tells of none; set data.context and run "
            "jobs/prepare.py again"
        )
    return {}


def _linear(items: Ragged, known: np.ndarray, l2: float) -> np.ndarray:
    had = counts.matrix(items, int(items.values.max(initial=0)) + 1)
    try:
        return ease.weights(ease.counts(had, known), l2)
    except ValueError as error:
        raise UserError(f"recall.ease: {error} (recall.ease.l2)") from None


def _factors(items: Ragged, weights: np.ndarray | None, n_items: int, settings: config.Als) -> np.ndarray:
    """Of all users' events: one matrix, in one process."""
    events = counts.matrix(items, n_items, weights)
    events = events if weights is None else als.confidences(events, settings.alpha)
    return als.item_factors(events, settings, settings.cpus)


def _edges(settings: config.Recall, layout: Layout, ids: pa.Array) -> sparse.csr_matrix | None:
    """float64[n_items, entities]: what the graph says of the items; None if nobody asks."""
    import ray

    if "graph" not in settings.merge and not settings.closeness.weight:
        return None
    asking = "recall.graph" if "graph" in settings.merge else "recall.closeness"
    if not storage.exists(layout.edges):
        raise UserError(
            f"{asking} needs a knowledge graph, and {layout.edges} is not there; set data.edges and run jobs/prepare.py"
        )
    found: sparse.csr_matrix = ray.get(ray.remote(_incidence).options(num_cpus=GRAPH_CPUS).remote(layout.edges, ids))
    if not found.nnz:
        raise UserError(f"{asking}: {layout.edges} has no edge of an item of {layout.items}")
    return found


def _incidence(edges: str, ids: pa.Array) -> sparse.csr_matrix:
    return incidence(buckets.read_parquet(edges), ids)


def _recent(
    where: list[dict[str, str | int]], ids: pa.Array, training_only: bool, settings: config.Recent
) -> np.ndarray:
    """float32[n_items] of `popularity.recent`, over all buckets."""
    import ray

    shared = ray.put(ids)
    newest = ray.remote(_newest)
    last = max(ray.get([newest.remote(unit["uri"], shared, training_only) for unit in where]))
    add = ray.remote(_recent_of)
    waiting = [add.remote(unit["uri"], shared, training_only, last, settings) for unit in where]
    total = np.zeros(len(ids))
    while waiting:  # in the order of buckets, so that the sums are the same each time
        total += ray.get(waiting.pop(0))
    return total.astype(np.float32)


def _newest(uri: str, ids: pa.Array, training_only: bool) -> int:
    _, times = known_events(buckets.read_parquet(uri), ids, training_only)
    return int(times.max(initial=0))


def _recent_of(uri: str, ids: pa.Array, training_only: bool, newest: int, settings: config.Recent) -> np.ndarray:
    histories, times = known_events(buckets.read_parquet(uri), ids, training_only)
    return popularity.recent(
        histories, times, newest, settings.half_life_days, settings.window_days, len(ids)
    )  # fmt: skip


def _groups(
    where: list[dict[str, str | int]], ids: pa.Array, settings: config.Recall, had: np.ndarray, users: int
) -> Groups:
    import ray

    shared = ray.put(ids)
    task = ray.remote(_groups_of)
    return grouped(ray.get([task.remote(unit, shared, settings) for unit in where]), had, users)


def _groups_of(
    unit: dict[str, str], ids: pa.Array, settings: config.Recall
) -> tuple[pa.Array, sparse.csr_matrix, np.ndarray]:
    table = buckets.read_parquet(unit["uri"])
    histories = known_histories(table, ids, settings.training_only)
    keys = keys_of(table[USER].combine_chunks(), unit[USERS], settings.segment.columns)
    return group_counts(keys, histories, len(ids))


def keys_of(users: pa.Array, attributes: str, columns: tuple[str, ...]) -> pa.Array:
    """string[n]: the key of each user's group, null for one of none. attributes: a bucket's file of them, or empty."""
    if not attributes:
        return pa.nulls(len(users), pa.string())
    table = buckets.read_parquet(attributes)
    keys = group_keys(table, columns, attributes)
    return keys.take(pa.compute.index_in(users, table[USER].combine_chunks()))
