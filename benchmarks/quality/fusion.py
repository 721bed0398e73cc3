"""Reciprocal-rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009) of scorers over the whole catalogue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from benchmarks.quality.protocol import Scorer, masked
from llmrec.ranker.ragged import Ragged

K = 60.0


def fused(scorers: Sequence[Scorer], weights: Sequence[float] | None = None, k: float = K) -> Scorer:
    """The sum over scorers of weight / (k + rank), ranks as in `reciprocal_ranks`."""
    shares = [1.0] * len(scorers) if weights is None else weights

    def score(histories: Ragged) -> np.ndarray:
        parts = [w * reciprocal_ranks(s(histories), histories, k) for s, w in zip(scorers, shares, strict=True)]
        return np.sum(parts, axis=0, dtype=np.float32)

    return score


def reciprocal_ranks(scores: np.ndarray, seen: Ragged, k: float = K) -> np.ndarray:
    """float32[m, n_items]: 1 / (k + rank) over the items not seen, from 1; ties have their mean rank."""
    ranks = rankdata(-masked(scores, seen, -np.inf), axis=1, method="average")
    return (1 / (k + ranks)).astype(np.float32)
