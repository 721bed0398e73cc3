"""Does a generator loop? Of tokens while it writes, of words when it is done."""

from __future__ import annotations

from collections.abc import Sequence

from llmrec.words import tokens as words_of

LONGEST_BLOCK = 24  # tokens
TIMES, LOOPED = 3, 12  # a block so often in a row, over so many tokens at least
NGRAM, LEAST_NGRAMS, DISTINCT = 3, 8, 0.75


def loops(tokens: Sequence[int]) -> bool:
    """Whether the last tokens are one block over and over: 1 to LONGEST_BLOCK tokens, TIMES times in a row at least and
    LOOPED tokens long at least, so that a short block has to come more often."""
    n = len(tokens)
    for block in range(1, LONGEST_BLOCK + 1):
        times = max(TIMES, -(-LOOPED // block))
        if block * times > n:
            if block * TIMES > n:
                return False
            continue
        tail = tokens[n - block * times :]
        if tail[block:] == tail[:-block]:
            return True
    return False


def repeats(text: str) -> bool:
    """Whether fewer than DISTINCT of a text's runs of NGRAM words are different ones; few runs do not tell."""
    words = [token.word for token in words_of(text)]
    runs = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    return len(runs) >= LEAST_NGRAMS and len(set(runs)) < DISTINCT * len(runs)
