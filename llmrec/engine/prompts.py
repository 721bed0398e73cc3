"""The prepared tables as tokens: the catalogue, and how a user's trunk opens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from llmrec import storage
from llmrec.config import Prompt
from llmrec.layout import Layout
from llmrec.ranker.model import Ranker
from llmrec.ranker.prompts import Catalogue, tokenise_catalogue, trunk_opening, trunk_openings
from llmrec.ranker.templates import fill
from llmrec.schema import ITEM, USER
from llmrec.tables import buckets


@dataclass(frozen=True)
class Prompts:
    """The catalogue and how trunks open.

    plain: of a user without attributes; of_user: of those who have some, where they are all held (training does;
    scoring takes them bucket by bucket). positions: how many a request may take, None for any number.
    """

    catalogue: Catalogue
    plain: np.ndarray
    max_history: int
    positions: int | None = None
    of_user: Mapping[Any, np.ndarray] = field(default_factory=dict)

    def prefix(self, user: Any) -> np.ndarray:
        return self.of_user.get(user, self.plain)


def tokenise_items(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, layout: Layout) -> Prompts:
    """The catalogue in a ranker's own templates, as text; see `bind`."""
    catalogue = tokenise_catalogue(buckets.read_parquet(layout.items), ITEM, prompt, tokenizer)
    return Prompts(catalogue, trunk_opening(prompt, tokenizer), prompt.max_history)


def bind(prompts: Prompts, ranker: Ranker) -> Prompts:
    """The prompts in the form that this ranker packs, the ranker made ready to score their items."""
    return replace(prompts, catalogue=ranker.bind(prompts.catalogue), positions=ranker.positions)


def load_prompts(ranker: Ranker, layout: Layout) -> Prompts:
    """Both of the above and the openings of all users, by the ranker's own tokenizer and templates."""
    prompt, of_user = ranker.card.prompt, {}
    if prompt.user and storage.exists(layout.users):
        users = buckets.read_parquet(layout.users)
        opened = trunk_openings(fill(prompt.user, users, "user"), prompt, ranker.tokenizer)
        of_user = dict(zip(users[USER].to_pylist(), opened, strict=True))
    return replace(bind(tokenise_items(ranker.tokenizer, prompt, layout), ranker), of_user=of_user)
