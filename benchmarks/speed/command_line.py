"""The command line's options."""

from __future__ import annotations

import argparse
import os
from itertools import product
from pathlib import Path

from benchmarks.speed.engines import ENGINES, chosen, of_text
from benchmarks.speed.environments import INTERPRETERS
from benchmarks.speed.processes import ROOT
from benchmarks.speed.request import Shape

HEADLINE = Shape(160, 12, 100)
ITEMS_SHAPE = Shape(600, 12, 100)  # the text of 50 films
GRID = [Shape(*shape) for shape in product((64, 160, 500), (4, 12, 40), (20, 100))]


def options(about: str) -> argparse.Namespace:
    """What was asked for, with `engines` as Engine objects and `shape` as a list of shapes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    families = ",".join(dict.fromkeys(e.family for e in ENGINES))
    # fmt: off
    add("--shapes", choices=("headline", "grid", "none"), default="headline",
        help="headline: trunk 160, item 12, 100 candidates; grid: trunk 64/160/500, item 4/12/40, candidates 20/100; "
        "none: no engine is timed, for the curves or training alone")
    add("--shape", type=Shape.parse, action="append", metavar="TRUNKxITEMxCANDIDATES",
        help="instead of --shapes; may be repeated")
    add("--engines", default=families, help="comma-separated families, or single engines such as llmrec-bfloat16")
    add("--items", action="store_true",
        help=f"also time items as vectors (llmrec-items) beside the text of the same pairs, {ITEMS_SHAPE}, a history "
        "of 50 items, in sentence-transformers and llmrec")
    add("--users", type=int, default=4, help="users per shape; slow engines are timed on fewer")
    add("--rounds", type=int, default=1, help="turns of every engine; the fastest counts")
    add("--repeats", type=int, default=3, help="passes in a turn at most; the fastest counts")
    add("--seconds", type=float, default=30.0,
        help="about the longest pass: decides on how many users a slow engine is timed, at least one")
    add("--threads", type=int, default=os.cpu_count(), help="threads of every engine")
    add("--curves", action="store_true",
        help="time and memory of the llmrec engines over candidates (20 to 400) and users (1 to 16)")
    add("--training", action="store_true",
        help="forward and backward pass of one user, packed against pair by pair, float32")
    add("--out", type=Path, default=ROOT / "benchmarks" / "results",
        help="where report.json, plots and the engines' logs go")
    add("--timeout", type=float, default=3600.0, help="seconds after which an engine is ended")
    for name in INTERPRETERS:
        add(f"--{name}-python", help=f"interpreter of an environment with {name}; without it one is made in the cache "
            "directory on first use, which takes minutes")
    # fmt: on
    found = parser.parse_args()
    try:
        found.engines = chosen(found.engines.split(","))
    except ValueError as error:
        parser.error(str(error))
    if not found.items and not of_text(found.engines):
        parser.error("these engines are timed with --items only")
    if found.shape is None:
        found.shape = {"headline": [HEADLINE], "grid": GRID, "none": []}[found.shapes]
    return found
