"""iALS by `implicit`: weighted matrix factorisation (Hu, Koren and Volinsky, ICDM 2008); users are folded in."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from llmrec.config import Als


def confidences(weights: sparse.csr_matrix, alpha: float) -> sparse.csr_matrix:
    """Events that `implicit`, which multiplies them by alpha, takes for a confidence of 1 + alpha * weight (Hu et al.,
    section 4), so that a light event, too, counts more than none. weights: float32[users, n_items]."""
    found = weights.copy()
    found.data += np.float32(1 / alpha)
    return found


def item_factors(events: sparse.csr_matrix, settings: Als, threads: int = 1) -> np.ndarray:
    """float32[n_items, factors]. events: float32[users, n_items], 1 where a user had an item, or of `confidences`."""
    with threadpool_limits(1, "blas"):  # `implicit` has threads of its own, and is slow on top of others
        model = _model(settings, threads)
        model.fit(events, show_progress=False)
    return np.asarray(model.item_factors, np.float32)


def user_factors(factors: np.ndarray, events: sparse.csr_matrix, settings: Als) -> np.ndarray:
    """float32[users, factors] of users whom training may not have seen, by their events; 0 for one without any."""
    with threadpool_limits(1, "blas"):
        model = _model(settings, 1)
        # Shared memory is read-only, which `implicit` refuses.
        model.item_factors = np.require(factors, requirements="W")
        found = model.recalculate_user(np.arange(events.shape[0]), events)
    found[np.diff(events.indptr) == 0] = 0
    return np.asarray(found, np.float32)


def _model(settings: Als, threads: int) -> Any:
    from implicit.cpu.als import AlternatingLeastSquares

    return AlternatingLeastSquares(
        settings.factors, settings.regularization, settings.alpha, iterations=settings.iterations,
        random_state=settings.seed, num_threads=threads,
    )  # fmt: skip
