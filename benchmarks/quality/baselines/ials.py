"""iALS, as `llmrec recall` has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.quality.protocol import Scorer
from llmrec.config import Als
from llmrec.ranker.ragged import Ragged
from llmrec.recall import als
from llmrec.recall.item_item import interaction_matrix

VERSION = 1
SETTINGS = ("factors", "regularization", "alpha", "iterations")


def fit(histories: Ragged, n_items: int, settings: Mapping[str, Any], seed: int) -> Scorer:
    """settings: factors, regularization, alpha (confidence in an event, 1 in its absence), iterations."""
    wanted = Als(**{name: settings[name] for name in SETTINGS}, seed=seed)
    factors = als.item_factors(interaction_matrix(histories, n_items), wanted)
    return lambda of: als.user_factors(factors, interaction_matrix(of, n_items), wanted) @ factors.T
