"""What is derived from the ranks: means over users and seeds, segments, differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.quality import protocol
from benchmarks.quality.cache import Measured
from benchmarks.quality.methods import Method

Row = dict[str, Any]
MAIN = "ndcg@10"


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
    per_user = [np.mean([protocol.metrics(m.ranks)[MAIN] for m in seeds], axis=0) for seeds in found]
    best = int(np.argmax([values.mean() for values in per_user]))
    return [
        r | {"to_best": None if i == best else protocol.paired(values, per_user[best])}
        for i, (r, values) in enumerate(zip(rows, per_user, strict=True))
    ]
