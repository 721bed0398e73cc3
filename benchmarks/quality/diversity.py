"""What a fusion's lists gain in diversity and lose in relevance, as `rerank` trades one for the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.quality import protocol
from benchmarks.quality.figures import MAIN
from benchmarks.quality.fused import Best
from llmrec import config
from llmrec.fusion.diversity import MARGINALS, Vectors, unlikeness
from llmrec.fusion.rerank import CELLS, Rerank, choose
from llmrec.ranker.ragged import Ragged, offsets_of

K = 10
NONE = "none"


@dataclass(frozen=True)
class Point:
    """Lists of K out of each user's `window` best. ndcg: of one true item a user; change: its mean difference from that
    by relevance alone, with its 95% paired bootstrap interval, None of these lists themselves; unlikeness: of two items
    of a list, 1 minus the cosine of their texts' vectors, its mean over all lists; coverage: share of the catalogue
    that is in a list."""

    method: str
    trade: float
    ndcg: float
    change: dict[str, float] | None
    unlikeness: float
    coverage: float


def curve(best: Best, target: np.ndarray, vectors: np.ndarray, trades: Sequence[float]) -> dict[str, Any]:
    """The point of relevance alone, then one for each method and trade.

    target: int64[m], each user's true item; vectors: float32[n_items, d].
    """
    window = config.Rerank().window
    held = best.items[:, :window] >= 0
    items = Ragged(best.items[:, :window][held], offsets_of(held.sum(axis=1)))
    scores, alike = best.scores[:, :window][held], Vectors(vectors)
    points: list[Point] = []
    plain: np.ndarray | None = None
    for method, trade in [(NONE, 0.0), *((method, trade) for method in MARGINALS for trade in trades)]:
        how = Rerank(window, None if method == NONE else method, trade, alike)
        places, lengths = choose(scores, items, how, K)
        lists = Ragged(items.values[places], offsets_of(lengths))
        ndcg = _ndcg(lists, target)
        change = None if plain is None else protocol.paired(ndcg, plain)
        plain = ndcg if plain is None else plain
        apart, shown = float(np.nanmean(unlikeness(lists, alike, CELLS))), len(np.unique(lists.values)) / len(vectors)
        points.append(Point(method, trade, float(ndcg.mean(dtype=np.float64)), change, apart, shown))
    return {"window": window, "points": [asdict(point) for point in points]}


def _ndcg(lists: Ragged, target: np.ndarray) -> np.ndarray:
    """float32[m]."""
    user = np.repeat(np.arange(len(lists)), lists.lengths)
    right = np.flatnonzero(lists.values == target[user])
    ranks = np.full(len(lists), np.inf)
    ranks[user[right]] = right - lists.offsets[user[right]] + 1
    return protocol.metrics(ranks)[MAIN]
