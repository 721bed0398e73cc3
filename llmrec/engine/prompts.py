"""The prepared tables as tokens: the catalogue, and how a user's trunk opens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from transformers import PreTrainedTokenizerBase

from llmrec import assets, storage
from llmrec.config import Items, Prompt
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.ranker import edge_texts
from llmrec.ranker.card import RANKER_FILE, read_card
from llmrec.ranker.contexts import Contexts
from llmrec.ranker.edge_texts import EDGES, with_edges
from llmrec.ranker.item_encoder import ItemEncoder
from llmrec.ranker.item_features import ItemFeatures, check_columns, columns_of, read_features
from llmrec.ranker.model import Ranker
from llmrec.ranker.packing import Request
from llmrec.ranker.prompts import (
    Catalogue,
    fitting,
    scoring_request,
    tokenise_catalogue,
    trunk_opening,
    trunk_openings,
)
from llmrec.ranker.templates import fill, placeholders
from llmrec.schema import ITEM, TEXT, USER
from llmrec.tables import buckets
from llmrec.tables.augmentations import AUGMENTATION, INTERESTS, interests_read, item_texts_read, with_augmentation
from llmrec.tables.embeddings import open_embeddings


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

    def newest(self, history: np.ndarray) -> np.ndarray:
        """int64[at most max_history]: the events of a history that the trunk holds."""
        return history[-self.max_history :].astype(np.int64)

    def request(
        self, opening: np.ndarray, history: np.ndarray, candidates: np.ndarray, context: Contexts | None = None
    ) -> Request:
        """A user to score: the tokens that open his trunk, his history (oldest first, cut to its newest events) and his
        candidates, both int[any] catalogue rows, and the one context that he is asked about in, if any is read.

        Raises:
            UserError: that takes more positions than the model has.
        """
        rows = candidates.astype(np.int64)
        request = scoring_request(opening, self.catalogue, self.newest(history), rows, context)
        return fitting(request, self.positions)

    def prefix(self, user: Any) -> np.ndarray:
        return self.of_user.get(user, self.plain)


def tokenise_items(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, layout: Layout) -> Prompts:
    """The catalogue in a ranker's own templates, as text; see `bind`."""
    items = told(buckets.read_parquet(layout.items), prompt, layout)
    catalogue = tokenise_catalogue(items, ITEM, prompt, tokenizer)
    return Prompts(catalogue, trunk_opening(prompt, tokenizer), prompt.max_history)


def told_columns(template: str) -> list[str]:
    """The placeholders in prompt.item that stand for what other tables tell of an item."""
    return [*edge_texts.wanted(template), *([AUGMENTATION] if item_texts_read(template) else [])]


def told(items: pa.Table, prompt: Prompt, layout: Layout) -> pa.Table:
    """The items with the columns of text that `told_columns` names, if there are any.

    Raises:
        UserError: the other table is not there, or the items have a column of that name beside it.
    """
    return _told_augmentation(_told_edges(items, prompt, layout), prompt, layout)


def own_columns(prompt: Prompt, layout: Layout) -> list[str]:
    """Columns of the items table that prompt.item names.

    Raises:
        UserError: it names one that the table lacks and no other table tells.
    """
    there = buckets.schema_of(layout.items)
    checked, of_others = there, [name for name in told_columns(prompt.item) if name not in there.names]
    for name in of_others:
        checked = checked.append(pa.field(name, pa.string()))
    fill(prompt.item, checked.empty_table(), "item")
    return [name for name in dict.fromkeys(placeholders(prompt.item)) if name not in of_others]


def item_texts(prompt: Prompt, layout: Layout, columns: Sequence[str]) -> pa.Table:
    """item_id, ascending, columns of the items table, and `text`: what prompt.item says of each item, nothing being
    written of any yet.

    Raises:
        UserError: prompt.item or `columns` names a column that the table lacks.
    """
    wanted = list(dict.fromkeys((ITEM, *columns, *own_columns(prompt, layout))))
    items = _told_edges(buckets.read_parquet(layout.items, wanted), prompt, layout)
    if item_texts_read(prompt.item) and AUGMENTATION not in items.column_names:
        items = items.append_column(AUGMENTATION, pa.array([""] * items.num_rows, pa.string()))
    texts = pa.array(fill(prompt.item, items, "item"), pa.string())
    items = items.select(list(dict.fromkeys((ITEM, *columns)))).append_column(TEXT, texts)
    return items.take(pa.compute.sort_indices(items, sort_keys=[(ITEM, "ascending")])).combine_chunks()


def _told_augmentation(items: pa.Table, prompt: Prompt, layout: Layout) -> pa.Table:
    if not item_texts_read(prompt.item):
        return items
    own, written = AUGMENTATION in items.column_names, storage.exists(layout.item_augmentations)
    if own and written:
        raise UserError(
            f"prompt.item uses '{{{AUGMENTATION}}}': the items have a column of that name, and augment has written "
            "texts too; rename the column"
        )
    if own:
        return items
    if not written:
        raise UserError(
            f"prompt.item uses '{{{AUGMENTATION}}}', and {layout.item_augmentations} is not there; set "
            "augment.items.min_characters and run jobs/augment.py"
        )
    return with_augmentation(items, buckets.read_parquet(layout.item_augmentations))


def _told_edges(items: pa.Table, prompt: Prompt, layout: Layout) -> pa.Table:
    names = edge_texts.wanted(prompt.item)
    if not names:
        return items
    own, graph = EDGES in items.column_names, storage.exists(layout.edges)
    if own and graph:
        raise UserError(
            f"prompt.item uses '{{{names[0]}}}': the items have a column '{EDGES}', and there is a graph of edges too; "
            "rename the column"
        )
    if own and names == [EDGES]:
        return items
    if not graph:
        raise UserError(
            f"prompt.item uses '{{{names[0]}}}', and {layout.edges} is not there; set data.edges and run "
            "jobs/prepare.py"
        )
    return with_edges(items, prompt.item, buckets.read_parquet(layout.edges), prompt.max_edges)


