"""A score that costs next to nothing: a whole number of a user and an item, the same in numpy, polars and DuckDB.

It is exact as a float32, and a few of a user's candidates tie. For peers that rank by one number, a key is the score,
best first, above the item: (VALUES - 1 - score) * FACTOR + item.
"""

from __future__ import annotations

import numpy as np

ITEM_FACTOR, USER_FACTOR, VALUES = 40_503, 30_011, 1 << 16
FACTOR = 1 << 32


def score(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """float32[n] from int64[n] ids."""
    return ((items * ITEM_FACTOR + users * USER_FACTOR) & VALUES - 1).astype(np.float32)
