"""What a history teaches: which events are decisions, and against which candidates. Plain numpy and scipy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from llmrec.config import Train
from llmrec.ranker.ragged import Ragged, offsets_of, within

EARLIER = 1000  # of what a user had before an example's history, the newest so many are remembered


@dataclass(frozen=True)
class Example:
    """One pass over a part of a user's history.

    history: int64[m] catalogue rows, oldest first; decisions: int64[d], the events that are trained, ascending;
    negatives: int64[d, n] rows; usable: bool[d, n], false where a negative is no wrong answer;
    answers: int64[d, w] rows, each decision's event and those after it, -1 beyond the history's end;
    earlier: int64[any] rows, what the user had before the history. first: the place of the history's first event among
    all of the user's; weights: float32[d], what each decision counts, None if all count 1.
    """

    history: np.ndarray
    decisions: np.ndarray
    negatives: np.ndarray
    usable: np.ndarray
    answers: np.ndarray
    earlier: np.ndarray
    first: int = 0
    weights: np.ndarray | None = None

    @property
    def weight(self) -> float:
        """What its decisions count together."""
        return float(len(self.decisions)) if self.weights is None else float(self.weights.sum())

    def had(self) -> Ragged:
        """What the user had by each decision, in d sequences of rows."""
        lengths = len(self.earlier) + self.decisions
        everything = np.concatenate([self.earlier, self.history]).astype(np.int32)
        return Ragged(everything[within(lengths)], offsets_of(lengths))


@dataclass(frozen=True)
class Lesson:
    """A user whose candidates a teacher has scored.

    history: int64[any] catalogue rows, oldest first, as the teacher saw it; items: int64[N] rows; scores: float32[N].
    """

    history: np.ndarray
    items: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Recaller:
    """Draws the candidates that recall would bring: item-item neighbours of what the user had by then.

    pool: int64[any], the rows that other negatives are drawn from: an item that nobody had yet is not a wrong one.
    """

    similar: sparse.csr_matrix
    decay: float
    depth: int
    pool: np.ndarray

    def top(self, history: np.ndarray, without: np.ndarray) -> np.ndarray:
        """int64[<= depth] rows, best first, for a history of rows (oldest first); items in `without` left out."""
        weights = np.power(np.float32(self.decay), np.arange(len(history), dtype=np.float32)[::-1])
        scores = np.asarray(weights @ self.similar[history]).ravel()
        scores[without] = 0
        depth = min(self.depth, len(scores))
        best = np.argpartition(-scores, depth - 1)[:depth]
        best = best[scores[best] > 0]
        return best[np.argsort(-scores[best], kind="stable")]


def sample(
    history: np.ndarray, train: Train, max_history: int, recaller: Recaller | None, rng: np.random.Generator,
    first: int = 0,
) -> Example:  # fmt: skip
    """A random window of at most `max_history` events, some of them decisions, each with its own negatives.

    Without a recaller there are no negatives: the decisions are against the whole catalogue. A negative is drawn, with
    probability `hard_share`, from what recall would have brought at that point, else uniformly from its pool.
    history: int64[>= 1]; first: the first event that may be a decision, below its length.
    """
    end = len(history)
    if end > max_history:
        end = int(rng.integers(max(max_history, first + 1), end + 1))
    start = max(0, end - max_history)
    before = max(0, first - start)  # events of the window that are no decisions
    chosen = before + np.sort(rng.permutation(end - start - before)[: train.decisions_per_user])
    found = _without_negatives(history, start, end, chosen, train.horizon)
    return found if recaller is None else _against_negatives(found, train, recaller, rng)


def sample_last(
    history: np.ndarray, train: Train, max_history: int, recaller: Recaller, rng: np.random.Generator, first: int = 0
) -> Example:
    """One decision, for an encoder, whose history's tokens see each other: a random event after its newest
    `max_history` predecessors. It is the last event of the example. history: int64[>= 1]; first: as of `sample`.
    """
    event = int(rng.integers(first, len(history)))
    start = max(0, event - max_history)
    last = np.asarray([event - start])
    return _against_negatives(_without_negatives(history, start, event + 1, last, train.horizon), train, recaller, rng)


def _without_negatives(history: np.ndarray, start: int, end: int, decisions: np.ndarray, horizon: int) -> Example:
    """The events start..end of a history, these decisions among them."""
    window, earlier = history[start:end], history[max(0, start - EARLIER) : start]
    none = np.empty((len(decisions), 0), np.int64)
    return Example(window, decisions, none, none.astype(bool), _answers(window, decisions, horizon), earlier, start)


def _against_negatives(example: Example, train: Train, recaller: Recaller, rng: np.random.Generator) -> Example:
    """The example with negatives of its own for each decision."""
    window, decisions = example.history, example.decisions
    negatives = rng.choice(recaller.pool, size=(len(decisions), train.negatives))
    hard = rng.random(negatives.shape) < train.hard_share
    for row, event in enumerate(decisions):
        wanted = int(hard[row].sum())
        if event == 0 or wanted == 0:
            continue
        recalled = recaller.top(window[:event], window[: event + 1])
        if len(recalled):
            negatives[row, hard[row]] = rng.choice(recalled, wanted, replace=len(recalled) < wanted)
    usable = negatives != window[decisions][:, None]
    if train.exclude_seen:
        had = example.had()
        for row in range(len(had)):
            usable[row] &= ~np.isin(negatives[row], had[row])
    return replace(example, negatives=negatives, usable=usable)


def _answers(window: np.ndarray, decisions: np.ndarray, horizon: int) -> np.ndarray:
    place = decisions[:, None] + np.arange(horizon)
    return np.where(place < len(window), window[np.minimum(place, len(window) - 1)], -1)