def bind(prompts: Prompts, ranker: Ranker, layout: Layout, trained: np.ndarray | None = None) -> Prompts:
    """The prompts in the form that this ranker packs, the ranker made ready for their items.

    trained: see `Ranker.bind`.

    Raises:
        UserError: what is known of the items is not what the ranker was trained with.
    """
    features = None if ranker.card.items == "text" else load_features(ranker.card.parts, prompts.catalogue.ids, layout)
    catalogue = ranker.bind(prompts.catalogue, features, trained)
    return replace(prompts, catalogue=catalogue, positions=ranker.positions)


def check_items(directory: str | Path, layout: Layout) -> None:
    """Can a saved ranker of items as vectors be bound to the catalogue?

    Asked before actors are made, since of what fails in their making Ray gives a text only.

    Raises:
        UserError: what is known of the items is not what the ranker was trained with.
    """
    if (Path(directory) / RANKER_FILE).exists() and (card := read_card(directory)).items == "token":
        features = load_features(card.parts, buckets.catalogue_ids(layout.items), layout)
        ItemEncoder.from_pretrained(Path(directory)).bind(features)


def load_features(parts: Items, ids: pa.Array, layout: Layout) -> ItemFeatures:
    """What is known of the items beside their tokens: what embed computed, memory-mapped, and columns of the table.

    Raises:
        UserError: embed has not run for this catalogue, or a column is missing or of the wrong type.
    """
    check_columns(buckets.schema_of(layout.items).names, parts)
    items = buckets.read_parquet(layout.items, list(dict.fromkeys((ITEM, *columns_of(parts))))).sort_by(ITEM)
    made = open_embeddings(layout.embeddings, assets.cache_directory() / "embeddings")
    if made is None:
        if parts.encoder or parts.images:
            raise UserError(f"{layout.embeddings}: no item embeddings; run jobs/embed.py first")
        return read_features(ids, items, parts, {}, {})
    if not made.ids.equals(ids):
        raise UserError(f"{layout.embeddings}: made for other items than {layout.items} holds; run jobs/embed.py again")
    asked = {"text": parts.encoder, "image": parts.images}
    wanted = [name for name in made.parts if asked.get(name, True)]
    if parts.images and "image" not in wanted:
        raise UserError(f"{layout.embeddings}: no image part, which items.images asks for; run jobs/embed.py again")
    vectors, present = ({name: found[name] for name in wanted} for found in (made.parts, made.present))
    revisions = {name: made.revisions[name] for name in wanted if name in asked}
    return read_features(ids, items, parts, vectors, present, revisions)


def opening_tokens(
    texts: pa.Array | None, count: int, plain: np.ndarray, prompt: Prompt, tokenizer: PreTrainedTokenizerBase
) -> list[np.ndarray]:
    """int32[any] tokens that open each of `count` users' trunks.

    texts: string[count], what is said of each, null where nothing is known of him; None if nothing is of anybody.
    """
    if texts is None:
        return [plain] * count
    left = iter(trunk_openings(texts.drop_null().to_pylist(), prompt, tokenizer))
    return [next(left) if known else plain for known in texts.is_valid().to_pylist()]


def user_files(prompt: Prompt, layout: Layout) -> tuple[dict[int, str], dict[int, str]]:
    """Files of users' attributes and of their interests by bucket, none where prompt.user does not read them.

    Raises:
        UserError: it reads interests, and augment has written none, or the users have a column of that name beside.
    """
    attributes = buckets.bucket_files(layout.users) if prompt.user and storage.exists(layout.users) else {}
    if not interests_read(prompt.user):
        return attributes, {}
    own = _own_interests(layout)
    written = storage.exists(layout.user_augmentations)
    if own and written:
        raise UserError(
            f"prompt.user uses '{{{INTERESTS}}}': the users have a column of that name, and augment has written texts "
            "too; rename the column"
        )
    if own:
        return attributes, {}
    if not written:
        raise UserError(
            f"prompt.user uses '{{{INTERESTS}}}', and {layout.user_augmentations} is not there; set "
            "augment.users.history and run jobs/augment.py"
        )
    return attributes, buckets.bucket_files(layout.user_augmentations)


def _own_interests(layout: Layout) -> bool:
    """Whether the users have a column of that name."""
    files = list(buckets.bucket_files(layout.users).values()) if storage.exists(layout.users) else []
    return any(INTERESTS in buckets.schema_of(uri).names for uri in files[:1])


def check_trainable(prompt: Prompt, layout: Layout) -> None:
    """
    Raises:
        UserError: prompt.user reads what augment wrote of users, which tells of the events that training asks about.
    """
    if interests_read(prompt.user) and not _own_interests(layout):
        raise UserError(
            f"prompt.user uses '{{{INTERESTS}}}', which tells of the events that training asks about; leave it out, or "
            "score an untouched model (score.model = base)"
        )


def load_prompts(ranker: Ranker, layout: Layout, trained: np.ndarray | None = None) -> Prompts:
    """Both of the above and the openings of all users, by the ranker's own tokenizer and templates."""
    prompt, of_user = ranker.card.prompt, {}
    if prompt.user and storage.exists(layout.users):
        users = buckets.read_parquet(layout.users)
        opened = trunk_openings(fill(prompt.user, users, "user"), prompt, ranker.tokenizer)
        of_user = dict(zip(users[USER].to_pylist(), opened, strict=True))
    return replace(bind(tokenise_items(ranker.tokenizer, prompt, layout), ranker, layout, trained), of_user=of_user)
