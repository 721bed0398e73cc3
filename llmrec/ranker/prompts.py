"""Users and items as token sequences: a history is a trunk, an item is a branch.

An item's tokens are the same in a history and as a candidate of a linear head, so that an event of the history can be
read as a trained decision and as a scored candidate alike. Items are tokenised once per catalogue, never per pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute
from transformers import PreTrainedTokenizerBase

from llmrec.config import Prompt
from llmrec.errors import UserError
from llmrec.ranker.contexts import Contexts
from llmrec.ranker.packing import Request
from llmrec.ranker.ragged import Ragged
from llmrec.ranker.special_tokens import as_data
from llmrec.ranker.templates import fill


@dataclass(frozen=True)
class Catalogue:
    """The items, tokenised. Row i is item `ids[i]`, ids ascending.

    ids: arrow array[n]; event: tokens in a history; candidate: tokens as a branch; cut: bool[n], too long texts.
    """

    ids: pa.Array
    event: Ragged
    candidate: Ragged
    cut: np.ndarray

    def as_item_tokens(self, vocabulary: int, per_item: int) -> Catalogue:
        """The catalogue with so many tokens an item, which the ranker embeds as the item's vectors: from
        `vocabulary + row * per_item` on."""
        n = len(self.ids)
        last = vocabulary + n * per_item
        if last > np.iinfo(np.int32).max:
            raise UserError(f"{n:,} items of {per_item} vectors are more than a ranker can number; split the catalogue")
        tokens = Ragged(np.arange(vocabulary, last, dtype=np.int32), np.arange(n + 1, dtype=np.int64) * per_item)
        return Catalogue(self.ids, tokens, tokens, self.cut)

    def rows(self, ids: pa.Array) -> np.ndarray:
        """int64[m]: the row of each id, -1 where the catalogue lacks it."""
        found = pa.compute.index_in(ids, self.ids)
        return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def tokenise_catalogue(
    items: pa.Table, item_column: str, prompt: Prompt, tokenizer: PreTrainedTokenizerBase
) -> Catalogue:
    """Tokenise every item once.

    Raises:
        UserError: an item's id is null or its text is empty, also to the tokenizer.
    """
    if items[item_column].null_count:
        raise UserError(f"items: {items[item_column].null_count} rows have no {item_column}; run jobs/prepare.py")
    items = items.take(pa.compute.sort_indices(items, sort_keys=[(item_column, "ascending")]))
    texts = as_data(fill(prompt.item, items, "item"), prompt.item, tokenizer)
    for i, text in enumerate(texts):
        if not text.strip():
            raise UserError(f"item {items[item_column][i].as_py()!r}: prompt.item {prompt.item!r} gives an empty text")
    text_tokens = _tokenise(tokenizer, [prompt.before_item + text for text in texts])
    cut = np.asarray([len(t) > prompt.max_item_tokens for t in text_tokens], bool)
    text_tokens = [t[: prompt.max_item_tokens] for t in text_tokens]
    end, before, after = _tokenise(tokenizer, [prompt.after_item, prompt.before_candidate, prompt.after_candidate])
    event = Ragged.of([t + end for t in text_tokens])
    if (event.lengths == 0).any():  # BERT's tokenizers drop control characters
        i = int(np.argmin(event.lengths))
        raise UserError(f"item {items[item_column][i].as_py()!r}: its text {texts[i]!r} has no token")
    bare = not (prompt.before_candidate or prompt.after_candidate)
    candidate = event if bare else Ragged.of([before + t + after for t in text_tokens])
    return Catalogue(items[item_column].combine_chunks(), event, candidate, cut)


def trunk_opening(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """int32[p] tokens that open the trunk of a user of whom nothing is known.

    The first is the tokenizer's BOS token, or else its CLS token, if it has one.

    Raises:
        UserError: there is none.
    """
    (plain,) = trunk_openings([""], prompt, tokenizer)
    if not len(plain):
        raise UserError(
            "prompt.before_history is empty and the tokenizer has no BOS or CLS token; a trunk needs one token"
        )
    return plain


def trunk_openings(texts: Sequence[str], prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """int32[any] tokens that open each trunk that says such a text of its user."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    start = [] if first is None else [first]
    told = as_data(texts, prompt.user, tokenizer)
    tokens = _tokenise(tokenizer, [text + prompt.before_history for text in told])
    return [np.asarray(start + t, np.int32) for t in tokens]


