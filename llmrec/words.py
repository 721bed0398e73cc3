"""A text's words, also of scripts that part words by nothing: there each letter is one."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

_EAST = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af"  # kana, Han and Hangul letters
_WORD = re.compile(rf"[{_EAST}]|[^\W_{_EAST}]+(?:['\u2019][^\W_{_EAST}]+)*")


@dataclass(frozen=True)
class Token:
    """word: normalised; text: as written; start, end: in the sentence."""

    word: str
    text: str
    start: int
    end: int


def tokens(text: str) -> list[Token]:
    return [Token(_normal(m[0]), m[0], m.start(), m.end()) for m in _WORD.finditer(text)]


def eastern(token: Token) -> bool:
    """Whether it is a letter of such a script."""
    return re.match(f"[{_EAST}]", token.text) is not None


def _normal(word: str) -> str:
    return unicodedata.normalize("NFKC", word).casefold().replace("\u2019", "'")
