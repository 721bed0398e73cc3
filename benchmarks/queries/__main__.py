"""What it brings that the system knows what users typed: as a source of candidates, and as words that the ranker reads.

The course platform of `llmrec example courses`, one round: which courses suit each learner and which are of the topic
that he asks for is known. The same stages run with `recall.query` and `prompt.context` as configured, without either,
and with neither.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console

from benchmarks.speed.processes import ROOT, processor
from benchmarks.speed.report import Column, Say, difference, run, table
from llmrec import config
from llmrec.data import courses
from llmrec.data.courses import World
from llmrec.engine import stages
from llmrec.engine.session import connected
from llmrec.evaluation import known_truth
from llmrec.evaluation.bootstrap import interval
from llmrec.layout import Layout
from llmrec.local.example_courses import EXAMPLE, PLACES, make
from llmrec.schema import ITEM, USER
from llmrec.tables import buckets, rankings

RESAMPLES = 2000
BOTH = "recalled by and read"

COLUMNS: list[Column] = [
    ("the query is", lambda r: r["name"]),
    (f"right of {PLACES}", lambda r: f"{r['share']:.4f}"),
    ("less both's, 95%", lambda r: difference(r["less"])),
]


def main() -> None:
    run(options(), measure, show)


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    how = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queries", description=__doc__, formatter_class=how)
    add = parser.add_argument
    # fmt: off
    add("--learners", type=int, default=EXAMPLE.users, help="of the generated platform")
    add("--set", nargs="*", default=[], metavar="SETTING VALUE", help="of the jobs, as train.epochs 2")
    add("--out", type=Path, default=ROOT / "benchmarks" / "results" / "queries",
        help="where tables are kept; what is there already is reused")
    add("--json", type=Path, metavar="FILE", help="where all figures are written; OUT/figures.json if none")
    # fmt: on
    return parser.parse_args(arguments)


def measure(asked: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Every variant on the same world, as one report that JSON can hold."""
    world = make(asked.learners)
    settings = _settings(asked, world)
    lists = {}
    with connected(settings.cluster, settings.root):
        for name, variant in VARIANTS.items():
            chosen = variant(settings)
            for stage in stages.order(chosen):
                if stage != "evaluate":  # nothing is held out: the truth is known
                    stages.run(stage, chosen, say, reuse=True)
            lists[name] = pl.DataFrame(rankings.read(Layout.of(chosen).rankings))
            say(f"{name}: done")
    return {
        "setup": {"cpu": processor(), "learners": asked.learners, "courses": world.tables["items"].num_rows},
        **figures(world, lists),
    }  # fmt: skip


def figures(world: World, lists: dict[str, pl.DataFrame]) -> dict[str, Any]:
    """asked: who typed something, what is of the topic; new: of these, who has no history; suiting: all learners, what
    suits them. Of what a learner may take."""
    pool = courses.open_to(world)
    topic = courses.asked_for(world).join(pool, on=[USER, ITEM], how="semi")
    asking = topic[USER].unique(maintain_order=True)
    popular = known_truth.popular_lists(pool, pl.DataFrame(pl.from_arrow(world.interactions)), PLACES)
    lists = lists | {"unknown, by popularity": popular}
    groups = {
        "asked": (topic, asking),
        "new": (topic, asking.filter(asking.is_in(world.newcomers))),
        "suiting": (courses.suiting(world), pl.Series(USER, world.users[USER].to_pylist())),
    }
    return {name: {"users": len(users), "rows": _rows(lists, right, users)} for name, (right, users) in groups.items()}


def _rows(lists: dict[str, pl.DataFrame], right: pl.DataFrame, users: pl.Series) -> list[dict[str, Any]]:
    shares = {name: known_truth.shares_right(shown, right, users, PLACES) for name, shown in lists.items()}
    return [
        {"name": name, "share": float(of.mean()), "less": None if name == BOTH else _less(of, shares[BOTH])}
        for name, of in shares.items()
    ]


def _less(of: np.ndarray, others: np.ndarray) -> tuple[float, float, float]:
    low, high = interval(of - others, RESAMPLES, 0)
    return float((of - others).mean()), float(low), float(high)


def _settings(asked: argparse.Namespace, world: World) -> config.Config:
    raw = asked.out / "raw"
    where = []
    for name, of in EXAMPLE.tables(world).items():
        buckets.write_parquet(of, str(raw / f"{name}.parquet"))
        where += [f"--data.{name}", str(raw / f"{name}.parquet")]
    changed = [word if i % 2 else f"--{word}" for i, word in enumerate(asked.set)]
    return config.load(str(ROOT / EXAMPLE.config), ["--root", str(asked.out / "tables"), *where, *changed])


def _not_recalled(of: config.Config) -> config.Config:
    merge = tuple(name for name in of.recall.merge if name != "query")
    quotas = {name: places for name, places in of.recall.quotas.items() if name != "query"}
    return of.model_copy(update={"recall": of.recall.model_copy(update={"merge": merge, "quotas": quotas})})


def _not_read(of: config.Config) -> config.Config:
    return of.model_copy(update={"prompt": of.prompt.model_copy(update={"context": ""})})


# Those with the same ranker one after the other.
VARIANTS: dict[str, Callable[[config.Config], config.Config]] = {
    BOTH: lambda of: of,
    "read alone": _not_recalled,
    "recalled by alone": _not_read,
    "unknown": lambda of: _not_recalled(_not_read(of)),
}


def show(console: Console, report: dict[str, Any]) -> None:
    setup = report["setup"]
    console.print(f"{setup['cpu']}; {setup['learners']:,} learners, {setup['courses']:,} courses")
    for name, what in (
        ("asked", "of the topic asked for, all who asked"),
        ("new", "of the topic asked for, who asked without a history"),
        ("suiting", "suits, all learners"),
    ):
        of = report[name]
        console.print(table(f"{what}: {of['users']:,}", COLUMNS, of["rows"]))


if __name__ == "__main__":
    main()
