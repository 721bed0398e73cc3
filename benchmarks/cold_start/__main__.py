"""A day on which new items and new users come, through the same stages: who is shown what, and how right it is.

The ranker and the fusion are of the day before. On the day after, prepare, embed, recall, score and evaluate run with
what is new, once without and once with `recall.new` and `rerank.reserve`. What new users had, and known users of new
items, nobody has seen: it is the truth.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console

from benchmarks.cold_start.days import Days, movielens_days
from benchmarks.speed.processes import ROOT, processor
from benchmarks.speed.report import Column, Say, difference, run, table
from llmrec import config
from llmrec.engine import stages
from llmrec.engine.session import connected
from llmrec.engine.text_vectors import text_vectors
from llmrec.evaluation import known_truth
from llmrec.evaluation.bootstrap import interval
from llmrec.layout import Layout
from llmrec.ranker.ragged import Ragged
from llmrec.recall import content, search
from llmrec.schema import ITEM, RANK, TIMESTAMP, USER
from llmrec.tables import buckets, rankings

K, RESAMPLES = 10, 2000
SETTINGS = Path(__file__).parent / "settings.yaml"
MERGE = "retrieve,item_item,segment,text,popularity"
INTRODUCED = ["--recall.new.top", "1", "--recall.merge", f"new,{MERGE}", "--rerank.reserve", '{"new": 1}']

OF_USERS: list[Column] = [
    ("new users' lists by", lambda r: r["name"]),
    ("users with a list", lambda r: f"{r['listed']:,} of {r['users']:,}"),
    (f"right of {K}", lambda r: f"{r['precision']:.4f} [{r['low']:.4f}, {r['high']:.4f}]"),
    ("less popularity's, 95%", lambda r: difference(r["to_popularity"])),
]
OF_ITEMS: list[Column] = [
    ("new items shown by", lambda r: r["name"]),
    ("items shown", lambda r: f"{r['shown']:,} of {r['items']:,}"),
    ("places", lambda r: f"{r['places']:,}"),
    ("of them right", lambda r: "-" if r["precision"] is None else f"{r['precision']:.4f}"),
    ("known users' NDCG@10", lambda r: "-" if r["ndcg"] is None else f"{r['ndcg']:.4f}"),
]


def main() -> None:
    run(options(), measure, show)


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    how = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_start", description=__doc__, formatter_class=how)
    add = parser.add_argument
    # fmt: off
    add("--items", type=int, default=200, help="that come on the second day")
    add("--users", type=int, default=200, help="that come on the second day")
    add("--seed", type=int, default=0, help="of which these are")
    add("--set", nargs="*", default=[], metavar="SETTING VALUE", help="of the jobs, as train.epochs 2")
    add("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cold-start",
        help="where tables are kept; what is there already is reused")
    add("--json", type=Path, metavar="FILE", help="where all figures are written; OUT/figures.json if none")
    # fmt: on
    return parser.parse_args(arguments)


def measure(asked: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Both days, as one report that JSON can hold."""
    days = movielens_days(asked.items, asked.users, asked.seed)
    changed = [word if i % 2 else f"--{word}" for i, word in enumerate(asked.set)]
    first = _settings(asked.out, "first", days.first_items, days, changed)
    layout = Layout.of(first)
    with connected(first.cluster, first.root):
        for stage in ("prepare", "embed", "train", "recall", "fuse"):
            stages.run(stage, first, say, reuse=True)
        plain = ["--fusion.model", str(_kept(layout.fusion, asked.out / "fusion.json")), "--evaluate.bootstrap", "200"]
        runs = {}
        for name, more in (("without recall.new", []), ("with recall.new", INTRODUCED)):
            made = _settings(asked.out, "second", days.items, days, [*changed, *plain, *more])
            done = {
                stage: stages.run(stage, made, say) for stage in ("prepare", "embed", "recall", "score", "evaluate")
            }
            runs[name] = {
                "lists": pl.DataFrame(rankings.read(layout.rankings)).select(USER, RANK, ITEM), "embed": done["embed"],
                "ndcg": done["evaluate"]["all_users"][0]["values"]["ndcg@10"],
            }  # fmt: skip
    others = _other_lists(days, layout)
    return {
        "setup": {"cpu": processor(), "items": asked.items, "users": asked.users, "seed": asked.seed},
        "encoded": {name: run["embed"]["encoded"] for name, run in runs.items()},
        "new_users": of_users(days, {name: run["lists"] for name, run in runs.items()} | others["users"]),
        "new_items": [
            *(of_items(name, run["lists"], days, run["ndcg"]) for name, run in runs.items()),
            *(of_items(name, lists, days, None) for name, lists in others["items"].items()),
        ],
    }  # fmt: skip


