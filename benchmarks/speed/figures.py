"""What is derived from the times: rates, ratios, shares of the machine's peak, agreement of rankings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import linregress, spearmanr

from benchmarks.speed.engines import REFERENCE, Engine
from llmrec.ranker.cost import ModelCost

TOP = 10


def rows(
    records: dict[str, dict[str, dict[str, Any]]],
    engines: Sequence[Engine],
    cost: ModelCost,
    peaks: dict[str, float],
    ours: Callable[[Engine], bool],
) -> list[dict[str, Any]]:
    """One row per shape and engine.

    records: by shape and engine; peaks: G operations per second by precision; ours: the engines whose fastest is
    compared with all of its precision.
    """
    found = []
    for shape, by_engine in records.items():
        done = [engine for engine in engines if engine.name in by_engine]
        reference = by_engine.get(REFERENCE)
        best: dict[str, float] = {}
        for engine in filter(ours, done):
            best[engine.precision] = max(best.get(engine.precision, 0.0), _rate(by_engine[engine.name]))
        for engine in done:
            record = by_engine[engine.name]
            row: dict[str, Any] = {"shape": shape, "engine": engine.name, "precision": engine.precision}
            row |= {name: value for name, value in record.items() if name not in ("case", "scores")}
            row |= rates(record, cost, peaks.get(engine.precision))
            row["ours_over_this"] = best[engine.precision] / _rate(record) if engine.precision in best else None
            row |= agreement(reference["scores"], record["scores"]) if reference else {}
            found.append(row)
    return found


def _rate(record: dict[str, Any]) -> float:
    """Pairs per second."""
    return float(record["pairs"] / record["seconds"])


def rates(record: dict[str, Any], cost: ModelCost, peak: float | None) -> dict[str, Any]:
    """Figures of one engine at one shape; peak: G operations per second at its precision."""
    seconds, computed = record["seconds"], record["tokens"]
    operations = cost.operations(computed, record["visible"])
    return {
        "pairs_per_second": _rate(record),
        "tokens_per_second": computed / seconds,
        "prefix_reuse": record["naive_tokens"] / computed,
        "padding_share": record["padding"] / (record["padding"] + computed),
        "mfu": operations / seconds / peak / 1e9 if peak else None,
    }


def agreement(reference: Sequence[Sequence[float]], scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    """How a ranking differs from the reference, over the users that both scored."""
    users = [(np.asarray(r), np.asarray(s)) for r, s in zip(reference, scores, strict=False)]
    tops = [(np.argsort(-r, kind="stable")[:TOP], np.argsort(-s, kind="stable")[:TOP]) for r, s in users]
    return {
        "users_compared": len(users),
        "top10_overlap": float(np.mean([len(np.intersect1d(r, s)) / len(r) for r, s in tops])),
        "top10_changed": float(np.mean([not np.array_equal(r, s) for r, s in tops])),
        "largest_difference": float(max(np.abs(r - s).max() / r.std() for r, s in users)),
        "spearman": float(np.mean([spearmanr(r, s).statistic for r, s in users])),
    }


def line(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """The least-squares straight line through the points, and how much of their spread it explains."""
    fit = linregress(x, y)
    return {"slope": float(fit.slope), "intercept": float(fit.intercept), "r_squared": float(fit.rvalue**2)}
