"""The settings that rank best on validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.quality import protocol, settings
from benchmarks.quality.cache import Measured
from benchmarks.quality.datasets import Dataset
from benchmarks.quality.methods import baseline
from benchmarks.quality.settings import Settings
from benchmarks.quality.splits import VALIDATION

Measure = Callable[..., Measured]  # (dataset, method, split, seed)


def tried(
    dataset: Dataset, name: str, titles: tuple[np.ndarray, str] | None, measure: Measure
) -> list[tuple[Settings, float]]:
    """Every combination of a baseline's grid with its NDCG@10 on validation, seed 0; the best first, ties in order."""
    found = []
    for cell in settings.grid(name):
        ranks = measure(dataset, baseline(name, cell, titles), VALIDATION, 0).ranks
        found.append((cell, float(protocol.metrics(ranks)["ndcg@10"].mean())))
    return sorted(found, key=lambda pair: -pair[1])


def varied(cell: Settings, name: str) -> dict[str, Any]:
    """Without the settings that have one value only."""
    return {k: v for k, v in cell.items() if len(settings.GRID[name][k]) > 1}
