"""Requests to score, what an engine answers, and how many tokens that took. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple


class Shape(NamedTuple):
    """Tokens of a trunk, tokens of an item, candidates per user."""

    trunk: int
    item: int
    candidates: int

    def __str__(self) -> str:
        return f"{self.trunk}x{self.item}x{self.candidates}"

    @staticmethod
    def parse(text: str) -> Shape:
        """From 'TRUNKxITEMxCANDIDATES'.

        Raises:
            ValueError: not three positive integers.
        """
        trunk, item, candidates = (int(part) for part in text.split("x"))
        if min(trunk, item, candidates) < 1:
            raise ValueError(text)
        return Shape(trunk, item, candidates)


@dataclass(frozen=True)
class UserRequest:
    """One user: a trunk and its candidates, as token ids and as the texts that tokenise to exactly these."""

    trunk: list[int]
    trunk_text: str
    items: list[list[int]]
    item_texts: list[str]

    @property
    def pairs(self) -> list[list[int]]:
        """The plain sequence of each pair: trunk + item."""
        return [self.trunk + item for item in self.items]

    def first(self, candidates: int) -> UserRequest:
        return UserRequest(self.trunk, self.trunk_text, self.items[:candidates], self.item_texts[:candidates])


class Span(NamedTuple):
    """One stretch that an engine computed: a sequence's tokens from `cached` up to `length`."""

    length: int
    cached: int


@dataclass(frozen=True)
class Scored:
    """scores: one list per user, in the candidates' order; spans: all that was computed; padding: tokens beside it."""

    scores: list[list[float]]
    spans: list[Span]
    padding: int = 0

    @property
    def tokens(self) -> int:
        """Computed tokens that are no padding."""
        return sum(span.length - span.cached for span in self.spans)

    @property
    def visible(self) -> int:
        """Pairs of a computed token and a token that it sees, which is what attention multiplies."""
        return sum((s.length * (s.length + 1) - s.cached * (s.cached + 1)) // 2 for s in self.spans)


def spans_alone(requests: Sequence[UserRequest]) -> list[Span]:
    """Every pair computed as a whole."""
    return [Span(len(r.trunk) + len(item), 0) for r in requests for item in r.items]


def spans_shared(trunk: int, items: Iterable[int]) -> list[Span]:
    """A trunk of this length computed once, and items of these lengths after it."""
    return [Span(trunk, 0), *(Span(trunk + item, trunk) for item in items)]


def write_requests(requests: Sequence[UserRequest], file: Path) -> Path:
    file.write_text(json.dumps([asdict(r) for r in requests]))
    return file


def read_requests(file: str) -> list[UserRequest]:
    return [UserRequest(**r) for r in json.loads(Path(file).read_text())]
