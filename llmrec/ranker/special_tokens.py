"""A tokenizer's special tokens in text that is data: a title must not be able to end a turn or open another."""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """As text, the longest first; those of white space are none."""
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    found = {token for token in (*tokenizer.all_special_tokens, *added) if token.strip()}
    return sorted(found, key=lambda token: (-len(token), token))


def without(texts: Sequence[str], tokens: Sequence[str]) -> list[str]:
    """The texts with a blank in place of each token, also of one that comes about when another has gone."""
    if not tokens:
        return list(texts)
    pattern = re.compile("|".join(map(re.escape, tokens)))
    return [_without(text, pattern) for text in texts]


def as_data(texts: Sequence[str], template: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts that a template was filled to, without the special tokens that the template itself has not."""
    return without(texts, [token for token in special_tokens(tokenizer) if token not in template])


def _without(text: str, pattern: re.Pattern[str]) -> str:
    while (less := pattern.sub(" ", text)) != text:
        text = less
    return text
