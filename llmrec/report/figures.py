"""Where marks go in a page's figures: values to places. The template draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360.0, 200.0, 46.0, 10.0, 10.0, 26.0


@dataclass(frozen=True)
class Track:
    """Places on a line from low to high, in per cent of it."""

    low: float
    high: float

    def at(self, value: float) -> float:
        span = self.high - self.low
        return round(100 * (min(max(value, self.low), self.high) - self.low) / span, 2) if span else 0.0

    def between(self, a: float, b: float) -> float:
        """How long it is from a to b."""
        return round(self.at(max(a, b)) - self.at(min(a, b)), 2)


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Plot:
    """A figure of WIDTH by HEIGHT. points: of each line, in its units; baseline: the y of the lower axis."""

    points: list[list[tuple[float, float]]]
    x_ticks: list[Tick]
    y_ticks: list[Tick]

    def path(self, line: int) -> str:
        """The line as SVG path data."""
        return "M" + " L".join(f"{x:g} {y:g}" for x, y in self.points[line])


def track(values: Sequence[float | None]) -> Track:
    """From the least to the largest of these and 0."""
    known = [v for v in values if v is not None and np.isfinite(v)]
    return Track(min([0.0, *known]), max([0.0, *known]))


def plot(
    lines: Sequence[Sequence[tuple[float, float]]], low: float | None = None, same_axes: bool = False
) -> Plot | None:
    """Lines of (x, y); None of values that are not finite alone, or of none.

    low: where the y axis begins, at the least value if None; same_axes: both axes from `low` to the largest of all.
    """
    shown = [[(x, y) for x, y in line if np.isfinite(x) and np.isfinite(y)] for line in lines]
    flat = [point for line in shown for point in line]
    if not flat:
        return None
    xs, ys = ([point[i] for point in flat] for i in (0, 1))
    x_range, y_range = (min(xs), max(xs)), (min(ys) if low is None else low, max(ys))
    if same_axes:
        x_range = y_range = (y_range[0], max(x_range[1], y_range[1]))

    def place(value: float, ends: tuple[float, float], start: float, end: float) -> float:
        span = ends[1] - ends[0]
        return round(start + (end - start) * ((value - ends[0]) / span if span else 0.5), 1)

    def across(value: float) -> float:
        return place(value, x_range, LEFT, WIDTH - RIGHT)

    def down(value: float) -> float:
        return place(value, y_range, HEIGHT - BOTTOM, TOP)

    return Plot(
        [[(across(x), down(y)) for x, y in line] for line in shown],
        [Tick(across(v), f"{v:.12g}") for v in _ticks(*x_range)],
        [Tick(down(v), f"{v:.12g}") for v in _ticks(*y_range)],
    )


def _ticks(low: float, high: float) -> list[float]:
    """Some round values from low to high, 1, 2 or 5 times a power of ten apart; low if both are about equal."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        return [low]
    step = 10.0 ** np.floor(np.log10((high - low) / 3))
    step *= next(m for m in (5, 2, 1) if (high - low) / (m * step) >= 2)
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return [float(i * step) for i in range(first, last + 1)]
