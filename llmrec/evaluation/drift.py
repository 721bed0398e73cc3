"""How far a distribution has moved from an earlier one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

LEAST = 1e-4  # share that an empty group counts as, or one would be infinitely far from the other
OTHERS = "others"


@dataclass(frozen=True)
class Drift:
    """of: what was compared; psi: the population stability index; chance: what it would be on average if nothing had
    moved; level: by the thresholds; moved: the groups that changed most, each with its share before and now."""

    of: str
    psi: float
    chance: float
    level: Literal["steady", "warn", "stop"]
    moved: dict[str, tuple[float, float]]


def psi(before: Sequence[float], now: Sequence[float]) -> float:
    """Population stability index of two distributions over the same groups, given by counts: the sum of
    (q - p) ln(q / p) over their shares p and q (Siddiqi, Credit Risk Scorecards, 2006). An empty group has LEAST."""
    p, q = (np.maximum(np.asarray(of, float) / max(sum(of), 1e-300), LEAST) for of in (before, now))
    return float(((q - p) * np.log(q / p)).sum())


def by_chance(before: Sequence[float], now: Sequence[float]) -> float:
    """What `psi` is on average if both are drawn from one distribution: groups less one, times the sum of one over each
    number of draws (Yurdakul and Naranjo, 2020)."""
    groups = sum(b + n > 0 for b, n in zip(before, now, strict=True))
    return (groups - 1) * (1 / max(sum(before), 1) + 1 / max(sum(now), 1)) if groups else 0.0


def compare(
    of: str, before: Mapping[str, float], now: Mapping[str, float], warn: float, stop: float | None, shown: int = 3
) -> Drift:
    """Two distributions by the names of their groups.

    warn, stop: the level is that of the greatest of them that psi reaches; stop None: it never stops.
    """
    names = sorted(set(before) | set(now))
    a, b = ([counts.get(name, 0.0) for name in names] for counts in (before, now))
    found = psi(a, b)
    level: Literal["steady", "warn", "stop"] = "steady"
    if stop is not None and found >= stop:
        level = "stop"
    elif found >= warn:
        level = "warn"
    shares = {n: (x / max(sum(a), 1), y / max(sum(b), 1)) for n, x, y in zip(names, a, b, strict=True)}
    most = sorted(shares, key=lambda name: -abs(shares[name][1] - shares[name][0]))[:shown]
    return Drift(of, found, by_chance(a, b), level, {name: shares[name] for name in most})


def by_size(values: np.ndarray) -> dict[str, int]:
    """Counts of whole numbers from 0 on in groups that double: 0, 1, 2-3, 4-7, ..."""
    powers, counts = np.unique(np.ceil(np.log2(np.asarray(values, np.float64) + 1)).astype(int), return_counts=True)
    return {_span(int(power)): int(count) for power, count in zip(powers, counts, strict=True)}


def _span(power: int) -> str:
    low, high = (1 << power) // 2, (1 << power) - 1
    return str(high) if low >= high else f"{low}-{high}"


def deciles(sample: np.ndarray) -> list[float]:
    """The nine inner edges of groups of equal size; fewer where many values are equal."""
    return sorted(set(np.quantile(sample, np.linspace(0.1, 0.9, 9)).tolist())) if len(sample) else []


def by_edges(values: np.ndarray, edges: Sequence[float]) -> dict[str, int]:
    """Counts of numbers between edges, ascending, none twice."""
    which = np.searchsorted(np.asarray(edges), values, side="right")
    names = ["below all", *(f"from {edge}" for edge in _told_apart(edges))]
    return {name: int(count) for name, count in zip(names, np.bincount(which, minlength=len(names)), strict=True)}


def _told_apart(edges: Sequence[float]) -> list[str]:
    """Different numbers as different texts: of four digits, or of as many as that takes, seventeen at most."""
    texts = ([f"{edge:.{digits}g}" for edge in edges] for digits in range(4, 18))
    return next(found for found in texts if len(set(found)) == len(found))


def watched(counts: Mapping[str, float], before: Iterable[str], most: int) -> dict[str, float]:
    """The `most` largest counts, those of the groups that were watched before, and OTHERS, of all the rest."""
    top = sorted(counts.keys() - {OTHERS}, key=lambda name: (-counts[name], name))[:most]
    kept = {name: counts.get(name, 0.0) for name in dict.fromkeys([*top, *before]) if name != OTHERS}
    return kept | {OTHERS: math.fsum(counts.values()) - math.fsum(kept.values())}


def of_watched(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """Counts of now by the groups of before, what is not among these added to OTHERS."""
    kept = {name: now.get(name, 0.0) for name in before if name != OTHERS}
    return kept | {OTHERS: math.fsum(now.values()) - math.fsum(kept.values())}
