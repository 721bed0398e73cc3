"""llmrec's fusion of several methods, as its jobs make it: candidates of each method, its score of every candidate, and
weights fitted on the validation events by members that have not seen them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from benchmarks.quality.datasets import Dataset
from benchmarks.quality.methods import TITLES, Method, Ranked
from benchmarks.quality.protocol import Rows, ranks_of_rows
from benchmarks.quality.splits import TEST, VALIDATION, Split, split
from llmrec import config
from llmrec.errors import UserError
from llmrec.fusion import model
from llmrec.fusion.parts import Parts
from llmrec.ranker.ragged import Ragged, offsets_of
from llmrec.recall.candidates import merge, pair_keys, top_dense

# By name, what is fused and how: all sources of candidates, with and without the ranker.
WITHOUT = ("popularity", "item-item", "item-item-last", "item-item-ever", "ease", "ials", TITLES)
SILENT = ("in-context", "closeness")  # members that bring no candidates
CONTEXT, GRAPH = ("in-context",), ("graph", "closeness")
FUSIONS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "fused": ((*WITHOUT, "lm"), "linear"),
    "fused-random": ((*WITHOUT, "lm-random"), "linear"),
    "fused-trees": ((*WITHOUT, "lm"), "trees"),
    "fused-without-lm": (WITHOUT, "linear"),
    "fused-trees-without-lm": (WITHOUT, "trees"),
    "fused-in-context": ((*WITHOUT, "lm", *CONTEXT), "linear"),
    "fused-lm-context": ((*WITHOUT, "lm-context"), "linear"),
    "fused-in-context-without-lm": ((*WITHOUT, *CONTEXT), "linear"),
    "fused-graph": ((*WITHOUT, *GRAPH, "lm"), "linear"),
    "fused-graph-without-lm": ((*WITHOUT, *GRAPH), "linear"),
}
AVERAGED = {"lm-ensemble": ("lm", 3)}  # by name, which ranker, trained how often
VERSION = 1
CELLS = 1 << 23  # scores of all members held at once
EACH = 100  # candidates that each member brings


class Member(Method, Protocol):
    """A method whose scores can be asked for, not only the ranks that they give."""

    def over(self, dataset: Dataset, split: str, seed: int) -> Rows:
        """Fitted on a split's training events, the scores of its targets' users."""
        ...


@dataclass(frozen=True)
class Fused:
    """An item that no member brings is ranked behind all that one brings, in the middle of the others of its kind.

    method: see `llmrec.fusion.model.fit`. silent: members that say something of all candidates, but bring none.
    """

    name: str
    members: Sequence[Member]
    method: str
    silent: Sequence[str] = ()

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"method": self.method, "version": VERSION, "each": EACH} | {
            member.name: dict(member.settings) for member in self.members
        }

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
        parts, truth, _ = self._parts(dataset, VALIDATION, seed)
        fusion = model.fit(parts, truth, defaults.normalise, self.method, defaults.l2)
        parts, truth, left = self._parts(dataset, TEST, seed)
        fitting = time.monotonic() - started
        scores = fusion.score(parts).astype(np.float32)
        user = np.repeat(np.arange(len(parts.lengths)), parts.lengths)
        own = np.full(len(parts.lengths), np.nan, np.float32)
        own[user[truth]] = scores[truth]
        counted = [np.bincount(user, hits, len(own)) for hits in (scores > own[user], scores == own[user])]
        ranks = np.where(np.isnan(own), parts.lengths + (1 + left) / 2, counted[0] + (1 + counted[1]) / 2)
        return Ranked(ranks.astype(np.float32), fitting)

    def _parts(self, dataset: Dataset, name: str, seed: int) -> tuple[Parts, np.ndarray, np.ndarray]:
        """Of a split's targets: the parts of their candidates; bool[total]: which of these are the targets themselves;
        int64[m]: how many items are left over."""
        asked = split(dataset, name)
        scorers = [member.over(dataset, name, seed) for member in self.members]
        n_items = len(asked.candidates)
        block = max(1, CELLS // (n_items * len(scorers)))
        values, lengths, truth, left = [], [], [], []
        for start in range(0, len(asked.users), block):
            rows = np.arange(start, min(start + block, len(asked.users)))
            scores = [scorer(rows) for scorer in scorers]
            bring = [of for of, member in zip(scores, self.members, strict=True) if member.name not in self.silent]
            items = _candidates(bring, asked, rows)
            user = np.repeat(np.arange(len(rows)), items.lengths)
            values.append(np.stack([of[user, items.values] for of in scores], axis=1).astype(np.float32))
            lengths.append(items.lengths)
            target = Ragged(asked.target[rows], np.arange(len(rows) + 1))
            truth.append(np.isin(pair_keys(items, n_items), pair_keys(target, n_items)))
            left.append(asked.candidates.sum() - asked.seen.take(rows).lengths - items.lengths)
        names = tuple(member.name for member in self.members)
        parts = Parts(names, np.concatenate(values), offsets_of(np.concatenate(lengths)))
        return parts, np.concatenate(truth), np.concatenate(left)


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

    def ranked(self, dataset: Dataset, name: str, seed: int) -> Ranked:
        asked = split(dataset, name)
        started = time.monotonic()
        each = [self.member.over(dataset, name, seed * self.count + i) for i in range(self.count)]
        fitting = time.monotonic() - started

        def mean(rows: np.ndarray) -> np.ndarray:
            found = np.zeros((len(rows), len(asked.candidates)), np.float32)
            for scores in (of(rows) for of in each):
                found += (scores - scores.mean(axis=1, keepdims=True)) / scores.std(axis=1, keepdims=True)
            return found / self.count

        return Ranked(ranks_of_rows(mean, asked), fitting)


def _candidates(scores: Sequence[np.ndarray], asked: Split, rows: np.ndarray) -> Ragged:
    """What the members bring, each its best."""
    seen, n_items = asked.seen.take(rows), len(asked.candidates)
    lists = [top_dense(np.where(asked.candidates, of, -np.inf), seen, EACH) for of in scores]
    return merge(lists, EACH * len(lists), n_items).items
