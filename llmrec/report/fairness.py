"""What a person reads of the trade of relevance for a group of items. Computes no number itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmrec.report import terminal


def print_curve(found: Mapping[str, Any]) -> None:
    """One row a floor, and of groups of users a table each of the NDCG and of the exposure."""
    k, points = found["k"], found["points"]
    what = f"{found['column']} = {found['value']}"
    terminal.print_rows(
        f"run {found['run_id']}: lists of {k} out of {found['window']} with at least such a share of items of {what} "
        f"({found['catalogue']:.1%} of the catalogue); {found['users']:,} users with a held-out item, "
        f"{found['lists']:,} lists",
        ["least", f"ndcg@{k}", "change, 95%", "their exposure", "95%", "lists with too few"],
        [
            [
                f"{of['share']:g}", f"{of['ndcg']:.4f}", "{:+.4f} to {:+.4f}".format(*of["change"]),
                terminal.share(of["exposure"]), _between(of["exposure_interval"]), f"{of['short']:.1%}",
            ]
            for of in points
        ],
    )  # fmt: skip
    if not found["by"]:
        return
    names = [group["name"] for group in points[0]["groups"]]
    rows = []
    for of in points:
        groups, gap = of["groups"], of["gap"]
        told = "-" if gap is None else f"{gap['gap']:.4f} ({gap['low']:+.4f} to {gap['high']:+.4f})"
        rows.append([f"{of['share']:g}", *map(_of_group, groups), told])
    terminal.print_rows(
        f"by {found['by']}: ndcg@{k}, and the exposure of these items (95%)",
        ["least", *names, "gap of ndcg, 95%"],
        rows,
    )


def _of_group(group: Mapping[str, Any]) -> str:
    told = f"{group['ndcg']:.4f}, {terminal.share(group['exposure'])}"
    return told if group["exposure_interval"] is None else f"{told} ({_between(group['exposure_interval'])})"


def _between(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else "{:.1%} - {:.1%}".format(*interval)
