"""Tables in the terminal and plots as PNG."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from llmrec.errors import UserError

FIGURES = "figures.json"

Row = dict[str, Any]
Say = Callable[[str], None]
Column = tuple[str, Callable[[Row], str]]

SPEED: list[Column] = [
    ("engine", lambda r: r["engine"]),
    ("pairs/s", lambda r: f"{r['pairs_per_second']:.1f}"),
    ("ours is", lambda r: or_dash(r["ours_over_this"], "{:.2f}x")),
    ("tokens/s", lambda r: f"{r['tokens_per_second']:.0f}"),
    ("reuse", lambda r: f"{r['prefix_reuse']:.1f}x"),
    ("padding", lambda r: f"{r['padding_share']:.0%}"),
    ("MFU", lambda r: or_dash(r["mfu"], "{:.0%}")),
    ("peak MB", lambda r: f"{r['peak_mb']:.0f}"),
    ("users", lambda r: f"{r['users']}"),
    ("passes", lambda r: f"{len(r['passes'])}"),
    ("others", lambda r: f"{r['cpus_of_others']:.1f}"),
]
_speed = dict(SPEED)
OF_ITEMS: list[Column] = [
    ("engine", _speed["engine"]),
    ("pairs/s", _speed["pairs/s"]),
    ("items as vectors is", _speed["ours is"]),
    *((heading, _speed[heading]) for heading in ("tokens/s", "MFU", "peak MB", "users", "others")),
]
AGREEMENT: list[Column] = [
    ("engine", lambda r: r["engine"]),
    ("top-10 kept", lambda r: f"{r['top10_overlap']:.1%}"),
    ("order changed", lambda r: f"{r['top10_changed']:.0%}"),
    ("largest difference/std", lambda r: f"{r['largest_difference']:.1e}"),
    ("Spearman", lambda r: f"{r['spearman']:.5f}"),
    ("users", lambda r: f"{r['users_compared']}"),
]


def run(
    asked: argparse.Namespace, measure: Callable[[argparse.Namespace, Say], dict[str, Any]],
    show: Callable[[Console, dict[str, Any]], None],
) -> None:  # fmt: skip
    """Measure and show; write the figures to `asked.json`, too, or into `asked.out` if none is named. What a user can
    mend ends the process with exit code 2 and one line."""
    console, say = started(asked.out)
    try:
        found = measure(asked, say)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    show(console, found)
    file = asked.json or asked.out / FIGURES
    file.write_text(json.dumps(found, indent=2) + "\n")
    console.print("written:", file)


def started(out: Path) -> tuple[Console, Say]:
    """The terminal, and what prints a line of progress there. SIGTERM ends the process, and so its children, from now.

    out: the directory for what will be written, made if need be.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out.mkdir(parents=True, exist_ok=True)
    console = Console(width=max(Console().width, 130))
    start = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - start:6.0f} s  {text}", markup=False, highlight=False)

    return console, say


def difference(found: tuple[float, float, float] | None) -> str:
    """A mean difference and its interval, a dash for none."""
    return "-" if found is None else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*found)


