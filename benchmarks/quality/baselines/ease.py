"""EASE, as `llmrec recall` has it, over all items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.quality.protocol import Scorer
from llmrec.ranker.ragged import Ragged
from llmrec.recall import ease
from llmrec.recall.item_item import cooccurrence, interaction_matrix

VERSION = 1


def fit(histories: Ragged, n_items: int, settings: Mapping[str, Any], seed: int) -> Scorer:
    """settings: l2, the weight of the squared norm. Takes 4 * n_items² bytes."""
    found = ease.weights(cooccurrence(histories, n_items).toarray(order="F"), settings["l2"])
    return lambda of: interaction_matrix(of, n_items) @ found
