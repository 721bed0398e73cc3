"""Items near to what a user had, by vectors of their content; nothing is learned."""

from __future__ import annotations

import numpy as np


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32[n, d]: of length 1, or 0 where they were 0."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, np.finfo(np.float32).tiny), np.float32)


def products(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """float32[m, n_items] of float32[m, d] and float32[n_items, d]; -inf where either is 0, and so unknown."""
    found: np.ndarray = users @ items.T
    found[~users.any(axis=1)] = -np.inf
    found[:, ~items.any(axis=1)] = -np.inf
    return found
