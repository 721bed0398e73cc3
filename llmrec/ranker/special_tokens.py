"""A tokenizer's special tokens in text that is data: a title must not be able to end a turn or open another."""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def special_pattern(tokenizer: PreTrainedTokenizerBase, but: str = "", added: bool = False) -> re.Pattern[str] | None:
    """What finds them, the longest first; None if there are none. Those of white space, and those in `but`, are left.

    added: also tokens that were added to the vocabulary without being special, which may be words of titles.
    """
    more = (str(token) for token in tokenizer.added_tokens_decoder.values() if added or token.special)
    found = {token for token in (*tokenizer.all_special_tokens, *more) if token.strip() and token not in but}
    ordered = sorted(found, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def without(text: str, pattern: re.Pattern[str] | None) -> str:
    """The text with a blank in place of each, also of one that comes about when another has gone."""
    while pattern is not None and (less := pattern.sub(" ", text)) != text:
        text = less
    return text


def as_data(texts: Sequence[str], template: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts that a template was filled to, without the special tokens that the template itself has not."""
    pattern = special_pattern(tokenizer, but=template)
    return [without(text, pattern) for text in texts]
