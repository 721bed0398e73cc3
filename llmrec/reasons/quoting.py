"""Texts of the catalogue as data inside a sentence or a prompt: one line, no control characters, of bounded length."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

MOST = 160
UNSEEN = ("Cf", "Cs", "Co", "Cn")


def one_line(text: str, without: Iterable[str] = (), most: int = MOST) -> str:
    """The text without control, formatting and unassigned characters, white space joined, cut after `most` characters.

    without: strings that would end the quotation or mean something to a tokenizer; taken out until none is left.
    """
    # What is not seen (a zero-width space, a turn of the writing's direction) parts no words; a line break does.
    seen = (c for c in text if unicodedata.category(c) not in UNSEEN)
    spaced = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in seen)
    unwanted = [w for w in without if w]
    while any(w in spaced for w in unwanted):
        for w in unwanted:
            spaced = spaced.replace(w, "")
    joined = " ".join(spaced.split())
    return joined if len(joined) <= most else joined[: most - 1].rstrip() + "…"
