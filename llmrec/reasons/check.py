"""Does a sentence that a model wrote say what its evidence says, and name nothing else?

The check reads names and where they stand, not meaning, and takes the template's sentence where it is in doubt.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from llmrec.words import Token, eastern, tokens

# Why a sentence is not taken, in the order in which it is asked.
VIOLATIONS = (
    "empty", "repetitive", "unfinished", "other_language", "other_item", "other_trait", "unknown_quotation",
    "unknown_name", "unknown_number", "markup", "negated", "several_sentences", "invented", "misattributed",
    "ungrounded",
)  # fmt: skip
_QUOTED = re.compile(r"“([^”]*)”|\"([^\"]*)\"|《([^》]*)》|«([^»]*)»|「([^」]*)」")
_MARKUP = re.compile(r"https?:|www\.|[<>{}\\|@#*_`]|\[|\]")
_ENDS = (".", "!", "?", "\u3002", "\uff01", "\uff1f", ".”", '."', "!”", "?”")
_NEGATIONS = frozenset(("not", "no", "never", "nor", "neither", "without", "cannot", "不", "没", "无", "非", "别"))
_STOPS = re.compile(r"[.!?](?=[\s”\"])|[\u3002\uff01\uff1f](?=.)")
# Words that neither the evidence nor the template has; a letter that is a word by itself is half a one.
MOST_OWN_WORDS = 10
RUN, REPEATS, LEAST_DIFFERENT = 4, 3, 0.4


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
    """What one sentence may name. item: which it has to; cited: titles, of which it has to name one if there are any,
    with what each shares with the item; context: further texts; reason: the template's sentence, whose own words are
    free."""

    item: str
    cited: Mapping[str, tuple[str, ...]]
    context: tuple[str, ...]
    reason: str
    language: str

    @property
    def texts(self) -> list[str]:
        return [self.item, *self.cited, *(value for values in self.cited.values() for value in values), *self.context]


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
    own = Phrases.of(allowed.texts)
    template, spans = tokens(allowed.reason), list(own.within(found))
    free = {
        t.word for t, named in zip(template, _covered(len(template), own.within(template)), strict=True) if not named
    }
    covered = _covered(len(found), spans)
    outside = [t for t, named in zip(found, covered, strict=True) if not named]
    if allowed.language.startswith("zh") and not any(eastern(t) for t in outside):
        return "other_language"
    for phrases, why in ((known.titles, "other_item"), (known.traits, "other_trait")):
        for start, end in phrases.within(found):
            single = end - start == 1 and found[start].word in free
            if not all(covered[start:end]) and not single:
                return why
    for match in _QUOTED.finditer(sentence):
        if any(match.start() <= t.start < match.end() for t in outside):
            return "unknown_quotation"
    loose = [t for t in outside if t.word not in free]
    if any(t.text[0].isupper() and t.text != "I" and not t.text.startswith("I'") and t is not found[0] for t in loose):
        return "unknown_name"
    if any(c.isdigit() for t in loose for c in t.text):
        return "unknown_number"
    rest = _without(sentence, [(found[start].start, found[end - 1].end) for start, end in spans])
    if _MARKUP.search(rest):
        return "markup"
    if {t.word for t in loose} & _NEGATIONS or any(t.word.endswith("n't") for t in loose):
        return "negated"
    if _STOPS.search(rest[:-1].rstrip()):
        return "several_sentences"
    if sum(0.5 if eastern(t) else 1 for t in loose) > MOST_OWN_WORDS:
        return "invented"
    if _misattributes(found, spans, allowed):
        return "misattributed"
    needed = [Phrases.of(texts) for texts in ([allowed.item], allowed.cited) if texts]
    return None if all(any(True for _ in one.within(found)) for one in needed) else "ungrounded"


def _covered(length: int, spans: Iterable[tuple[int, int]]) -> list[bool]:
    """Which of so many tokens are part of a text that may be named."""
    found = [False] * length
    for start, end in spans:
        found[start:end] = [True] * (end - start)
    return found


def _misattributes(found: Sequence[Token], spans: Sequence[tuple[int, int]], allowed: Allowed) -> bool:
    """Is a value named right after a cited title that does not share it?"""
    words = [tuple(t.word for t in found[start:end]) for start, end in spans]
    shares = {_words(title): {_words(value) for value in values} for title, values in allowed.cited.items()}
    values, last = set[tuple[str, ...]]().union(*shares.values()), None
    for phrase in words:
        if phrase in shares:
            last = phrase
        elif phrase == _words(allowed.item):
            last = None
        elif phrase in values and last is not None and phrase not in shares[last]:
            return True
    return False


def _words(text: str) -> tuple[str, ...]:
    return tuple(t.word for t in tokens(text))


def _without(sentence: str, spans: Sequence[tuple[int, int]]) -> str:
    """The sentence with these parts blank."""
    rest = list(sentence)
    for start, end in spans:
        rest[start:end] = " " * (end - start)
    return "".join(rest)


def _repeats(words: list[str]) -> bool:
    runs = Counter(tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1))
    if any(n >= REPEATS for n in runs.values()):
        return True
    letters = [w for w in words if len(w) > 1]
    return len(letters) >= 12 and len(set(letters)) / len(letters) < LEAST_DIFFERENT
