"""Popularity: how many events an item has had."""

from __future__ import annotations

import numpy as np

from llmrec.ranker.ragged import Ragged


def count(histories: Ragged, n_items: int) -> np.ndarray:
    """float32[n_items]: events of each item over all histories."""
    return np.bincount(histories.values, minlength=n_items).astype(np.float32)
