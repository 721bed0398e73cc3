"""What is derived from the ranks: means over users and seeds, segments, differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.quality import protocol
from benchmarks.quality.cache import Measured
from benchmarks.quality.fused import FUSIONS
from benchmarks.quality.methods import Method

Row = dict[str, Any]
MAIN = "ndcg@10"
GAINS = (MAIN, "recall@100")
# Methods that differ by one thing: what it is, with it, without it.
ADDED = (
    ("the ranker", "fused", "fused-without-lm"),
    ("the ranker, all layers", "fused-all-layers", "fused-without-lm"),
    ("the ranker, random weights", "fused-random", "fused-without-lm"),
    ("three rankers", "fused-ensemble", "fused-without-lm"),
    ("three rankers, random weights", "fused-random-ensemble", "fused-without-lm"),
    ("the ranker, to trees", "fused-trees", "fused-trees-without-lm"),
    ("sasrec", "fused-sasrec", "fused-without-lm"),
    ("the ranker, beside sasrec", "fused-lm-sasrec", "fused-sasrec"),
    ("the graph", "fused-graph", "fused"),
    ("the graph", "fused-graph-without-lm", "fused-without-lm"),
    ("the graph", "lm", "lm-without-graph"),
    ("the context", "fused-in-context", "fused"),
    ("the context", "fused-in-context-without-lm", "fused-without-lm"),
    ("the context", "fused-lm-context", "fused"),
    ("the context", "lm-context", "lm"),
    ("the context", "popularity-in-context", "popularity"),
    ("text that a model wrote", "lm-augmented", "lm"),
    ("pretraining", "lm", "lm-random"),
    ("pretraining, all layers", "lm-all-layers", "lm-random-all-layers"),
    ("depth", "lm-all-layers", "lm"),
    ("perturbation", "lm-adversarial", "lm"),
    ("a second mask", "lm-masks", "lm"),
    ("two more trainings", "lm-ensemble", "lm"),
)


def row(method: Method, seeds: Sequence[int], found: Sequence[Measured], segments: Mapping[str, np.ndarray]) -> Row:
    """Means over the users, of them the mean over the seeds and, with several, the standard deviation."""
    by_seed = [protocol.metrics(measured.ranks) for measured in found]
    means = {name: [float(values[name].mean()) for values in by_seed] for name in by_seed[0]}
    return {
        "method": method.name, "settings": dict(method.settings), "seeds": list(seeds),
        "seconds": float(np.mean([measured.seconds for measured in found])),
        "fitting": float(np.mean([measured.fitting for measured in found])),
        **{name: float(np.mean(values)) for name, values in means.items()},
        "std": {name: float(np.std(values, ddof=1)) if len(values) > 1 else None for name, values in means.items()},
        "segments": {
            segment: {"targets": int(inside.sum())} | {
                name: float(np.mean([values[name][inside].mean() for values in by_seed])) for name in means
            } for segment, inside in segments.items()
        },
    }  # fmt: skip


def to_best(rows: Sequence[Row], found: Sequence[Sequence[Measured]]) -> list[Row]:
    """Rows with `to_best`: by how much NDCG@10 differs from that of the best row, over the same users; None for it.

    found: a row's measurements; of several seeds a user's mean counts.
    """
    per_user = _per_user(found, MAIN)
    best = int(np.argmax([values.mean() for values in per_user]))
    return [
        r | {"to_best": None if i == best else protocol.paired(values, per_user[best])}
        for i, (r, values) in enumerate(zip(rows, per_user, strict=True))
    ]


def added(rows: Sequence[Row], found: Sequence[Sequence[Measured]]) -> list[Row]:
    """What single things add to NDCG@10 and to Recall@100, over the same users: of the pairs of `ADDED` that were
    measured, and of each fusion beside the best of its members, by each metric, that was."""
    values = {name: dict(zip((r["method"] for r in rows), _per_user(found, name), strict=True)) for name in GAINS}
    there = values[MAIN]
    pairs = [(what, one, dict.fromkeys(GAINS, other)) for what, one, other in ADDED if {one, other} <= set(there)]
    for name in there:
        members = [member for member in FUSIONS[name][0] if member in there] if name in FUSIONS else []
        if members:
            best = {metric: max(members, key=lambda m, of=of: float(of[m].mean())) for metric, of in values.items()}
            pairs.append(("fusing", name, best))
    return [
        {"what": what, "with": one, "without": others}
        | {metric: protocol.paired(of[one], of[others[metric]]) for metric, of in values.items()}
        | {"relative": {m: float(of[one].mean() / of[others[m]].mean() - 1) for m, of in values.items()}}
        for what, one, others in pairs
    ]


def _per_user(found: Sequence[Sequence[Measured]], metric: str) -> list[np.ndarray]:
    """float[m] of each row: of several seeds a user's mean."""
    return [np.mean([protocol.metrics(m.ranks)[metric] for m in seeds], axis=0) for seeds in found]
