"""Times the scoring job without a model: from candidates in Parquet to a published table of each user's best items.

Beside it polars and DuckDB rank the same files by the same scores, each in a process of its own and in several
formulations. Their tables must be the job's. Writes scale.json and scale.png, and prints the same as a table.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.scale import figures, report, tables
from benchmarks.scale.agreement import equal
from benchmarks.scale.command_line import options
from benchmarks.scale.engines import JOB, PEERS, Engine, forget, run
from benchmarks.speed.processes import processor
from benchmarks.speed.report import started
from llmrec import storage
from llmrec.layout import Layout

Say = Callable[[str], None]
Row = dict[str, Any]


def main() -> None:
    asked = options(str(__doc__))
    console, say = started(asked.out)
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(asked, asked.data or Path(temporary), say)
    file = asked.out / "scale.json"
    file.write_text(json.dumps(found, indent=2) + "\n")
    report.show(console, found)
    console.print("written:", file, report.plot(found, asked.out))
    if not all(row["equal"] for row in found["results"]):
        sys.exit("the tables differ")


def measure(asked: argparse.Namespace, data: Path, say: Say) -> dict[str, Any]:
    """Every engine at every size, as one report that JSON can hold."""
    rows: list[Row] = []
    not_run: dict[str, str] = {}
    candidates_mb: dict[int, float] = {}
    engines: Sequence[Engine] = (JOB, *PEERS)
    for pairs in asked.pairs:
        shape = tables.Shape(pairs, asked.per_user, asked.items, asked.events, asked.users_per_bucket, asked.full)
        say(f"{shape.pairs:,} pairs: {shape.users:,} users in {shape.buckets} buckets")
        layout = tables.write(data / str(pairs), shape)
        candidates_mb[pairs] = sum(size for _, size in storage.list_files(layout.candidates())) / 1e6
        found, failed = at_size(asked, engines, layout, say)
        rows += [row | {"pairs": shape.pairs} for row in found]
        not_run |= failed
        if not asked.all:
            engines = (JOB, *figures.fastest_of_each_library(engines[1:], found))
    return {
        "setup": {
            "cpu": processor(), "platform": platform.platform(), "threads": asked.threads, "rounds": asked.rounds,
            "per_user": asked.per_user, "items": asked.items, "events": asked.events, "top_k": asked.top_k,
            "users_per_bucket": asked.users_per_bucket, "full": asked.full, "object_store_mb": asked.object_store_mb,
            "candidates_mb": candidates_mb, "versions": {row["library"]: row["version"] for row in rows},
        },
        "results": figures.with_rates(rows, asked.threads),
        "growth": figures.growth(rows),
        "not_run": not_run,
    }  # fmt: skip


def at_size(
    asked: argparse.Namespace, engines: Sequence[Engine], layout: Layout, say: Say
) -> tuple[list[Row], dict[str, str]]:
    """The fastest turn of each engine, and why others failed."""
    best: dict[Engine, Row] = {}
    failed: dict[str, str] = {}
    for _ in range(asked.rounds):
        for engine in (e for e in engines if e.name not in failed):
            row, failure = run(engine, asked, layout)
            if row is None:
                failed[engine.name] = str(failure)
                say(f"{engine.name} not run: {failure}")
                continue
            busy = f"; others kept {row['cpus_of_others']:.1f} processors busy" if row["cpus_of_others"] > 0.1 else ""
            say(f"{engine.name}: {row['seconds']:.1f} s, {row['peak_mb']:.0f} MB{busy}")
            if engine not in best or row["seconds"] < best[engine]["seconds"]:
                best[engine] = row
    for engine, row in best.items():
        row |= {"engine": engine.name, "library": engine.library}
        row["equal"] = engine == JOB or JOB not in best or equal(layout.rankings, str(engine.out(layout)))
    for engine in engines:
        forget(engine, layout)
    return list(best.values()), failed


if __name__ == "__main__":
    main()
