"""The command line's options."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.speed.processes import ROOT


def options(about: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recall", description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    # fmt: off
    add("--items", type=int, default=1_000_000, help="items in the catalogue")
    add("--users", type=int, default=100_000, help="users with a history")
    add("--events", type=float, default=20, help="items of a user, on the average; their number is geometric")
    add("--zipf", type=float, default=1.0, help="an item's popularity is 1 / rank to this power")
    add("--users-per-bucket", type=int, default=5_000, help="about so many")
    add("--dimensions", type=int, nargs="+", default=[64, 128, 256], help="of the vectors that are searched")
    add("--search-users", type=int, default=500, help="users whose nearest items are searched")
    add("--top", type=int, default=100, help="candidates of a user")
    add("--rounds", type=int, default=1, help="turns of every search engine; the fastest counts")
    add("--threads", type=int, default=os.cpu_count(), help="threads of every engine, CPUs of the job's cluster")
    add("--object-store-mb", type=int, default=3072, help="shared memory of the job's Ray cluster")
    add("--without-job", action="store_true", help="search vectors alone")
    add("--data", type=Path, help="where tables and vectors are made, and kept; else in a temporary directory")
    add("--out", type=Path, default=ROOT / "benchmarks" / "results", help="where recall.json and logs go")
    add("--timeout", type=float, default=3600.0, help="seconds after which an engine is ended")
    # fmt: on
    found = parser.parse_args()
    if found.items < 2 * found.top:
        parser.error("--items: less than twice --top")
    return found
