"""The tables in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from benchmarks.quality.figures import GAINS, MAIN, Row
from benchmarks.quality.tuning import varied
from benchmarks.speed.report import Column, table


def mean(name: str) -> Column:
    def text(r: Row) -> str:
        return f"{r[name]:.4f}" + ("" if r["std"][name] is None else f" ±{r['std'][name]:.4f}".replace("0.", "."))

    return name, text


def difference(found: dict[str, float] | None) -> str:
    return "-" if found is None else f"{found['difference']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"


COLUMNS: list[Column] = [
    ("method", lambda r: r["method"]),
    *(mean(name) for name in ("ndcg@10", "recall@10", "mrr@10", "recall@100")),
    ("ndcg@10 less\nthe best's, 95%", lambda r: difference(r["to_best"])),
    ("seeds", lambda r: f"{len(r['seeds'])}"),
    ("seconds", lambda r: f"{r['seconds']:.1f}"),
    ("of them\nto fit", lambda r: f"{r['fitting']:.1f}"),
]
ADDED: list[Column] = [
    ("what", lambda r: r["what"]),
    ("with it", lambda r: r["with"]),
    ("without it", lambda r: " / ".join(dict.fromkeys(r["without"].values()))),
    ("adds to ndcg@10, 95%", lambda r: difference(r[MAIN])),
    *((f"share of\n{name}", lambda r, name=name: f"{r['relative'][name]:+.1%}") for name in GAINS),
]
TRADED: list[Column] = [
    ("by", lambda r: r["method"]),
    ("traded", lambda r: f"{r['trade']:.2f}"),
    ("ndcg@10", lambda r: f"{r['ndcg']:.4f}"),
    ("less relevance\nalone's, 95%", lambda r: difference(r["change"])),
    ("unlikeness\nin a list", lambda r: f"{r['unlikeness']:.4f}"),
    ("catalogue\nshown", lambda r: f"{r['coverage']:.4f}"),
]
TITLES = {
    "validation": "validation", "validation-4": "validation, four events a user", "test": "test",
    "cold": "test items without training events, whole catalogue",
    "cold-only": "test items without training events, among such items only",
}  # fmt: skip


def show(console: Console, report: dict[str, Any]) -> None:
    """Print everything that a report holds."""
    for data in report["datasets"]:
        size = f"{data['users']:,} users, {data['items']:,} items, {data['events']:,} events"
        console.print(f"\n[bold]{data['name']}[/bold]: {size}", highlight=False)
        for name, cells in ((name, cells) for name, cells in data["tuned"].items() if len(cells) > 1):
            rows = [
                {"method": str(varied(cell, name)), "ndcg@10": ndcg, "std": {"ndcg@10": None}} for cell, ndcg in cells
            ]
            console.print(table(f"{name}: settings on validation", [COLUMNS[0], mean("ndcg@10")], rows))
        for split, found in data["splits"].items():
            console.print(table(f"{TITLES[split]}, {found['targets']:,} targets", COLUMNS, found["methods"]))
            if found["methods"] and len(found["methods"][0]["segments"]) > 1:
                parts = found["methods"][0]["segments"]
                columns = [COLUMNS[0], *(segment(name, part["targets"]) for name, part in parts.items())]
                console.print(table("recall@10 by training events of the true item", columns, found["methods"]))
            if found["added"]:
                console.print(table("what single things add", ADDED, found["added"]))
        for name, found in data["diversity"].items():
            title = f"{name}: lists of 10 out of each user's best {found['window']}"
            console.print(table(title, TRADED, found["points"]))
    for what, reason in report["not_run"].items():
        console.print(f"{what} not run: {reason}", markup=False)


def segment(name: str, targets: int) -> Column:
    return f"{name}\n{targets:,} targets", lambda r: f"{r['segments'][name]['recall@10']:.4f}"
