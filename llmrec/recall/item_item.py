"""Item-item neighbours: cosine over co-occurrence, a user's recent items counting more."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from llmrec.ranker.ragged import Ragged, within


def interaction_matrix(histories: Ragged, n_items: int, decay: float = 1.0) -> sparse.csr_matrix:
    """float32[users, n_items]: decay ** age of each event, age 0 the newest; a repeated item keeps its newest event.

    histories: item rows per user, oldest first.
    """
    lengths = histories.lengths
    age = np.repeat(lengths - 1, lengths) - within(lengths)
    users = np.repeat(np.arange(len(histories)), lengths)
    # Later entries win on assignment, and the newest event of an item comes last in a history.
    keys = users * n_items + histories.values
    reversed_keys = keys[::-1]
    _, first = np.unique(reversed_keys, return_index=True)
    keep = len(keys) - 1 - first
    weights = np.power(np.float32(decay), age[keep].astype(np.float32))
    return sparse.csr_matrix((weights, (users[keep], histories.values[keep])), shape=(len(histories), n_items))


def cooccurrence(histories: Ragged, n_items: int) -> sparse.csr_matrix:
    """float32[n_items, n_items]: users who had both items, on the diagonal users who had the one.

    Adds up over any partition of the users.
    """
    x = interaction_matrix(histories, n_items)
    return (x.T @ x).tocsr()


def neighbours(cooccurrence: sparse.csr_matrix, count: int, shrinkage: float) -> sparse.csr_matrix:
    """float32[n_items, n_items]: column j holds item j's `count` most similar items, the rest is zero.

    similarity(i, j) = co(i, j) / (sqrt(n_i * n_j) + shrinkage), co the users who had both, n_i those who had i.
    A candidate keeps its own nearest items, not the nearest of what the user had: the other way round, popular
    candidates crowd out the rest. Ties go to the smaller item row.
    """
    co = cooccurrence.copy()
    popularity = np.sqrt(co.diagonal())
    co.setdiag(0)
    co.eliminate_zeros()
    co.sort_indices()
    target = np.repeat(np.arange(co.shape[0]), np.diff(co.indptr))
    similarity = (co.data / (popularity[target] * popularity[co.indices] + shrinkage)).astype(np.float32)
    order = np.lexsort((co.indices, -similarity, target))
    kept = order[within(np.diff(co.indptr)) < count]
    return sparse.csr_matrix((similarity[kept], (co.indices[kept], target[kept])), shape=co.shape)


def score(histories: Ragged, similar: sparse.csr_matrix, decay: float) -> np.ndarray:
    """float32[users, n_items]: sum over a user's items of decay ** age * similarity."""
    weights = interaction_matrix(histories, similar.shape[0], decay)
    return np.asarray((weights @ similar).todense(), dtype=np.float32)