def _settings(out: Path, day: str, items: pl.DataFrame, days: Days, arguments: list[str]) -> config.Config:
    raw = out / "raw" / day
    files = {"items": items, "users": days.users, "interactions": days.log}
    if day == "first":
        files["users"] = days.users.filter(~pl.col(USER).is_in(days.new_users))
    for name, frame in files.items():
        buckets.write_parquet(frame.to_arrow(), str(raw / f"{name}.parquet"))
    where = [word for name in files for word in (f"--data.{name}", str(raw / f"{name}.parquet"))]
    return config.load(str(SETTINGS), ["--root", str(out / "tables"), *where, *arguments])


def _kept(uri: str, file: Path) -> Path:
    file.write_bytes(Path(uri).read_bytes())
    return file


def _other_lists(days: Days, layout: Layout) -> dict[str, dict[str, pl.DataFrame]]:
    """What popularity shows to new users, and what is nearest by text among the new items, or drawn, to known ones."""
    ids = buckets.catalogue_ids(layout.items)
    vectors, known = text_vectors(layout, ids, "this benchmark"), np.asarray(ids)
    popular = days.log[ITEM].value_counts(sort=True)[ITEM][:K].to_list()
    events = days.log.sort(USER, TIMESTAMP)
    events = events.with_columns(row=pl.Series(np.searchsorted(known, events[ITEM])))
    by_user = events.group_by(USER, maintain_order=True).agg("row")
    histories = Ragged.of([np.asarray(rows, np.int32) for rows in by_user["row"].to_list()])
    new = np.searchsorted(known, sorted(days.new_items))
    nearest = search.nearest(content.weighted(histories, vectors, 0.5), np.asarray(vectors[new]), None, 1)
    drawn = np.random.default_rng(0).choice(new, len(by_user))

    def one_each(rows: np.ndarray, users: pl.Series) -> pl.DataFrame:
        return pl.DataFrame({USER: users, ITEM: known[rows]}).with_columns(pl.lit(K).alias(RANK))

    with_one = by_user[USER].filter(pl.Series(nearest.items.lengths > 0))
    to_all = {
        USER: np.repeat(days.new_users, K), RANK: np.tile(np.arange(1, K + 1), len(days.new_users)),
        ITEM: np.tile(popular, len(days.new_users)),
    }  # fmt: skip
    return {
        "users": {"popularity": pl.DataFrame(to_all)},
        "items": {
            "popularity": pl.DataFrame(to_all).clear(),
            "the nearest by text, one a user": one_each(new[nearest.items.values], with_one),
            "one a user, drawn": one_each(drawn, by_user[USER]),
        },
    }


def of_users(days: Days, lists: Mapping[str, pl.DataFrame]) -> list[dict[str, Any]]:
    users = pl.Series(USER, days.new_users)
    right = {}
    for name, shown in lists.items():
        mine = shown.filter(pl.col(USER).is_in(days.new_users) & (pl.col(RANK) <= K))
        right[name] = known_truth.shares_right(mine, days.truth, users, K), mine
    base = right["popularity"][0]
    rows = []
    for name, (values, mine) in right.items():
        low, high = interval(values, RESAMPLES, 0)
        less = values - base
        to_popularity = (float(less.mean()), *map(float, interval(less, RESAMPLES, 0)))
        rows.append({
            "name": name, "users": len(users), "listed": mine[USER].n_unique(), "precision": float(values.mean()),
            "low": float(low), "high": float(high), "to_popularity": None if name == "popularity" else to_popularity,
        })  # fmt: skip
    return rows


def of_items(name: str, shown: pl.DataFrame, days: Days, ndcg: float | None) -> dict[str, Any]:
    """places: of known users' lists; right: of those, where the user had the item."""
    theirs = shown.filter(pl.col(ITEM).is_in(days.new_items) & (pl.col(RANK) <= K))
    known = theirs.filter(~pl.col(USER).is_in(days.new_users))
    right = known.join(days.truth, [USER, ITEM], "semi").height
    return {
        "name": name, "items": len(days.new_items), "shown": theirs[ITEM].n_unique(), "places": known.height,
        "precision": right / known.height if known.height else None, "ndcg": ndcg,
    }  # fmt: skip


def show(console: Console, report: dict[str, Any]) -> None:
    setup = report["setup"]
    console.print(f"{setup['cpu']}; {setup['items']:,} new items, {setup['users']:,} new users")
    console.print(f"texts encoded on the second day: {next(iter(report['encoded'].values())):,}")
    console.print(table("new users", OF_USERS, report["new_users"]))
    console.print(table("new items", OF_ITEMS, report["new_items"]))


if __name__ == "__main__":
    main()
