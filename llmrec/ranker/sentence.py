"""Texts as vectors by a frozen sentence encoder: the mean of its last hidden states over a text's tokens, length one.

In float32 on any device: bfloat16 would be faster, but an item that is encoded alone should get the vector that it has
among a whole catalogue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from llmrec.errors import UserError
from llmrec.ranker.model import load_tokenizer


class SentenceEncoder:
    """An encoder or decoder of transformers. dimensions: of its vectors; limit: tokens of a text it takes, None any."""

    def __init__(self, directory: str, max_tokens: int, device: torch.device | str = "cpu") -> None:
        """
        Raises:
            UserError: the model cannot be loaded, or has fewer positions than max_tokens.
        """
        self.max_tokens, self.device = max_tokens, torch.device(device)
        self.tokenizer = load_tokenizer(directory)
        self.model = _load(directory).to(self.device)
        self.dimensions: int = self.model.config.hidden_size
        limit = _positions(self.model)
        if limit is not None and max_tokens > limit:
            raise UserError(f"items.max_tokens = {max_tokens}: {directory} has {limit} positions; lower it to that")

    @torch.inference_mode()
    def encode(
        self, texts: Sequence[str], batch_size: int, progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """float32[n, dimensions]: unit vectors in the order of the texts; zeros for a text without a token of its own.

        Texts are cut at max_tokens, which the tokenizer's special tokens are part of. batch_size: texts of one forward
        pass, of like length; progress: told of every batch's texts.
        """
        found = np.zeros((len(texts), self.dimensions), np.float32)
        # By characters, nearly as good as by tokens, so that nothing is tokenised before its batch. The longest come
        # first: what does not fit in memory fails at once.
        order = np.argsort([-len(text) for text in texts], kind="stable")
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            found[rows] = self._batch([texts[i] for i in rows])
            if progress is not None:
                progress(len(rows))
        return found

    def _batch(self, texts: list[str]) -> np.ndarray:
        said = self.tokenizer(
            texts, truncation=True, max_length=self.max_tokens, padding=False, return_special_tokens_mask=True
        )
        has_words = np.asarray(
            [bool(text.strip()) and 0 in mask for text, mask in zip(texts, said["special_tokens_mask"], strict=True)]
        )
        found = np.zeros((len(texts), self.dimensions), np.float32)
        tokens = [said["input_ids"][i] for i in np.flatnonzero(has_words)]
        if not tokens:
            return found
        # Not by the tokenizer, since a decoder's often has no padding token; what stands there is never looked at.
        width = max(map(len, tokens))
        ids = np.full((len(tokens), width), self.tokenizer.pad_token_id or 0, np.int64)
        mask = np.zeros((len(tokens), width), np.int64)
        for i, row in enumerate(tokens):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        there = torch.from_numpy(mask).to(self.device)
        states = self.model(input_ids=torch.from_numpy(ids).to(self.device), attention_mask=there)[0]
        mean = (states * there[..., None]).sum(1) / there.sum(1, keepdim=True)
        found[has_words] = nn.functional.normalize(mean, dim=-1).cpu().numpy()
        return found


def _load(directory: str) -> PreTrainedModel:
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        return AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"items.encoder '{directory}' cannot be loaded: {str(error).splitlines()[0]}") from None


def _positions(model: PreTrainedModel) -> int | None:
    """How many tokens a learned table of positions is for; None for a model without one."""
    embeddings = getattr(model, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    if table is None:
        return None
    return int(table.num_embeddings) - (getattr(embeddings, "padding_idx", -1) + 1)  # RoBERTa counts from behind it
