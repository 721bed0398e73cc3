"""Times recall over a large catalogue: the job with item-item neighbours, and exact search by vectors beside faiss.

The data are generated. Every engine runs in a process of its own; searches must find the same items, ties apart. Writes
recall.json, and prints the same as tables.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.recall import report, tables
from benchmarks.recall.command_line import options
from benchmarks.recall.search import APPROXIMATE, ENGINES, PEER, agreement, found_of
from benchmarks.speed import processes
from benchmarks.speed.report import started

Say = Callable[[str], None]
Row = dict[str, Any]


def main() -> None:
    asked = options(str(__doc__))
    console, say = started(asked.out)
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(asked, asked.data or Path(temporary), say)
    file = asked.out / "recall.json"
    file.write_text(json.dumps(found, indent=2) + "\n")
    report.show(console, found)
    console.print("written:", file)
    if not all(row["equal"] in (True, None) for row in found["search"]):
        sys.exit("the searches differ")


def measure(asked: argparse.Namespace, data: Path, say: Say) -> dict[str, Any]:
    """The job and every search, as one report that JSON can hold."""
    not_run: dict[str, str] = {}
    job = None if asked.without_job else _job(asked, data, say, not_run)
    rows = [row for d in asked.dimensions for row in _searches(asked, data, d, say, not_run)]
    return {
        "setup": {
            "cpu": processes.processor(), "platform": platform.platform(), "threads": asked.threads,
            "items": asked.items, "users": asked.users, "events": asked.events, "zipf": asked.zipf, "top": asked.top,
            "search_users": asked.search_users, "rounds": asked.rounds, "users_per_bucket": asked.users_per_bucket,
            "object_store_mb": asked.object_store_mb,
            "versions": {row["engine"]: row["version"] for row in rows if row["version"]},
        },
        "job": job,
        "search": rows,
        "not_run": not_run,
    }  # fmt: skip


def _job(asked: argparse.Namespace, data: Path, say: Say, not_run: dict[str, str]) -> Row | None:
    shape = tables.Shape(asked.items, asked.users, asked.events, asked.zipf, asked.users_per_bucket)
    say(f"{shape.users:,} users in {shape.buckets} buckets, {shape.items:,} items")
    layout = tables.write(data / "tables", shape)
    task = {"root": layout.root, "top": asked.top, "object_store_mb": asked.object_store_mb}
    found = _child("job", task, "job", asked, not_run)
    if found is not None:
        say(f"the recall job: {found['seconds']:.1f} s, {found['peak_mb']:.0f} MB")
    return found


def _searches(asked: argparse.Namespace, data: Path, dimensions: int, say: Say, not_run: dict[str, str]) -> list[Row]:
    """The fastest turn of each engine, with how it agrees with the peer."""
    items, users = tables.vectors(data / "vectors", asked.items, asked.search_users, dimensions)
    best: dict[str, Row] = {}
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for _ in range(asked.rounds):
        for number, engine in enumerate(ENGINES):
            where = data / "vectors" / f"found-{number}.npz"
            task = {"engine": engine, "items": str(items), "users": str(users), "found": str(where), "top": asked.top}
            row = _child("search", task, f"{engine}, {dimensions}", asked, not_run)
            if row is None:
                continue
            say(f"{engine}, {dimensions} dimensions: {row['seconds']:.1f} s, {row['peak_mb']:.0f} MB")
            if engine not in best or row["seconds"] < best[engine]["seconds"]:
                best[engine] = row
            with np.load(where) as file:
                found[engine] = file["rows"], file["scores"]
    peer = best.get(PEER)
    alone: Row = {"equal": True, "same_rows": None}
    return [
        row | {
            "engine": engine, "dimensions": dimensions,
            "milliseconds_per_user": 1e3 * row["seconds"] / asked.search_users,
            "cpu_milliseconds_per_user": 1e3 * row["cpu_seconds"] / asked.search_users,
            "over_peer": peer["seconds"] / row["seconds"] if peer else None,
            "cpu_over_peer": peer["cpu_seconds"] / row["cpu_seconds"] if peer and row["cpu_seconds"] else None,
        } | ((found_of if engine == APPROXIMATE else agreement)(found[PEER], found[engine]) if peer else alone)
        for engine, row in best.items()
    ]  # fmt: skip


def _child(module: str, task: Row, name: str, asked: argparse.Namespace, not_run: dict[str, str]) -> Row | None:
    """What a child process says of itself; None if it failed, which is noted."""
    records: list[Row] = []
    log = asked.out / f"recall-{name.replace(' ', '-').replace(',', '')}.log"
    task = task | {"threads": asked.threads}
    failure = processes.run(
        sys.executable, module, task, log, asked.timeout, records.append, package="benchmarks.recall"
    )
    if failure or not records:
        not_run[name] = failure or "it told nothing"
        return None
    return records[0]


if __name__ == "__main__":
    main()
