"""EASE: a linear item-item model in closed form (Steck, "Embarrassingly shallow autoencoders", WWW 2019)."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.linalg import lapack


def weights(counts: np.ndarray, l2: float) -> np.ndarray:
    """float32[m, m]: B with diagonal 0 that minimises |X - XB|² + l2 |B|², column j for item j (equation 8).

    counts: float32[m, m], X'X: how many users had both items; overwritten if it is in Fortran's order.

    Raises:
        ValueError: l2 is too small for single precision.
    """
    m = len(counts)
    counts[np.diag_indices(m)] += l2
    factor, failed = lapack.spotrf(counts, lower=True, clean=False, overwrite_a=True)
    inverse, failed_too = lapack.spotri(factor, lower=True, overwrite_c=True)
    if failed or failed_too:
        raise ValueError(f"X'X + {l2} I is not positive definite in float32; take a larger l2")
    for column in range(m):  # the upper triangle from the lower, without a copy
        inverse[column, column + 1 :] = inverse[column + 1 :, column]
    found: np.ndarray = inverse.T  # the same, since symmetric, but row after row
    found /= -np.diag(found).copy()
    found[np.diag_indices(m)] = 0
    return found


def counts(events: sparse.csr_matrix, rows: np.ndarray) -> np.ndarray:
    """float32[m, m], in Fortran's order: how many users had both of these items. events: float32[users, n_items], 1
    where a user had an item; rows: int64[m]."""
    known = events[:, rows]
    found: np.ndarray = (known.T @ known).toarray(order="F")
    return found


def score(events: sparse.csr_matrix, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float32[users, m] of the items that the model knows, -inf for all of a user who had none of them.

    events: float32[users, n_items]; rows: int64[m], the items of the weights, float32[m, m].
    """
    known = events[:, rows]
    found: np.ndarray = known @ weights
    found[np.diff(known.indptr) == 0] = -np.inf
    return found