def trunk(prefix: np.ndarray, events: Ragged) -> np.ndarray:
    """int32[P]: prefix tokens followed by the history's."""
    return np.concatenate([prefix, events.values])


def scoring_request(
    prefix: np.ndarray,
    catalogue: Catalogue,
    history: np.ndarray,
    candidates: np.ndarray,
    context: Contexts | None = None,
) -> Request:
    """history, candidates: catalogue rows (int64), the history cut to what the trunk keeps, oldest first. context: one,
    what the user is asked about in."""
    whole = scoring_trunk(prefix, catalogue, history, context)
    return Request.to_score(whole, catalogue.candidate.take(candidates))


def scoring_trunk(
    prefix: np.ndarray, catalogue: Catalogue, history: np.ndarray, context: Contexts | None
) -> np.ndarray:
    """int32[P] or int64[P]: the trunk of such a request."""
    whole = trunk(prefix, catalogue.event.take(history))
    return whole if context is None else context.ended(whole)


def training_request(
    prefix: np.ndarray, catalogue: Catalogue, history: np.ndarray, decisions: np.ndarray, negatives: np.ndarray,
    contexts: Contexts | None = None,
) -> Request:  # fmt: skip
    """One pass that trains many next-item decisions.

    history: int64[m] rows; decisions: int64[d], the events to train, each read where it ends in the trunk;
    negatives: int64[d, n] rows, branches attached just before their decision's event. The batch reads first the d true
    items, then the d * n negatives.
    contexts: d, what each decision is made in; then true items are branches, too, each in its own.
    """
    events = catalogue.event.take(history)
    ends, whole = len(prefix) + events.offsets, trunk(prefix, events)
    if contexts is not None:
        (d, n), none = negatives.shape, np.empty(0, np.int32)
        tails, attach = contexts.tails(whole, ends[decisions])
        which = np.concatenate([np.arange(d), np.repeat(np.arange(d), n)])
        items = catalogue.candidate.take(np.concatenate([history[decisions], negatives.ravel()]))
        return Request(whole, tails.take(which).joined(items), attach[which].astype(np.int32), none)
    return Request(
        trunk=whole,
        branches=catalogue.candidate.take(negatives.ravel()),
        attach=np.repeat(ends[decisions] - 1, negatives.shape[1]).astype(np.int32),
        trunk_read=(ends[decisions + 1] - 1).astype(np.int32),
    )


def catalogue_training_request(
    prefix: np.ndarray, catalogue: Catalogue, history: np.ndarray, decisions: np.ndarray,
    contexts: Contexts | None = None,
) -> Request:  # fmt: skip
    """One pass whose decisions are each against the whole catalogue: a trunk read just before each decision's event, in
    the context of each, if there are contexts."""
    events = catalogue.event.take(history)
    ends = len(prefix) + events.offsets
    none = np.empty(0, np.int64)
    if contexts is not None:
        whole = trunk(prefix, events)
        tails, attach = contexts.tails(whole, ends[decisions])
        return Request(whole, tails, attach.astype(np.int32), none.astype(np.int32))
    read = (ends[decisions] - 1).astype(np.int32)
    return Request(trunk(prefix, events), catalogue.candidate.take(none), none.astype(np.int32), read)


def branch_training_request(
    prefix: np.ndarray, catalogue: Catalogue, history: np.ndarray, negatives: np.ndarray,
    context: Contexts | None = None,
) -> Request:  # fmt: skip
    """One pass that trains one decision, the history's last event, by branches alone.

    For an encoder: its trunk's tokens see each other, so that none of them may be an answer. history: int64[m >= 1]
    rows; negatives: int64[1, n] rows. The batch reads first the true item, then the n negatives, each as it is scored.
    """
    return scoring_request(prefix, catalogue, history[:-1], np.concatenate([history[-1:], negatives[0]]), context)


def fitting(request: Request, positions: int | None) -> Request:
    """The request, if it takes no more than `positions` positions (None: any number).

    Raises:
        UserError: it takes more.
    """
    if positions is not None and request.positions > positions:
        raise UserError(
            f"a user's history and a candidate take {request.positions} positions, and this model has {positions}; "
            "lower prompt.max_history or prompt.max_item_tokens"
        )
    return request


def _tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    if not texts:  # which a tokenizer stumbles over
        return []
    return list(tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"])
