"""llmrec's fusion of several methods, as its jobs make it: candidates of each method, its score of every candidate, and
weights fitted on the validation events by members that have not seen them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from benchmarks.quality import cache
from benchmarks.quality.datasets import Dataset
from benchmarks.quality.methods import TITLES, Method, Ranked
from benchmarks.quality.protocol import Rows, fitted_then_ranked
from benchmarks.quality.splits import TEST, VALIDATION, Split, split
from llmrec import config
from llmrec.errors import UserError
from llmrec.fusion import model
from llmrec.fusion.parts import Parts
from llmrec.ranker.ragged import Ragged, offsets_of, padded
from llmrec.recall.candidates import merge, pair_keys, top_dense

# By name, what is fused and how: all sources of candidates, with and without the ranker.
WITHOUT = ("popularity", "item-item", "item-item-last", "item-item-ever", "ease", "ials", TITLES)
SILENT = ("in-context", "closeness")  # members that bring no candidates
CONTEXT, GRAPH = ("in-context",), ("graph", "closeness")
FUSIONS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "fused": ((*WITHOUT, "lm"), "linear"),
    "fused-random": ((*WITHOUT, "lm-random"), "linear"),
    "fused-all-layers": ((*WITHOUT, "lm-all-layers"), "linear"),
    "fused-sasrec": ((*WITHOUT, "sasrec"), "linear"),
    "fused-lm-sasrec": ((*WITHOUT, "sasrec", "lm"), "linear"),
    "fused-ensemble": ((*WITHOUT, "lm-ensemble"), "linear"),
    "fused-random-ensemble": ((*WITHOUT, "lm-random-ensemble"), "linear"),
    "fused-trees": ((*WITHOUT, "lm"), "trees"),
    "fused-without-lm": (WITHOUT, "linear"),
    "fused-trees-without-lm": (WITHOUT, "trees"),
    "fused-in-context": ((*WITHOUT, "lm", *CONTEXT), "linear"),
    "fused-lm-context": ((*WITHOUT, "lm-context"), "linear"),
    "fused-in-context-without-lm": ((*WITHOUT, *CONTEXT), "linear"),
    "fused-graph": ((*WITHOUT, *GRAPH, "lm"), "linear"),
    "fused-graph-without-lm": ((*WITHOUT, *GRAPH), "linear"),
}
# By name, which ranker, trained how often.
AVERAGED = {"lm-ensemble": ("lm", 3), "lm-random-ensemble": ("lm-random", 3)}
VERSION = 1
CELLS = 1 << 23  # scores of all members held at once
EACH = 100  # candidates that each member brings
BEST = 100  # of each user's, kept for lists that weigh more than relevance


class Member(Method, Protocol):
    """A method whose scores can be asked for, not only the ranks that they give."""

    def over(self, dataset: Dataset, split: str, seed: int) -> Rows:
        """Fitted on a split's training events, the scores of its targets' users."""
        ...


class Candidates(NamedTuple):
    """Those of a split's targets. truth: bool[total], which of them are the targets themselves; left: int64[m], how
    many items of the catalogue are left over."""

    items: Ragged
    parts: Parts
    truth: np.ndarray
    left: np.ndarray


class Best(NamedTuple):
    """Of each target's user the best candidates, best first. items: int64[m, BEST], -1 on the right of those with
    fewer; scores: float32[m, BEST]."""

    items: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Fused:
    """An item that no member brings is ranked behind all that one brings, in the middle of the others of its kind.

    method: see `llmrec.fusion.model.fit`. silent: members that say something of all candidates, but bring none. work: a
    directory, where the best candidates are kept.
    """

    name: str
    members: Sequence[Member]
    method: str
    work: Path
    silent: Sequence[str] = ()

    @property
    def settings(self) -> Mapping[str, Any]:
        defaults = config.Fusion()
        return {
            "method": self.method, "version": VERSION, "each": EACH, "silent": list(self.silent),
            "normalise": list(defaults.normalise), "l2": defaults.l2,
        } | {member.name: dict(member.settings) for member in self.members}  # fmt: skip

    @property
    def seeded(self) -> bool:
        return any(member.seeded for member in self.members)

    def ranked(self, dataset: Dataset, name: str, seed: int) -> Ranked:
        """
        Raises:
            UserError: it is another split than test, before whose events there are some to fit weights on.
        """
        if name != TEST:
            raise UserError(f"{self.name}: weights are fitted on validation; ask about the split '{TEST}' alone")
        started, defaults = time.monotonic(), config.Fusion()
        known = self._candidates(dataset, VALIDATION, seed)
        fusion = model.fit(known.parts, known.truth, defaults.normalise, self.method, defaults.l2)
        asked = self._candidates(dataset, TEST, seed)
        fitting = time.monotonic() - started
        scores = fusion.score(asked.parts).astype(np.float32)
        cache.save(self._file(dataset, seed), **_best(asked.items, scores)._asdict())
        lengths = asked.items.lengths
        user = np.repeat(np.arange(len(lengths)), lengths)
        own = np.full(len(lengths), np.nan, np.float32)
        own[user[asked.truth]] = scores[asked.truth]
        counted = [np.bincount(user, hits, len(own)) for hits in (scores > own[user], scores == own[user])]
        ranks = np.where(np.isnan(own), lengths + (1 + asked.left) / 2, counted[0] + (1 + counted[1]) / 2)
        return Ranked(ranks.astype(np.float32), fitting)

    def best(self, dataset: Dataset, seed: int) -> Best:
        """Of the test split. What `ranked` kept, which is asked if it did not."""
        file = self._file(dataset, seed)
        if not file.exists():
            self.ranked(dataset, TEST, seed)
        with np.load(file) as kept:
            return Best(**kept)

    def _file(self, dataset: Dataset, seed: int) -> Path:
        return cache.file_of(self.work, dataset, self, "best", seed)

    def _candidates(self, dataset: Dataset, name: str, seed: int) -> Candidates:
        asked = split(dataset, name)
        scorers = [member.over(dataset, name, seed) for member in self.members]
        n_items = len(asked.candidates)
        block = max(1, CELLS // (n_items * len(scorers)))
        values, brought, truth, left = [], [], [], []
        for start in range(0, len(asked.users), block):
            rows = np.arange(start, min(start + block, len(asked.users)))
            scores = [scorer(rows) for scorer in scorers]
            bring = [of for of, member in zip(scores, self.members, strict=True) if member.name not in self.silent]
            items = _merged(bring, asked, rows)
            user = np.repeat(np.arange(len(rows)), items.lengths)
            values.append(np.stack([of[user, items.values] for of in scores], axis=1).astype(np.float32))
            brought.append(items)
            target = Ragged(asked.target[rows], np.arange(len(rows) + 1))
            truth.append(np.isin(pair_keys(items, n_items), pair_keys(target, n_items)))
            left.append(asked.candidates.sum() - asked.seen.take(rows).lengths - items.lengths)
        names = tuple(member.name for member in self.members)
        offsets = offsets_of(np.concatenate([items.lengths for items in brought]))
        return Candidates(
            Ragged(np.concatenate([items.values for items in brought]), offsets),
            Parts(names, np.concatenate(values), offsets), np.concatenate(truth), np.concatenate(left),
        )  # fmt: skip


@dataclass(frozen=True)
class Averaged:
    """Several trainings of a ranker as one, as score.ensemble averages: seeds from the seed times their number on."""

    name: str
    member: Member
    count: int

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"count": self.count, self.member.name: dict(self.member.settings)}

    @property
    def seeded(self) -> bool:
        return True

    def over(self, dataset: Dataset, name: str, seed: int) -> Rows:
        n_items = len(split(dataset, name).candidates)
        each = [self.member.over(dataset, name, seed * self.count + i) for i in range(self.count)]

        def mean(rows: np.ndarray) -> np.ndarray:
            found = np.zeros((len(rows), n_items), np.float32)
            for scores in (of(rows) for of in each):
                found += (scores - scores.mean(axis=1, keepdims=True)) / scores.std(axis=1, keepdims=True)
            return found / self.count

        return mean

    def ranked(self, dataset: Dataset, name: str, seed: int) -> Ranked:
        return Ranked(*fitted_then_ranked(lambda: self.over(dataset, name, seed), split(dataset, name)))


def _best(items: Ragged, scores: np.ndarray) -> Best:
    """Of equal scores the first."""
    users = np.arange(len(items))
    rows = padded(items.values, items.offsets, users, -1)
    held = padded(scores, items.offsets, users, -np.inf)
    order = np.argsort(-held, axis=1, kind="stable")[:, :BEST]
    return Best(np.take_along_axis(rows, order, axis=1), np.take_along_axis(held, order, axis=1))


def _merged(scores: Sequence[np.ndarray], asked: Split, rows: np.ndarray) -> Ragged:
    """What the members bring, each its best."""
    seen, n_items = asked.seen.take(rows), len(asked.candidates)
    lists = [top_dense(np.where(asked.candidates, of, -np.inf), seen, EACH) for of in scores]
    return merge(lists, EACH * len(lists), n_items).items
