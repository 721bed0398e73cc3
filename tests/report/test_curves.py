"""What a person reads of the trades of relevance for diversity and for a group of items."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from test_page import read

from llmrec.report import diversity, fairness


def diverse(**changes: Any) -> dict[str, Any]:
    point = {
        "method": "none", "trade": 0.0, "ndcg": 0.2, "interval": (0.15, 0.25), "change": (0.0, 0.0),
        "unlikeness": 0.375, "coverage": 0.5,
    }  # fmt: skip
    return {"run_id": "r-1", "k": 10, "window": 50, "by": "texts", "lists": 9, "users": 7, "points": [point | changes]}


def fair(**changes: Any) -> dict[str, Any]:
    groups = [
        {"name": "a", "users": 3, "ndcg": 0.2, "exposure": 0.125, "exposure_interval": (0.1, 0.15)},
        {"name": "b", "users": 3, "ndcg": 0.2, "exposure": None, "exposure_interval": None},
    ]
    point = {
        "share": 0.3, "ndcg": 0.2, "change": (-0.01, 0.01), "exposure": 0.25, "exposure_interval": (0.2, 0.3),
        "short": 0.5, "groups": groups, "gap": None,
    }  # fmt: skip
    return {
        "run_id": "r-1", "k": 10, "window": 50, "column": "maker", "value": "small", "catalogue": 0.1,
        "by": "users.country", "lists": 9, "users": 7, "points": [point | changes],
    }  # fmt: skip


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_unlikeness_is_a_figure_or_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    diversity.print_curve(diverse())
    assert "0.3750 │ 0.5000" in printed(capsys)
    diversity.print_curve(diverse(unlikeness=None))
    assert "- │ 0.5000" in printed(capsys)


def test_exposure_is_a_share_or_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    fairness.print_curve(fair())
    out = printed(capsys)
    for part in ("25.0% │ 20.0% - 30.0%", "0.2000, 12.5% (10.0% - 15.0%)", "0.2000, - │"):
        assert part in out, part
    fairness.print_curve(fair(exposure=None, exposure_interval=None))
    assert "│ - │ - │" in printed(capsys)


def traded() -> list[dict[str, Any]]:
    """Points of both methods beside relevance alone, the less NDCG the more unlike."""
    plain = diverse()["points"][0]
    return [
        plain,
        *(
            plain | {"method": method, "trade": trade, "ndcg": 0.2 - cost * trade, "unlikeness": 0.375 + trade / 2,
                     "interval": (0.17 - cost * trade, 0.24 - cost * trade), "change": (-2 * cost * trade, 0.001)}
            for method, cost in (("mmr", 0.05), ("dpp", 0.1)) for trade in (0.2, 0.6, 1.0)
        ),
    ]  # fmt: skip


def test_the_page_draws_ndcg_with_its_interval_against_unlikeness() -> None:
    points = traded()
    page = diversity.page({**diverse(), "points": points})
    tree = read(page)
    assert tree.seen.count("svg") == 1 and tree.seen.count("path") == 2 and "http" not in page and not tree.links
    for part in ("r-1", "mmr: dots; dpp: squares", "0.1900", "-0.1000 to +0.0010", "dpp 0.6: ndcg@10 0.1400"):
        assert part in tree.text, part
    circles = [(float(x), float(y)) for x, y in re.findall(r'<circle class="m0" cx="([\d.]+)" cy="([\d.]+)"', page)]
    squares = [(float(x) + 3, float(y) + 3) for x, y in re.findall(r'<rect class="m1" x="([\d.]+)" y="([\d.]+)"', page)]
    curves = [[points[0], *points[1:4]], [points[0], *points[4:]]]
    drawn = [*circles, *squares]
    shown = [point for curve in curves for point in curve]
    assert len(drawn) == len(shown) == 8
    # Places are a straight line of what they stand for, x to the right and y upwards.
    for axis, name, sign in ((0, "unlikeness", 1), (1, "ndcg", -1)):
        places = [place[axis] for place in drawn]
        slope, start = np.polyfit([point[name] for point in shown], places, 1)
        np.testing.assert_allclose(start + slope * np.asarray([point[name] for point in shown]), places, atol=0.11)
        assert slope * sign > 0
    spans = re.findall(r'<line class="m[01]" x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)" y2="([\d.]+)"', page)
    slope, start = np.polyfit([point["ndcg"] for point in shown], [y for _, y in drawn], 1)
    for point, (x, _), (left, right, low, high) in zip(shown, drawn, spans, strict=True):
        assert float(left) == float(right) == x
        ends = start + slope * np.asarray(point["interval"])
        assert (float(low), float(high)) == pytest.approx(tuple(ends), abs=0.2)


def test_the_line_goes_by_the_trade_whatever_order_they_were_asked_in() -> None:
    points = traded()
    assert diversity.page({**diverse(), "points": points}).split("<p class")[0] == diversity.page(
        {**diverse(), "points": [points[0], *reversed(points[1:4]), *reversed(points[4:])]}
    ).split("<p class")[0]  # fmt: skip


def test_without_unlikeness_the_page_has_a_table_and_no_curve() -> None:
    tree = read(diversity.page({**diverse(), "points": [p | {"unlikeness": None} for p in traded()]}))
    assert "svg" not in tree.seen and "there is no curve" in tree.text and "0.1900" in tree.text
    assert read(diversity.page(diverse())).seen.count("circle") == 1, "relevance alone is a point"


def test_names_on_the_page_are_no_markup() -> None:
    tree = read(diversity.page({**diverse(), "by": "<script>alert(1)</script>"}))
    assert "script" not in tree.seen and "<script>" in tree.text
