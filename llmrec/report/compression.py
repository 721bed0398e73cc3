"""What a person reads of smaller rankers. Computes no number itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmrec.report import terminal


def print_compressed(found: Mapping[str, Any]) -> None:
    """One row a ranker and precision. found: a `Compressed` as a dict."""
    terminal.print_rows(
        f"the ranker alone over the same candidates: {found['users']:,} users with held-out items, "
        f"{found['lists']:,} lists",
        ["ranker", "layers, MB", "all, MB", "pairs/s", "ndcg@10", "change, 95%", "top 10 kept"],
        [
            [
                of["name"], f"{of['layer_megabytes']:.1f}", f"{of['megabytes']:.1f}", f"{of['pairs_per_second']:,.0f}",
                f"{of['ndcg']:.4f}", "{:+.4f} to {:+.4f}".format(*of["change"]), f"{of['overlap']:.1%}",
            ]
            for of in found["variants"]
        ],
    )  # fmt: skip
    for name, seconds in found["train_seconds"].items():
        terminal.console().print(f"{name}: trained in {seconds:,.0f} s from the whole ranker, which taught it")
    places = dict.fromkeys(of["ranker"] for of in found["variants"])
    terminal.console().print(f"rankers, for score.model: {', '.join(places)}")
