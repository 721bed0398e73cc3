"""Does a sentence that a model wrote say what its evidence says, and name nothing else?

The check reads names and where they stand, not meaning, and takes the template's sentence where it is in doubt.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

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
# Words that neither the evidence nor the template has.
MOST_OWN_WORDS = 10
# Letters of scripts without capitals, where a name looks like any word: of words that are in no list. One is no name.
MOST_OWN_LETTERS = 1
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
                phrase = words[at : at + length]
                plain = self.words.get(phrase) if len(phrase) == length else None
                if plain is None or (length == 1 and self.names and not plain and _plain(sentence[at])):
                    continue
                yield at, at + length
                break


def _plain(token: Token) -> bool:
    """Written without a capital; a letter that has none, or a digit, is one."""
    return token.text[0].islower()


@dataclass(frozen=True)
class Vocabulary:
    """What a sentence could name, and words that name nothing.

    titles: of all items; traits: all values of attributes and facts, those of a single item too; ordinary: the
    template's words, see `templates.Template`.
    """

    titles: Phrases
    traits: Phrases
    ordinary: Phrases

    @staticmethod
    def of(titles: Iterable[str | None], traits: Iterable[str], ordinary: Iterable[str] = ()) -> Vocabulary:
        return Vocabulary(Phrases.of(titles, names=True), Phrases.of(traits), Phrases.of(ordinary))


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
    bare = _bare(template, own)
    free = {t.word for t in bare}
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
    plain = _ordinary(found, bare, known.ordinary)
    loose = [t for t, named, told in zip(found, covered, plain, strict=True) if not named and not told]
    if _invents(loose, found[0], allowed.language, known.ordinary):
        return "unknown_name"
    if any(c.isnumeric() for t in loose for c in t.text):
        return "unknown_number"
    rest = _without(sentence, [(found[start].start, found[end - 1].end) for start, end in spans])
    if _MARKUP.search(rest):
        return "markup"
    if {t.word for t in loose} & _NEGATIONS or any(t.word.endswith("n't") for t in loose):
        return "negated"
    if _STOPS.search(rest[:-1].rstrip()):
        return "several_sentences"
    if len(loose) > MOST_OWN_WORDS:
        return "invented"
    if _misattributes(found, spans, allowed):
        return "misattributed"
    needed = [Phrases.of(texts) for texts in ([allowed.item], allowed.cited) if texts]
    return None if all(any(True for _ in one.within(found)) for one in needed) else "ungrounded"


def _bare(template: Sequence[Token], own: Phrases) -> list[Token]:
    """The template's own words."""
    named = _covered(len(template), own.within(template))
    return [t for t, part in zip(template, named, strict=True) if not part]


def _ordinary(found: Sequence[Token], bare: Sequence[Token], ordinary: Phrases) -> list[bool]:
    """Which tokens are the template's own. A letter of a script without capitals is if it stands beside the one that it
    stands beside in the template, or in a listed word: alone it may be part of any name."""
    free = {t.word for t in bare}
    pairs = {(a.word, b.word) for a, b in pairwise(bare) if a.end == b.start}
    beside = [a.end == b.start and (a.word, b.word) in pairs for a, b in pairwise(found)]
    listed = _covered(len(found), ordinary.within(found))
    return [
        (part or left or right or (len(t.text) > 1 and t.word in free)) if _uncased(t) else t.word in free
        for t, part, left, right in zip(found, listed, [False, *beside], [*beside, False], strict=True)
    ]


def _invents(loose: Sequence[Token], first: Token, language: str, ordinary: Phrases) -> bool:
    """Is there a word that may be a name: one with a capital, but for an ordinary word that opens the sentence; in a
    Chinese sentence one of Latin letters; of a script without capitals anything but very little?"""
    for token in loose:
        opens = token is first and (token.word.partition("'")[0],) in ordinary.words
        if any(c.isupper() for c in token.text) and not opens and token.word.partition("'")[0] != "i":
            return True
        if language.startswith("zh") and not _uncased(token) and any(c.isalpha() for c in token.text):
            return True
    letters = (len(t.text) for t in loose if _uncased(t) and t.word not in _NEGATIONS and not t.text.isnumeric())
    return sum(letters) > MOST_OWN_LETTERS


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


def _uncased(token: Token) -> bool:
    """Of a script that has no capitals, such as Chinese, Arabic or Thai."""
    return any(c.isalpha() and c.lower() == c.upper() for c in token.text)


def _repeats(words: list[str]) -> bool:
    runs = Counter(tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1))
    if any(n >= REPEATS for n in runs.values()):
        return True
    letters = [w for w in words if len(w) > 1]
    return len(letters) >= 12 and len(set(letters)) / len(letters) < LEAST_DIFFERENT
