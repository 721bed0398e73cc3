"""Items near to what a user had, by vectors of their content; nothing is learned."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from llmrec.ranker.ragged import Ragged
from llmrec.recall.item_item import interaction_matrix


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32[n, d]: of length 1, or 0 where they were 0."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, np.finfo(np.float32).tiny), np.float32)


def weighted(histories: Ragged, vectors: np.ndarray, decay: float) -> np.ndarray:
    """float32[users, d] of length 1, or 0: the sum of what each user had, an item weighing decay ** age.

    histories: item rows per user, oldest first; vectors: float32[n_items, d] of length 1 or 0, of which no other rows
    than those of the histories are read.
    """
    weights = interaction_matrix(histories, len(vectors), decay)
    rows, column = np.unique(weights.indices, return_inverse=True)
    known = sparse.csr_matrix((weights.data, column, weights.indptr), shape=(len(histories), len(rows)))
    return unit(known @ vectors[rows])
