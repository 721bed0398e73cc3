"""From scores to the rank of each user's true item over the whole catalogue, and from ranks to metrics."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from benchmarks.quality.splits import Split
from llmrec.evaluation.bootstrap import interval
from llmrec.ranker.ragged import Ragged

VERSION = 1  # of what ranks mean; older ones in the cache are not used
Scorer = Callable[[Ragged], np.ndarray]  # histories of m users -> float32[m, n_items]
Rows = Callable[[np.ndarray], np.ndarray]  # int64[m], some of a split's targets -> float32[m, n_items]
CELLS = 1 << 24  # scores held at once
RESAMPLES = 2000
SEGMENTS = ((0, 0), (1, 4), (5, 19), (20, 99), (100, None))  # events of the target in training, from and to


def of_rows(scorer: Scorer, split: Split) -> Rows:
    return lambda rows: scorer(split.known.take(rows))


def ranks_of_rows(scores: Rows, split: Split) -> np.ndarray:
    """float32[m]: the rank of each user's target, from 1, seen items left out; ties have their mean rank."""
    block = max(1, CELLS // len(split.candidates))
    found = []
    for start in range(0, len(split.users), block):
        rows = np.arange(start, min(start + block, len(split.users)))
        found.append(ranks(scores(rows), split.seen.take(rows), split.target[rows], split.candidates))
    return np.concatenate(found) if found else np.empty(0, np.float32)


def fitted_then_ranked(fit: Callable[[], Rows], split: Split) -> tuple[np.ndarray, float]:
    """Those of `ranks_of_rows` by what `fit` gives, and the seconds that it took."""
    started = time.monotonic()
    scores = fit()
    fitting = time.monotonic() - started
    return ranks_of_rows(scores, split), fitting


def target_ranks(scorer: Scorer, split: Split) -> np.ndarray:
    """Those of `ranks_of_rows`, by what scores histories."""
    return ranks_of_rows(of_rows(scorer, split), split)


def ranks(scores: np.ndarray, seen: Ragged, target: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """float32[m] from float32[m, n_items]."""
    if not np.isfinite(scores).all():
        raise ValueError("a method gave a score that is not finite")
    own = scores[np.arange(len(scores)), target][:, None]
    open_ = masked(np.broadcast_to(candidates, scores.shape), seen)
    better = ((scores > own) & open_).sum(axis=1)
    tied = ((scores == own) & open_).sum(axis=1)  # the target itself is one
    return (better + (1 + tied) / 2).astype(np.float32)


def masked(values: np.ndarray, seen: Ragged, fill: float = 0) -> np.ndarray:
    """A copy of [m, n_items] with `fill` at what each user has seen."""
    values = values.copy()
    values[np.repeat(np.arange(len(seen)), seen.lengths), seen.values] = fill
    return values


def metrics(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """float32[m] of each metric, one true item a user; a mean rank beyond k is not among the first k."""
    first = ranks <= 10
    return {
        "ndcg@10": np.where(first, 1 / np.log2(ranks + 1), 0).astype(np.float32),
        "recall@10": first.astype(np.float32),
        "mrr@10": np.where(first, 1 / ranks, 0).astype(np.float32),
        "recall@100": (ranks <= 100).astype(np.float32),
    }


def segments(split: Split) -> dict[str, np.ndarray]:
    """bool[m] by how many training events the target has; those that no user is in are left out."""
    events = np.bincount(split.training.values, minlength=len(split.candidates))[split.target]
    found = {}
    for low, high in SEGMENTS:
        name = f"{low}+" if high is None else f"{low}-{high}" if high > low else f"{low}"
        inside = (events >= low) & (events <= (np.inf if high is None else high))
        if inside.any():
            found[name] = inside
    return found


def paired(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> dict[str, float]:
    """The mean difference over the same users of one metric, and its 95% bootstrap interval."""
    difference = ours.astype(np.float64) - theirs
    low, high = interval(difference, RESAMPLES, seed)
    return {"difference": float(difference.mean()), "low": low, "high": high}
