"""Items whose texts are nearest to those that the user had, by a sentence encoder; nothing is learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.quality.protocol import Scorer
from llmrec.ranker.ragged import Ragged
from llmrec.recall.item_item import interaction_matrix

VERSION = 1


def fit(vectors: np.ndarray, histories: Ragged, n_items: int, settings: Mapping[str, Any], seed: int) -> Scorer:
    """vectors: float32[n_items, any], of length 1, or 0 for an item without a title; settings: decay of the weights in
    the mean over a user's items."""
    return lambda of: (interaction_matrix(of, n_items, settings["decay"]) @ vectors) @ vectors.T
