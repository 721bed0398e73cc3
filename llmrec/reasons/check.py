"""Does a sentence that a model wrote say what its evidence says, and name nothing else?

The check reads names, not meaning: that two items share a genre is no violation where the evidence has another two of
its items share it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

# Why a sentence is not taken, in the order in which it is asked.
VIOLATIONS = (
    "empty", "repetitive", "unfinished", "other_language", "other_item", "other_trait", "unknown_quotation",
    "unknown_name", "unknown_number", "markup", "negated", "ungrounded",
)  # fmt: skip
_EAST = (
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af"  # letters of scripts that part words by nothing
)
_WORD = re.compile(rf"[{_EAST}]|[^\W_{_EAST}]+(?:['\u2019][^\W_{_EAST}]+)*")
_QUOTED = re.compile(r"“([^”]*)”|\"([^\"]*)\"|《([^》]*)》|«([^»]*)»|「([^」]*)」")
_MARKUP = re.compile(r"https?:|www\.|[<>{}\\|@#*_`]|\[|\]")
_ENDS = (".", "!", "?", "\u3002", "\uff01", "\uff1f", ".”", '."', "!”", "?”")
_NEGATIONS = frozenset(("not", "no", "never", "nor", "neither", "without", "cannot", "不", "没", "无", "非", "别"))
RUN, REPEATS, LEAST_DIFFERENT = 4, 3, 0.4


@dataclass(frozen=True)
class Token:
    """word: normalised; text: as written; start, end: in the sentence."""

    word: str
    text: str
    start: int
    end: int


def tokens(text: str) -> list[Token]:
    return [Token(_normal(m[0]), m[0], m.start(), m.end()) for m in _WORD.finditer(text)]


def _normal(word: str) -> str:
    return unicodedata.normalize("NFKC", word).casefold().replace("\u2019", "'")


@dataclass(frozen=True)
class Phrases:
    """Texts to look for in sentences.

    words: each text's words, and whether it is written without a capital; lengths: of the texts that begin with a word,
    longest first. names: a text of one word counts only where it is written with a capital, if it is itself.
    """

    words: dict[tuple[str, ...], bool]
    lengths: dict[str, list[int]]
    names: bool

    @staticmethod
    def of(texts: Iterable[str | None], names: bool = False) -> Phrases:
        words, lengths = dict[tuple[str, ...], bool](), defaultdict[str, set[int]](set)
        for text in texts:
            found = tokens(text) if text else []
            if found:
                phrase = tuple(t.word for t in found)
                words[phrase] = words.get(phrase, False) or _plain(found[0])
                lengths[phrase[0]].add(len(phrase))
        return Phrases(words, {first: sorted(of, reverse=True) for first, of in lengths.items()}, names)

    def within(self, sentence: Sequence[Token]) -> Iterator[tuple[int, int]]:
        """Where some of the texts are: first and last token, the last exclusive; from each token on the longest."""
        words = tuple(t.word for t in sentence)
        for at, word in enumerate(words):
            for length in self.lengths.get(word, ()):
                plain = self.words.get(words[at : at + length])
                if plain is None or (length == 1 and self.names and not plain and _plain(sentence[at])):
                    continue
                yield at, at + length
                break


def _plain(token: Token) -> bool:
    """Written without a capital; a letter that has none, or a digit, is one."""
    return token.text[0].islower()


@dataclass(frozen=True)
class Vocabulary:
    """All that the catalogue could make a sentence name. titles: of items; traits: values of attributes and facts."""

    titles: Phrases
    traits: Phrases

    @staticmethod
    def of(titles: Iterable[str | None], traits: Iterable[str]) -> Vocabulary:
        return Vocabulary(Phrases.of(titles, names=True), Phrases.of(traits))


@dataclass(frozen=True)
class Allowed:
    """What one sentence may name. item: which it has to; cited: of which it has to name one, if there are any; others:
    further ones; reason: the template's sentence, whose own words are free."""

    item: str
    cited: tuple[str, ...]
    others: tuple[str, ...]
    reason: str
    language: str


def first_line(text: str) -> str:
    """What is taken of a model's answer."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return lines[0] if lines else ""


def violation(sentence: str, allowed: Allowed, known: Vocabulary) -> str | None:
    """The first of VIOLATIONS that a sentence of one line commits, None for none."""
    found = tokens(sentence)
    if not found:
        return "empty"
    if _repeats([t.word for t in found]):
        return "repetitive"
    if not sentence.endswith(_ENDS):
        return "unfinished"
    own = Phrases.of((allowed.item, *allowed.cited, *allowed.others))
    covered = _covered(found, own)
    template = tokens(allowed.reason)
    inside = _covered(template, own)
    free = {t.word for t, of in zip(template, inside, strict=True) if not of}
    if allowed.language.startswith("zh") and not any(
        re.match(f"[{_EAST}]", t.text) for t, of in zip(found, covered, strict=True) if not of
    ):
        return "other_language"
    for phrases, why in ((known.titles, "other_item"), (known.traits, "other_trait")):
        for start, end in phrases.within(found):
            single = end - start == 1 and found[start].word in free
            if not all(covered[start:end]) and not single:
                return why
    for match in _QUOTED.finditer(sentence):
        if not all(of for t, of in zip(found, covered, strict=True) if match.start() <= t.start < match.end()):
            return "unknown_quotation"
    loose = [t for t, of in zip(found, covered, strict=True) if not of and t.word not in free]
    if any(t.text[0].isupper() and t.text != "I" and not t.text.startswith("I'") and t is not found[0] for t in loose):
        return "unknown_name"
    if any(c.isdigit() for t in loose for c in t.text):
        return "unknown_number"
    rest = list(sentence)
    for t, of in zip(found, covered, strict=True):
        if of:
            rest[t.start : t.end] = " " * (t.end - t.start)
    if _MARKUP.search("".join(rest)):
        return "markup"
    if {t.word for t in loose} & _NEGATIONS or any(t.word.endswith("n't") for t in loose):
        return "negated"
    needed = [Phrases.of(texts) for texts in ((allowed.item,), allowed.cited) if texts]
    return None if all(any(True for _ in one.within(found)) for one in needed) else "ungrounded"


def _covered(sentence: list[Token], own: Phrases) -> list[bool]:
    """Which tokens are part of a text that may be named."""
    found = [False] * len(sentence)
    for start, end in own.within(sentence):
        found[start:end] = [True] * (end - start)
    return found


def _repeats(words: list[str]) -> bool:
    runs = Counter(tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1))
    if any(n >= REPEATS for n in runs.values()):
        return True
    letters = [w for w in words if len(w) > 1]
    return len(letters) >= 12 and len(set(letters)) / len(letters) < LEAST_DIFFERENT
