"""What the generators learn of all users, before any user's candidates are looked for."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from scipy import sparse

from llmrec import config
from llmrec.engine.counts import cooccurrence, in_context, known_histories
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.recall import als, context, ease, item_item
from llmrec.tables import buckets, contexts

EASE_CPUS = 1


@dataclass(frozen=True)
class Models:
    """ids: ascending item ids; popularity: float32[n_items], users who had each; similar: of `item_item.neighbours`;
    linear: item rows and the float32[m, m] weights of `ease.weights` among them; factors: float32[n_items, any] of
    `als.item_factors`. None for a source that is off. contexts: of `context.learn`, by what histories tell of.
    """

    ids: pa.Array
    popularity: np.ndarray
    similar: sparse.csr_matrix
    linear: tuple[np.ndarray, np.ndarray] | None = None
    factors: np.ndarray | None = None
    contexts: dict[str, context.Association] = field(default_factory=dict)


def fit(settings: config.Recall, layout: Layout) -> Models:
    """Learn what the sources that merge names need.

    Raises:
        UserError: prepare has not written its tables, or a setting does not suit the data.
    """
    import ray

    ids, training_only = buckets.catalogue_ids(layout.items), settings.history == "training"
    counts = cooccurrence(layout.histories, ids, training_only)
    popularity = counts.diagonal().astype(np.float32)
    linear, factors = None, None
    if "ease" in settings.merge:
        known = np.sort(np.argsort(-popularity, kind="stable")[: settings.ease.items])
        known = known[popularity[known] > 0]
        task = ray.remote(_linear).options(num_cpus=EASE_CPUS)
        linear = known, ray.get(task.remote(counts[known][:, known], settings.ease.l2))
    if "als" in settings.merge:
        task = ray.remote(_factors).options(num_cpus=settings.als.cpus)
        files = list(buckets.bucket_files(layout.histories).values())
        factors = ray.get(task.remote(files, ids, training_only, settings.als))
    similar = item_item.neighbours(counts, settings.item_item.neighbours, settings.item_item.shrinkage)
    return Models(ids, popularity, similar, linear, factors, _contexts(settings, layout, ids, training_only))


def _contexts(
    settings: config.Recall, layout: Layout, ids: pa.Array, training_only: bool
) -> dict[str, context.Association]:
    first = next(iter(buckets.bucket_files(layout.histories).values()))
    if contexts.names_of(buckets.schema_of(first)):
        return context.learn(in_context(layout.histories, ids, training_only), len(ids), settings.context.prior)
    if "context" in settings.merge:
        raise UserError(
            f"recall.merge names 'context', and {layout.histories} tells of none; set data.context and run "
            "jobs/prepare.py again"
        )
    return {}


def _linear(counts: sparse.csr_matrix, l2: float) -> np.ndarray:
    try:
        return ease.weights(counts.toarray(order="F"), l2)
    except ValueError as error:
        raise UserError(f"recall.ease: {error} (recall.ease.l2)") from None


def _factors(files: list[str], ids: pa.Array, training_only: bool, settings: config.Als) -> np.ndarray:
    """Of the events in all these histories: one matrix, in one process."""
    events = [
        item_item.interaction_matrix(known_histories(buckets.read_parquet(uri), ids, training_only), len(ids))
        for uri in files
    ]
    return als.item_factors(sparse.vstack(events, format="csr"), settings, settings.cpus)