def or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def table(title: str, columns: list[Column], rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for place, (heading, _) in enumerate(columns):
        table.add_column(heading, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(text(row) for _, text in columns))
    return table


def show(console: Console, report: dict[str, Any]) -> None:
    """Print everything that a report holds."""
    setup = report["setup"]
    console.print(f"{setup['model']}, {setup['cpu']}, {setup['threads']} threads")
    for precision in report["matmul_gflops"][0]:
        rates = ", ".join(f"{rate[precision]:.0f}" for rate in report["matmul_gflops"])
        console.print(f"matrix multiply, {precision}: {rates} G operations/s before the first and after every round")
    for shape in dict.fromkeys(row["shape"] for row in report["results"]):
        rows = [row for row in report["results"] if row["shape"] == shape]
        trunk, item, candidates = shape.split("x")
        console.print(table(f"trunk {trunk}, item {item} tokens, {candidates} candidates", SPEED, rows))
        if all("spearman" in row for row in rows):
            console.print(table("against transformers in float32, users that both scored", AGREEMENT, rows))
    for shape in dict.fromkeys(row["shape"] for row in report["items"]):
        rows = [row for row in report["items"] if row["shape"] == shape]
        trunk, item, candidates = (int(part) for part in shape.split("x"))
        title = f"items as vectors beside their text: {trunk // item} items of {item} tokens, {candidates} candidates"
        console.print(table(title, OF_ITEMS, rows))
    for name, reason in report["not_run"].items():
        console.print(f"{name} not run: {reason}", markup=False)
    if report["results"]:
        console.print("'ours is': pairs/s of the fastest llmrec row of the same precision over this row's.")
    if report["items"]:
        console.print("'items as vectors is': pairs/s of the llmrec-items row of the same precision over this row's.")
    if report["results"] or report["items"]:
        console.print("Rates are per pair; a slow engine is timed on fewer users, each with all candidates.")
        console.print("Others: processors that other processes kept busy meanwhile; near 0 in a fair comparison.")
    for curve in report["curves"]:
        console.print(f"{curve['engine']}, {curve['over']}:")
        for x, seconds, memory in zip(curve["x"], curve["seconds"], curve["peak_mb"], strict=True):
            console.print(f"  {x:>5}: {seconds:8.2f} s {memory:8.0f} MB")
        for what, fit in curve["line"].items():
            straight = f"{fit['intercept']:.4g} + {fit['slope']:.4g} * {curve['over']}"
            console.print(f"  {what} = {straight}, R^2 = {fit['r_squared']:.4f}")
    if training := report["training"]:
        console.print(
            f"training step, {training['candidates']} candidates, float32: packed {training['packed_seconds']:.1f} s, "
            f"pair by pair {training['pair_by_pair_seconds']:.1f} s ({training['ratio']:.1f}x), "
            f"gradients differ by {training['gradient_difference']:.1e} of the largest"
        )


def plot(report: dict[str, Any], directory: Path) -> list[Path]:
    """Bars for the first shape, lines over all shapes if there are several, and the curves."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = report["results"]
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    written = []

    def save(figure: Any, name: str) -> None:
        figure.tight_layout()
        figure.savefig(directory / name, dpi=150)
        pyplot.close(figure)
        written.append(directory / name)

    if shapes:
        bars = sorted((row for row in rows if row["shape"] == shapes[0]), key=lambda row: row["pairs_per_second"])
        figure, axes = pyplot.subplots(figsize=(8, 0.4 * len(bars) + 1.2))
        colours = ["tab:orange" if row["engine"].startswith("llmrec") else "tab:grey" for row in bars]
        drawn = axes.barh([row["engine"] for row in bars], [row["pairs_per_second"] for row in bars], color=colours)
        axes.bar_label(drawn, fmt="%.1f", padding=3)
        axes.set_xscale("log")
        axes.margins(x=0.15)
        axes.set_xlabel(f"pairs per second at {shapes[0]} (trunk x item x candidates), {report['setup']['cpu']}")
        save(figure, "pairs_per_second.png")
    if len(shapes) > 1:
        figure, axes = pyplot.subplots(figsize=(10, 5))
        for engine in dict.fromkeys(row["engine"] for row in rows):
            rate = {row["shape"]: row["pairs_per_second"] for row in rows if row["engine"] == engine}
            axes.plot(list(rate), list(rate.values()), marker="o", label=engine)
        axes.set_yscale("log")
        axes.set_ylabel("pairs per second")
        axes.set_xlabel("trunk x item x candidates")
        axes.tick_params(axis="x", rotation=60)
        axes.legend(fontsize=7)
        save(figure, "grid.png")
    if report["curves"]:
        overs = list(dict.fromkeys(curve["over"] for curve in report["curves"]))
        figure, grid = pyplot.subplots(2, len(overs), figsize=(5 * len(overs), 6), squeeze=False, sharex="col")
        for column, over in enumerate(overs):
            for curve in (c for c in report["curves"] if c["over"] == over):
                for axes, what in zip(grid[:, column], ("seconds", "peak_mb"), strict=True):
                    label = f"{curve['engine']} (R² {curve['line'][what]['r_squared']:.3f})"
                    axes.plot(curve["x"], curve[what], marker="o", label=label)
                    axes.set_ylabel(what.replace("_mb", " MB"))
                    axes.set_ylim(bottom=0)
                    axes.legend(fontsize=7)
            grid[1, column].set_xlabel(over)
        save(figure, "curves.png")
    return written
