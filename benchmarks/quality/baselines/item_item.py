"""Item-item neighbours with time decay, as `llmrec recall` has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.quality.protocol import Scorer
from llmrec.ranker.ragged import Ragged
from llmrec.recall import item_item

VERSION = 1


def fit(histories: Ragged, n_items: int, settings: Mapping[str, Any], seed: int) -> Scorer:
    """settings: neighbours (kept of each candidate), shrinkage, decay (weight lost per event of age)."""
    similar = item_item.neighbours(
        item_item.cooccurrence(histories, n_items), settings["neighbours"], settings["shrinkage"]
    )
    return lambda of: item_item.score(of, similar, settings["decay"]).toarray()
