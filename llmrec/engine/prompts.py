"""The prepared tables as tokens: the catalogue, and how each user's trunk opens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from llmrec import storage
from llmrec.config import Prompt
from llmrec.layout import Layout
from llmrec.ranker.model import Ranker
from llmrec.ranker.prompts import Catalogue, tokenise_catalogue, trunk_prefixes
from llmrec.schema import ITEM, USER
from llmrec.tables import buckets


@dataclass(frozen=True)
class Prompts:
    """The catalogue and how trunks open. positions: how many a request may take, None for any number."""

    catalogue: Catalogue
    plain: np.ndarray
    of_user: Mapping[Any, np.ndarray]
    max_history: int
    positions: int | None = None

    def prefix(self, user: Any) -> np.ndarray:
        return self.of_user.get(user, self.plain)


def tokenise_tables(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, layout: Layout) -> Prompts:
    """The catalogue and the users' attributes in a ranker's own templates, as text; see `bind`."""
    catalogue = tokenise_catalogue(buckets.read_parquet(layout.items), ITEM, prompt, tokenizer)
    users = buckets.read_parquet(layout.users) if prompt.user and storage.exists(layout.users) else None
    plain, of_user = trunk_prefixes(users, USER, prompt, tokenizer)
    return Prompts(catalogue, plain, of_user, prompt.max_history)


def bind(prompts: Prompts, ranker: Ranker) -> Prompts:
    """The prompts in the form that this ranker packs, the ranker made ready to score their items."""
    return replace(prompts, catalogue=ranker.bind(prompts.catalogue), positions=ranker.positions)


def load_prompts(ranker: Ranker, layout: Layout) -> Prompts:
    """Both of the above, by the ranker's own tokenizer and templates."""
    return bind(tokenise_tables(ranker.tokenizer, ranker.card.prompt, layout), ranker)
