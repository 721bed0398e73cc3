"""What a person reads of the trades of relevance for diversity and for a group of items."""

from __future__ import annotations

from typing import Any

import pytest

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
