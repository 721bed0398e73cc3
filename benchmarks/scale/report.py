"""The table in the terminal and the plot as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.scale.engines import JOB
from benchmarks.speed.report import Column, or_dash, table

COLUMNS: list[Column] = [
    ("engine", lambda r: r["engine"]),
    ("seconds", lambda r: f"{r['seconds']:.1f}"),
    ("million pairs/s", lambda r: f"{r['pairs_per_second'] / 1e6:.2f}"),
    ("a core", lambda r: f"{r['pairs_per_second_and_core'] / 1e6:.2f}"),
    ("a CPU second", lambda r: or_dash(r["pairs_per_cpu_second"] and r["pairs_per_cpu_second"] / 1e6, "{:.2f}")),
    ("of best peer", lambda r: or_dash(r["over_best_peer"], "{:.2f}x")),
    ("peak MB", lambda r: f"{r['peak_mb']:.0f}"),
    ("equal", lambda r: "yes" if r["equal"] else "NO"),
    ("others", lambda r: f"{r['cpus_of_others']:.1f}"),
]
GROWTH: list[Column] = [
    ("engine", lambda r: r["engine"]),
    ("seconds to begin with", lambda r: f"{r['seconds']['intercept']:.1f}"),
    ("a million pairs", lambda r: f"{r['seconds']['slope'] * 1e6:.3f}"),
    ("R²", lambda r: f"{r['seconds']['r_squared']:.4f}"),
    ("CPU seconds to begin with", lambda r: f"{r['cpu_seconds']['intercept']:.1f}"),
    ("a million pairs", lambda r: f"{r['cpu_seconds']['slope'] * 1e6:.3f}"),
    ("memory, largest over smallest", lambda r: f"{r['memory']:.2f}"),
]


def show(console: Console, report: dict[str, Any]) -> None:
    """Print everything that a report holds."""
    setup = report["setup"]
    console.print(f"{setup['cpu']}, {setup['threads']} threads, {setup['items']:,} items, top {setup['top_k']}")
    for pairs in dict.fromkeys(row["pairs"] for row in report["results"]):
        rows = [row for row in report["results"] if row["pairs"] == pairs]
        size = f"{setup['candidates_mb'][pairs]:,.0f} MB of candidates"
        console.print(table(f"{pairs:,} pairs, {setup['per_user']} a user, {size}", COLUMNS, rows))
    if report["growth"]:
        rows = [{"engine": name} | growth for name, growth in report["growth"].items()]
        console.print(table("straight lines over all sizes", GROWTH, rows))
    for name, reason in report["not_run"].items():
        console.print(f"{name} not run: {reason}", markup=False)
    console.print(
        "The peers rank alone; the job also reads histories, judges every pair, keeps a ledger and publishes."
    )
    console.print("Others: processors that other processes kept busy meanwhile; near 0 in a fair comparison.")


def plot(report: dict[str, Any], directory: Path) -> Path:
    """Seconds and memory over pairs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    for name in dict.fromkeys(row["engine"] for row in report["results"]):
        rows = [row for row in report["results"] if row["engine"] == name]
        millions = [row["pairs"] / 1e6 for row in rows]
        style = {"marker": "o", "label": name, "linewidth": 2.5 if name == JOB.name else 1}
        left.plot(millions, [row["seconds"] for row in rows], **style)
        right.plot(millions, [row["peak_mb"] for row in rows], **style)
    for axes, what in ((left, "seconds"), (right, "peak MB")):
        axes.set_xlabel("million pairs")
        axes.set_ylabel(what)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    left.legend(fontsize=7)
    figure.tight_layout()
    file = directory / "scale.png"
    figure.savefig(file, dpi=150)
    pyplot.close(figure)
    return file
