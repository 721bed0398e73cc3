"""EASE: a linear item-item model in closed form (Steck, "Embarrassingly shallow autoencoders", WWW 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.linalg import lapack

from benchmarks.quality.protocol import Scorer
from llmrec.ranker.ragged import Ragged
from llmrec.recall.item_item import interaction_matrix

VERSION = 1


def fit(histories: Ragged, n_items: int, settings: Mapping[str, Any], seed: int) -> Scorer:
    """settings: l2, the weight of the squared norm. Takes 4 * n_items² bytes."""
    found = weights(histories, n_items, settings["l2"])
    return lambda of: interaction_matrix(of, n_items) @ found


def weights(histories: Ragged, n_items: int, l2: float) -> np.ndarray:
    """float32[n_items, n_items]: B with diagonal 0 that minimises |X - XB|² + l2 |B|²; column j scores item j."""
    x = interaction_matrix(histories, n_items)
    gram = (x.T @ x).toarray(order="F")
    gram[np.diag_indices(n_items)] += l2
    factor, failed = lapack.spotrf(gram, lower=True, clean=False, overwrite_a=True)
    inverse, failed_too = lapack.spotri(factor, lower=True, overwrite_c=True)
    if failed or failed_too:
        raise ValueError(f"EASE: X'X + {l2} I is not positive definite in float32; take a larger l2")
    for column in range(n_items):  # the upper triangle from the lower, without a copy
        inverse[column, column + 1 :] = inverse[column + 1 :, column]
    found = inverse.T  # the same, since symmetric, but row after row
    found /= -np.diag(found).copy()
    found[np.diag_indices(n_items)] = 0
    return found
