"""What a person reads of the trade of relevance for diversity. Computes no number itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmrec.report import terminal


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
