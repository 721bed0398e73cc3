"""iALS by `implicit`: weighted matrix factorisation (Hu, Koren and Volinsky, ICDM 2008); users are folded in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.quality.protocol import Scorer
from llmrec.ranker.ragged import Ragged
from llmrec.recall.item_item import interaction_matrix

VERSION = 1


def fit(histories: Ragged, n_items: int, settings: Mapping[str, Any], seed: int) -> Scorer:
    """settings: factors, regularization, alpha (confidence in an event, 1 in its absence), iterations."""
    from implicit.cpu.als import AlternatingLeastSquares

    with threadpool_limits(1, "blas"):  # `implicit` has threads of its own, and is slow on top of others
        model = AlternatingLeastSquares(
            settings["factors"], settings["regularization"], settings["alpha"],
            iterations=settings["iterations"], random_state=seed, num_threads=1,
        )  # fmt: skip
        model.fit(interaction_matrix(histories, n_items), show_progress=False)

    def score(of: Ragged) -> np.ndarray:
        with threadpool_limits(1, "blas"):
            users = model.recalculate_user(np.arange(len(of)), interaction_matrix(of, n_items))
        return users @ model.item_factors.T

    return score
