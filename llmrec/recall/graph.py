"""Items by what a knowledge graph says of them: neighbours that share entities, and how near a user's entities lie.

An entity is a (relation, tail): "teaches, statistics" is another than "needs, statistics".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from llmrec.ranker.ragged import Ragged, offsets_of
from llmrec.recall.item_item import interaction_matrix

PAIRS_AT_ONCE = 1 << 20


def entity_vectors(incidence: sparse.csr_matrix, most: int) -> sparse.csr_matrix:
    """float32[n_items, entities] of length 1, or 0: each edge's weight times log(items with edges / items with that
    entity), so that what few items share counts most; entities of more than `most` items are left out.

    incidence: float64[n_items, entities], an edge's weight.
    """
    having = np.bincount(incidence.indices, minlength=incidence.shape[1])
    linked = int((np.diff(incidence.indptr) > 0).sum())
    rarity = np.where((having > 0) & (having <= most), np.log(linked / np.maximum(having, 1)), 0.0)
    vectors = (incidence @ sparse.diags(rarity)).tocsr()
    vectors.eliminate_zeros()
    length = np.sqrt(np.asarray(vectors.multiply(vectors).sum(axis=1)).ravel())
    scale = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)
    return (sparse.diags(scale) @ vectors).tocsr().astype(np.float32)


@dataclass(frozen=True)
class Entities:
    """What items' edges say of entities, smoothed: item i's distribution gives an entity e

        r(e) = (weight(i, e) + smoothing * share(e)) / (total(i) + smoothing),

    share(e) being e's part of the weight of all edges: as if each item had `smoothing` edges more, of what the
    catalogue has (Dirichlet smoothing). So no entity has probability 0.

    weights: float64[n_items, entities]; gains: log r(e) over that of an item without e and of the same total, where an
    item has e, stored as the weights are; rest: float64[entities], log(smoothing * share(e)); scale: float64[n_items],
    log(total(i) + smoothing).
    """

    weights: sparse.csr_matrix
    gains: sparse.csr_matrix
    rest: np.ndarray
    scale: np.ndarray

    @staticmethod
    def of(incidence: sparse.csr_matrix, smoothing: float) -> Entities:
        """incidence: float64[n_items, entities], edges' weights above 0, none without an item."""
        share = np.asarray(incidence.sum(axis=0)).ravel() / incidence.sum()
        total = np.asarray(incidence.sum(axis=1)).ravel()
        gains = incidence.copy()
        gains.data = np.log1p(incidence.data / (smoothing * share[incidence.indices]))
        return Entities(incidence, gains, np.log(smoothing * share), np.log(total + smoothing))

    def closeness(self, histories: Ragged, asked: Ragged, decay: float, weight: float) -> np.ndarray:
        """float32[total]: log sigmoid(-weight * KL(q || r)) of each user and item asked for, NaN where either has no
        edge. The nearer, the larger, and below 0.

        q is the user's distribution over entities, that of his items' weights (each item's brought to sum 1) by
        decay ** age; KL = sum of q log q - q log r, which needs no entity that the user lacks.
        """
        total = np.diff(self.weights.indptr)
        each = np.asarray(self.weights.sum(axis=1)).ravel()
        own = sparse.diags(np.divide(1.0, each, out=np.zeros_like(each), where=each > 0)) @ self.weights
        q = (interaction_matrix(histories, self.weights.shape[0], decay).astype(np.float64) @ own).tocsr()
        sums = np.asarray(q.sum(axis=1)).ravel()
        q = (sparse.diags(np.divide(1.0, sums, out=np.zeros_like(sums), where=sums > 0)) @ q).tocsr()
        q.sort_indices()
        mine = sparse.csr_matrix((q.data * (np.log(q.data) - self.rest[q.indices]), q.indices, q.indptr), q.shape)
        plain = np.asarray(mine.sum(axis=1)).ravel()  # with an item of none of the user's entities, but for its scale
        user = np.repeat(np.arange(len(asked)), asked.lengths)
        divergence = plain[user] + self.scale[asked.values] - self._shared(q, user, asked.values)
        known = (sums[user] > 0) & (total[asked.values] > 0)
        return np.where(known, -np.logaddexp(0, weight * np.maximum(divergence, 0)), np.nan).astype(np.float32)

    def _shared(self, q: sparse.csr_matrix, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """float64[pairs]: sum of q(e) * gain(i, e) over what a user and an item share."""
        entities = q.shape[1]
        keys = np.repeat(np.arange(q.shape[0]), np.diff(q.indptr)) * entities + q.indices
        gains = Ragged(self.gains.indices, self.gains.indptr.astype(np.int64))
        found = np.zeros(len(user))
        ends = np.cumsum(gains.lengths[item])
        for pairs in np.split(np.arange(len(user)), np.flatnonzero(np.diff(ends // PAIRS_AT_ONCE)) + 1):
            if not len(pairs) or not len(keys):
                continue
            lengths = gains.lengths[item[pairs]]
            of_pair = np.repeat(np.arange(len(pairs)), lengths)
            at = np.arange(lengths.sum()) - np.repeat(offsets_of(lengths)[:-1] - gains.offsets[item[pairs]], lengths)
            wanted = user[pairs][of_pair] * entities + gains.values[at]
            place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
            value = np.where(keys[place] == wanted, q.data[place] * self.gains.data[at], 0)
            found[pairs] = np.bincount(of_pair, value, len(pairs))
        return found
