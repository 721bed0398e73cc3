"""What a person reads of the trade of relevance for diversity. Computes no number itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmrec.report import figures, terminal
from llmrec.report import page as template


def print_curve(found: Mapping[str, Any]) -> None:
    """One row a method and trade."""
    k = found["k"]
    title = (
        f"run {found['run_id']}: lists of {k} out of {found['window']}, items alike by {found['by']}; "
        f"{found['users']:,} users with a held-out item, {found['lists']:,} lists"
    )
    columns = ["method", "trade", f"ndcg@{k}", "95%", "change, 95%", "unlikeness in a list", "coverage"]
    rows = [
        [
            point["method"], f"{point['trade']:g}", f"{point['ndcg']:.4f}",
            "{:.4f} - {:.4f}".format(*point["interval"]), "{:+.4f} to {:+.4f}".format(*point["change"]),
            terminal.figure(point["unlikeness"]), f"{point['coverage']:.4f}",
        ]
        for point in found["points"]
    ]  # fmt: skip
    terminal.print_rows(title, columns, rows)


def page(found: Mapping[str, Any]) -> str:
    """NDCG with its interval against unlikeness, a line a method from relevance alone on, as one HTML file that needs
    nothing beside it."""
    plain, *traded = found["points"]
    methods = dict.fromkeys(point["method"] for point in traded) or [plain["method"]]
    traded.sort(key=lambda point: point["trade"])
    curves = {name: _comparable([plain, *(point for point in traded if point["method"] == name)]) for name in methods}
    lines = [[(point["unlikeness"], point["ndcg"]) for point in points] for points in curves.values()]
    spans = [
        (method, [(point["unlikeness"], end) for end in point["interval"]])
        for method, points in enumerate(curves.values())
        for point in points
    ]
    drawn = figures.plot([*lines, *(span for _, span in spans)])
    placed = [] if drawn is None else drawn.points[len(lines) :]
    return template.drawn(
        "diversity.html.j2", f=found, curves=curves, drawn=drawn,
        spans=[(method, place) for (method, _), place in zip(spans, placed, strict=False)],
    )  # fmt: skip


def _comparable(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [point for point in points if point["unlikeness"] is not None]
