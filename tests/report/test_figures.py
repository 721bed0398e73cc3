from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.report import figures

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


def test_a_track_goes_from_0_to_the_largest() -> None:
    track = figures.track([0.5, None, 2.0, float("nan")])
    assert (track.low, track.high) == (0.0, 2.0)
    assert (track.at(0), track.at(0.5), track.at(2.0), track.at(9.0)) == (0.0, 25.0, 100.0, 100.0)
    assert track.between(0.5, 1.0) == track.between(1.0, 0.5) == 25.0


def test_a_track_has_0_inside_where_values_are_on_both_sides() -> None:
    track = figures.track([-1.0, 3.0])
    assert (track.at(-1.0), track.at(0), track.at(3.0)) == (0.0, 25.0, 100.0)
    assert figures.track([]).at(0) == figures.track([0.0]).at(0.0) == 0.0


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=20))
def test_points_stay_inside_and_keep_their_order(line: list[tuple[float, float]]) -> None:
    found = figures.plot([line])
    assert found is not None
    xs, ys = np.asarray(found.points[0]).T
    assert xs.min() >= figures.LEFT and xs.max() <= figures.WIDTH - figures.RIGHT
    assert ys.min() >= figures.TOP and ys.max() <= figures.HEIGHT - figures.BOTTOM
    order = np.argsort([x for x, _ in line], kind="stable")
    assert (np.diff(xs[order]) >= 0).all()
    order = np.argsort([y for _, y in line], kind="stable")
    assert (np.diff(ys[order]) <= 0).all(), "larger values are higher up"
    for ticks in (found.x_ticks, found.y_ticks):
        assert 1 <= len(ticks) <= 8
        assert len({tick.label for tick in ticks}) == len(ticks)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.0, 1.0, ["0", "0.5", "1"]),
        (0.0, 0.113, ["0", "0.05", "0.1"]),
        (5.4, 7.3, ["5.5", "6", "6.5", "7"]),
        (1.0, 120.0, ["50", "100"]),
        (3.0, 3.0, ["3"]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, labels: list[str]) -> None:
    found = figures.plot([[(low, 0.0), (high, 1.0)]])
    assert found is not None
    assert [tick.label for tick in found.x_ticks] == labels


def test_nothing_to_draw() -> None:
    assert figures.plot([]) is None
    assert figures.plot([[(1.0, float("nan"))]]) is None


def test_both_axes_alike() -> None:
    found = figures.plot([[(0.1, 0.4)], [(0, 0), (0.4, 0.4)]], 0, True)
    assert found is not None
    assert [t.label for t in found.x_ticks] == [t.label for t in found.y_ticks]
    assert found.points[1] == [(46.0, 174.0), (350.0, 10.0)]
