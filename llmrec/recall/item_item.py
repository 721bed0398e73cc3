"""Items by who had them: neighbours by cosine over co-occurrence, a user's recent items counting more; and factors."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import eigsh

from llmrec.ranker.ragged import Ragged, offsets_of, within
from llmrec.recall.neighbours import best_of_rows as best
from llmrec.recall.neighbours import by_column, similarities


def distinct(histories: Ragged, newest: int | None = None) -> tuple[Ragged, np.ndarray]:
    """Each user's different items, an item where its newest event is, oldest first; and where in the values they were.

    histories: item rows per user, oldest first; newest: so many of a user at most.
    """
    lengths = histories.lengths
    users = np.repeat(np.arange(len(histories)), lengths)
    width = int(histories.values.max(initial=0)) + 1
    # Later entries come first in the reversed keys, and of equal ones the first is found.
    _, first = np.unique((users * width + histories.values)[::-1], return_index=True)
    at = np.sort(len(users) - 1 - first)
    if newest is not None:
        many = np.bincount(users[at], minlength=len(histories))
        at = at[within(many) >= np.repeat(many - newest, many)]
    return Ragged(histories.values[at], offsets_of(np.bincount(users[at], minlength=len(histories)))), at


def heaviest(histories: Ragged, weights: np.ndarray) -> np.ndarray:
    """float32: of each item of `distinct`, in its order, the greatest weight of the user's events of it.

    histories: item rows per user; weights: float32[total], of each event.
    """
    users = np.repeat(np.arange(len(histories)), histories.lengths)
    keys = users * (int(histories.values.max(initial=0)) + 1) + histories.values
    order = np.lexsort((weights, keys))
    last = np.append(keys[order][1:] != keys[order][:-1], True)[: len(order)]  # of each pair, which is its greatest
    _, at = distinct(histories)
    return weights[order][last][np.searchsorted(keys[order][last], keys[at])].astype(np.float32)


def interaction_matrix(
    histories: Ragged, n_items: int, decay: float = 1.0, weights: np.ndarray | None = None
) -> sparse.csr_matrix:
    """float32[users, n_items]: decay ** age of each event, age 0 the newest; a repeated item keeps its newest event.

    histories: item rows per user, oldest first; weights: float32[total] of each event, if they do not all count 1: an
    item counts decay ** age * the greatest of its weights.
    """
    lengths = histories.lengths
    items, at = distinct(histories)
    age = (np.repeat(lengths - 1, lengths) - within(lengths))[at]
    data = np.power(np.float32(decay), age.astype(np.float32))
    if weights is not None:
        data *= heaviest(histories, weights)
    found = sparse.csr_matrix((data, items.values, items.offsets), shape=(len(histories), n_items))
    found.sort_indices()
    return found


def cooccurrence(histories: Ragged, n_items: int, shared: bool = False) -> sparse.csr_matrix:
    """float32[n_items, n_items]: users who had both items, on the diagonal users who had the one.

    shared: a user counts 1 / how many items he had, so that long histories do not outweigh all others. Adds up over any
    partition of the users.
    """
    x = interaction_matrix(histories, n_items)
    if not shared:
        return (x.T @ x).tocsr()
    share = 1 / np.maximum(np.diff(x.indptr), 1).astype(np.float32)
    return (x.T @ sparse.diags(share) @ x).tocsr()


def factors(shared: sparse.csr_matrix, users: np.ndarray, dimensions: int) -> np.ndarray:
    """float32[n_items, d]: items whose products are near where the same users had them, zeros for items of no user.

    The largest right singular vectors, times their values, of the matrix of users by items whose entries are
    1 / sqrt(the user's items * the item's users); had from its Gram matrix. Those of the same matrix unscaled are
    PureSVD's (Cremonesi et al., 2010). d is at most `dimensions`, less for few items. The same input gives the same
    bytes on a machine.

    shared: of `cooccurrence`, symmetric; users: float[n_items], how many had each item.
    """
    there = np.flatnonzero(users > 0)
    d = min(dimensions, len(there) - 1)  # as many as the solver gives
    if d < 1:
        return np.zeros((len(users), 0), np.float32)
    scale = sparse.diags(np.asarray(users, np.float64)[there] ** -0.5)
    gram = scale @ shared[there][:, there] @ scale
    values, vectors = eigsh(gram, k=d, v0=np.random.default_rng(0).standard_normal(len(there)))
    order = np.argsort(-values, kind="stable")
    vectors = vectors[:, order] * np.sqrt(values[order].clip(min=0))
    vectors *= np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(d)])
    found = np.zeros((len(users), d), np.float32)
    found[there] = vectors
    return found


def neighbours(cooccurrence: sparse.csr_matrix, count: int, shrinkage: float) -> sparse.csr_matrix:
    """float32[n_items, n_items]: column j holds item j's `count` most similar items, the rest is zero.

    similarity(i, j) = co(i, j) / (sqrt(n_i * n_j) + shrinkage), co the users who had both, n_i those who had i.
    A candidate keeps its own nearest items, not the nearest of what the user had: the other way round, popular
    candidates crowd out the rest. Ties go to the smaller item row.
    """
    found = similarities(cooccurrence, cooccurrence.diagonal(), 0, shrinkage)
    return by_column([best(found, count)], cooccurrence.shape[0])


def score(
    histories: Ragged, similar: sparse.csr_matrix, decay: float, weights: np.ndarray | None = None
) -> sparse.csr_matrix:
    """float32[users, n_items]: sum over a user's items of decay ** age * similarity, times the item's weight if events
    have any (float32[total], see `interaction_matrix`)."""
    return (interaction_matrix(histories, similar.shape[0], decay, weights) @ similar).tocsr()
