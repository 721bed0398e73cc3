"""Methods that know a data set's knowledge graph, as `llmrec recall` does; they learn nothing of users."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from benchmarks.quality import protocol
from benchmarks.quality.datasets import Dataset
from benchmarks.quality.protocol import Rows
from benchmarks.quality.splits import split
from llmrec.errors import UserError
from llmrec.ranker.graph import incidence
from llmrec.ranker.ragged import Ragged
from llmrec.recall.graph import Entities, entity_vectors
from llmrec.recall.item_item import score
from llmrec.recall.neighbours import by_column, by_vectors, in_blocks, work_of
from llmrec.schema import ITEM, WEIGHT

VERSION = 1
WORK_AT_ONCE = 1 << 26  # multiplications whose products are held at once
OfHistories = Callable[[Ragged], np.ndarray]  # histories of m users -> float32[m, n_items]


@dataclass(frozen=True)
class Linked:
    """settings: see GRID."""

    name: str
    chosen: Mapping[str, Any]
    seeded: bool = False

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**self.chosen, "version": VERSION}

    def over(self, dataset: Dataset, name: str, seed: int) -> Rows:
        """See `fused.Member`.

        Raises:
            UserError: the data set has no graph.
        """
        scores = METHODS[self.name](_incidence(dataset), self.chosen)
        return protocol.of_rows(scores, split(dataset, name))

    def ranked(self, dataset: Dataset, name: str, seed: int) -> tuple[np.ndarray, float]:
        """See `methods.Method`."""
        return protocol.fitted_then_ranked(lambda: self.over(dataset, name, seed), split(dataset, name))


def _neighbours(graph: sparse.csr_matrix, chosen: Mapping[str, Any]) -> OfHistories:
    """As the source `graph`: items that share entities with what the user had."""
    vectors = entity_vectors(graph, chosen["max_items"])
    transposed = vectors.T.tocsr()
    blocks = in_blocks(work_of(vectors, transposed), WORK_AT_ONCE)
    near = by_column(
        [by_vectors(vectors, transposed, rows, chosen["neighbours"]) for rows in blocks], chosen["reach"]
    )  # fmt: skip
    return lambda histories: score(histories, near, chosen["decay"]).toarray()


def _closeness(graph: sparse.csr_matrix, chosen: Mapping[str, Any]) -> OfHistories:
    """As the part `closeness`; an item or a user without an edge has the least."""
    entities, n_items = Entities.of(graph, chosen["smoothing"]), graph.shape[0]

    def scores(histories: Ragged) -> np.ndarray:
        users = len(histories)
        items = Ragged(np.tile(np.arange(n_items, dtype=np.int32), users), np.arange(users + 1) * n_items)
        found = entities.closeness(histories, items, chosen["decay"], chosen["weight"]).reshape(users, n_items)
        least = np.nanmin(found, initial=0)
        return np.where(np.isnan(found), least, found)

    return scores


METHODS: Mapping[str, Callable[[sparse.csr_matrix, Mapping[str, Any]], OfHistories]] = {
    "graph": _neighbours, "closeness": _closeness,
}  # fmt: skip


def _incidence(dataset: Dataset) -> sparse.csr_matrix:
    if dataset.edges is None:
        raise UserError(f"{dataset.name}: no knowledge graph is known; kg.parquet beside its items holds one")
    edges = dataset.edges.append_column(WEIGHT, pa.array(np.ones(dataset.edges.num_rows)))
    return incidence(edges.combine_chunks(), dataset.items[ITEM].combine_chunks())
