"""The command line's options."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.speed.processes import ROOT


def options(about: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    # fmt: off
    add("--pairs", type=float, nargs="+", default=[10, 100, 300], metavar="MILLIONS", help="sizes, in million pairs")
    add("--per-user", type=int, default=100, help="candidates of a user")
    add("--items", type=int, default=100_000, help="items in the catalogue")
    add("--events", type=int, default=20, help="items in a user's history")
    add("--users-per-bucket", type=int, default=20_000, help="about so many")
    add("--full", action="store_true", help="candidates carry recall scores and sources, which the peers leave out")
    add("--top-k", type=int, default=10, help="rows of a user in the rankings")
    add("--rounds", type=int, default=1, help="turns of every engine; the fastest counts")
    add("--threads", type=int, default=os.cpu_count(), help="threads of every engine, actors of the job")
    add("--object-store-mb", type=int, default=512, help="shared memory of the job's Ray cluster")
    add("--all", action="store_true",
        help="every formulation at every size, not only at the smallest, which otherwise decides for the others")
    add("--data", type=Path, help="where tables are made, and kept for the next call; else in a temporary directory")
    add("--out", type=Path, default=ROOT / "benchmarks" / "results", help="where scale.json, scale.png and logs go")
    add("--timeout", type=float, default=3600.0, help="seconds after which an engine is ended")
    # fmt: on
    found = parser.parse_args()
    found.pairs = sorted({round(1e6 * millions) for millions in found.pairs})
    if found.pairs[0] < found.per_user:
        parser.error("--pairs: less than one user's candidates")
    if found.items < found.per_user + found.events:
        parser.error("--items: less than one user's candidates and history")
    return found
