"""The tables in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from benchmarks.speed.report import Column, or_dash, table

JOB: list[Column] = [
    ("users", lambda r: f"{r['users']:,}"),
    ("seconds", lambda r: f"{r['seconds']:.1f}"),
    ("all neighbours", lambda r: f"{r['learn_seconds']:.1f}"),
    ("all candidates", lambda r: f"{r['candidates_seconds']:.1f}"),
    ("ms a user", lambda r: f"{r['milliseconds_per_user']:.2f}"),
    ("item-item a user", lambda r: f"{r['per_user']['item_item']:.1f}"),
    ("peak MB", lambda r: f"{r['peak_mb']:.0f}"),
    ("others", lambda r: f"{r['cpus_of_others']:.1f}"),
]
SEARCH: list[Column] = [
    ("engine", lambda r: r["engine"]),
    ("seconds", lambda r: f"{r['seconds']:.1f}"),
    ("ms a user", lambda r: f"{r['milliseconds_per_user']:.2f}"),
    ("CPU ms", lambda r: f"{r['cpu_milliseconds_per_user']:.2f}"),
    ("of faiss", lambda r: or_dash(r["over_peer"], "{:.2f}x")),
    ("of CPUs", lambda r: or_dash(r["cpu_over_peer"], "{:.2f}x")),
    ("same items", lambda r: or_dash(r["same_rows"], "{:.4%}")),
    ("equal", lambda r: {True: "yes", False: "NO", None: "not asked"}[r["equal"]]),
    ("peak MB", lambda r: f"{r['peak_mb']:.0f}"),
    ("others", lambda r: f"{r['cpus_of_others']:.1f}"),
]


def show(console: Console, report: dict[str, Any]) -> None:
    """Print everything that a report holds."""
    setup = report["setup"]
    console.print(f"{setup['cpu']}, {setup['threads']} threads, {setup['items']:,} items, top {setup['top']}")
    if report["job"]:
        events = f"{setup['events']:g} items a user on the average, popularity 1 / rank^{setup['zipf']:g}"
        console.print(table(f"the recall job, item-item and popularity: {events}", JOB, [report["job"]]))
    for d in dict.fromkeys(row["dimensions"] for row in report["search"]):
        rows = [row for row in report["search"] if row["dimensions"] == d]
        console.print(table(f"nearest items of {setup['search_users']:,} users, {d} dimensions", SEARCH, rows))
    for name, reason in report["not_run"].items():
        console.print(f"{name} not run: {reason}", markup=False)
    console.print("Others: processors that other processes kept busy meanwhile; near 0 in a fair comparison.")
