"""Ten successive periods of MovieLens: a ranker updated with each, one that never is, one trained anew each time.

When a period begins, each ranker ranks the whole catalogue for the period's users from what they had before; what they
have in it is the truth, and then known to the next period. Nothing is validated or chosen on it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import xxhash
from rich.console import Console

from benchmarks.quality import rankers
from benchmarks.quality.language_model import loaded, user_scores
from benchmarks.replay.periods import Period, periods
from benchmarks.speed.processes import ROOT, processor
from benchmarks.speed.report import Column, Say, difference, run, table
from llmrec import assets, config, storage
from llmrec.data import movielens
from llmrec.engine import stages
from llmrec.engine.session import connected
from llmrec.evaluation import bootstrap, metrics
from llmrec.layout import Layout
from llmrec.ranker.ragged import Ragged
from llmrec.schema import ITEM, USER
from llmrec.tables import buckets

K, RESAMPLES = 10, 2000
METRIC = f"ndcg@{K}"
VERSION = 1  # of what a training gives for the same settings
FROZEN, UPDATED, ANEW = "frozen", "updated", "anew"
POLICIES = (FROZEN, UPDATED, ANEW)
DAILY = {"new_events": True, "epochs": 3, "learning_rate": 2.5e-4, "warmup_share": 0.05}

ROWS: list[Column] = [
    ("ranker", lambda r: r["policy"]),
    (f"NDCG@{K}", lambda r: f"{r['mean']:.4f} [{r['low']:.4f}, {r['high']:.4f}]"),
    ("less the frozen\none's, 95%", lambda r: difference(r["to_frozen"])),
    ("less the one's\ntrained anew, 95%", lambda r: difference(r["to_anew"])),
    ("first\nhalf", lambda r: f"{r['halves'][0]:.4f}"),
    ("second\nhalf", lambda r: f"{r['halves'][1]:.4f}"),
    ("seconds of\ntraining", lambda r: f"{r['seconds']:,.0f}"),
    ("events\ntrained", lambda r: f"{r['decisions']:,}"),
]
PERIODS: list[Column] = [
    ("period", lambda r: f"{r['period']}"),
    ("events known", lambda r: f"{r['known']:,}"),
    ("users", lambda r: f"{r['users']:,}"),
    ("with a history", lambda r: f"{r['known_users']:,}"),
    *((policy, lambda r, policy=policy: f"{r[policy]:.4f}") for policy in POLICIES),
]


def main() -> None:
    run(options(), measure, show)


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    how = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__, formatter_class=how)
    add = parser.add_argument
    # fmt: off
    add("--periods", type=int, default=10)
    add("--known", type=float, default=0.5, help="share of the events that are known when the first period begins")
    add("--seed", type=int, default=0, help="of every training")
    add("--threads", type=int, default=2, help="of ranking")
    add("--set", nargs="*", default=[], metavar="SETTING VALUE",
        help="of every training, but for what --daily says of updates, as train.epochs 2")
    add("--daily", nargs="*", default=[], metavar="SETTING VALUE", help="of train of a period's update, as epochs 1")
    add("--out", type=Path, default=ROOT / "benchmarks" / "results" / "replay",
        help="where rankers are kept; what is there already is reused")
    add("--json", type=Path, metavar="FILE", help="where all figures are written; OUT/figures.json if none")
    # fmt: on
    return parser.parse_args(arguments)


def measure(asked: argparse.Namespace, say: Say) -> dict[str, Any]:
    """All periods by all rankers, as one report that JSON can hold."""
    torch.set_num_threads(asked.threads)
    found = movielens.tables(assets.fetch("ml-100k"))
    items, log = (pl.DataFrame(found[kind]) for kind in ("items", "interactions"))
    days = periods(log, asked.periods, asked.known)
    values: dict[str, list[np.ndarray]] = {policy: [] for policy in POLICIES}
    trained: dict[str, dict[Path, dict[str, Any]]] = {policy: {} for policy in POLICIES}
    first = _settings(asked, days[0], items, {})
    with connected(first.cluster, first.root):
        for day in days:
            for policy in POLICIES:
                place, how = _ranker(asked, policy, day.number)
                if not (place / "trained.json").exists():
                    made = _settings(asked, day, items, how)
                    for stage in ("prepare", "embed"):
                        stages.run(stage, made, say, reuse=True)
                    say(f"period {day.number}: {policy}")
                    done = stages.run("train", made, say)
                    shutil.copytree(Layout.of(made).ranker, place, dirs_exist_ok=True)
                    storage.write_json(str(place / "trained.json"), done)
                trained[policy][place] = json.loads((place / "trained.json").read_text())
            # What is known of the day, whichever ranker was trained last.
            made = _settings(asked, day, items, {})
            for stage in ("prepare", "embed"):
                stages.run(stage, made, say, reuse=True)
            for policy in POLICIES:
                place, _ = _ranker(asked, policy, day.number)
                values[policy].append(_measured(place, Layout.of(made), day, asked.threads))
                say(f"period {day.number}: {policy} {METRIC} {values[policy][-1].mean():.4f}")
    return {
        "setup": {
            "cpu": processor(), "threads": asked.threads, "seed": asked.seed, "set": asked.set, "daily": _daily(asked),
        },
        "rankers": [_row(policy, values, list(trained[policy].values()), asked.seed) for policy in POLICIES],
        "periods": [
            {
                "period": day.number, "known": len(day.known), "users": day.truth[USER].n_unique(),
                "known_users": len(day.known_users),
            } | {policy: float(values[policy][i].mean()) for policy in POLICIES}
            for i, day in enumerate(days)
        ],
    }  # fmt: skip


def _ranker(asked: argparse.Namespace, policy: str, number: int) -> tuple[Path, dict[str, Any]]:
    """Where the ranker of a policy lies that serves a period, and what its training has of its own."""
    shared = rankers.sections("ml-100k", "lm")
    what = [asked.periods, asked.known, asked.seed, asked.set, _daily(asked), shared, VERSION]
    folder = asked.out / f"rankers-{xxhash.xxh3_64_hexdigest(json.dumps(what, sort_keys=True).encode())}"
    if policy == FROZEN or number == 1:
        return folder / "first", {}
    place = folder / f"{policy}-{number}"
    if policy == ANEW:
        return place, {}
    earlier, _ = _ranker(asked, policy, number - 1)
    return place, {"start": str(earlier), **_daily(asked)}


def _daily(asked: argparse.Namespace) -> dict[str, Any]:
    return DAILY | dict(zip(asked.daily[::2], asked.daily[1::2], strict=True))


def _settings(asked: argparse.Namespace, day: Period, items: pl.DataFrame, train: dict[str, Any]) -> config.Config:
    """Of the day's tables, which are written; train: beside the settings that all trainings share."""
    raw = asked.out / "raw"
    for name, frame in (("items", items), ("interactions", day.known)):
        buckets.write_parquet(frame.to_arrow(), str(raw / f"{name}.parquet"))
    values: dict[str, Any] = {k: dict(v) for k, v in rankers.sections("ml-100k", "lm").items()}
    values["data"] = {
        "items": str(raw / "items.parquet"), "interactions": str(raw / "interactions.parquet"), "split": "none",
        "min_user_events": 1, "buckets": 4,
    }  # fmt: skip
    values["train"] |= {"seed": asked.seed, "events": "all"}
    changed = [word if i % 2 else f"--{word}" for i, word in enumerate(asked.set)]
    made = config.build({"root": str(asked.out / "tables"), **values}, changed, "benchmarks.replay")
    return config.varied(made, {f"train.{name}": value for name, value in train.items()}, "benchmarks.replay: --daily")


def _measured(place: Path, layout: Layout, day: Period, threads: int) -> np.ndarray:
    """float64[users] of the metric, users of the period by ascending id."""
    ranker, prompts = loaded(layout, threads, place)
    known = np.asarray(prompts.catalogue.ids)
    users = day.truth[USER].unique().sort()
    rows = day.known.filter(pl.col(USER).is_in(users.implode()))
    rows = rows.with_columns(pl.Series("row", np.searchsorted(known, rows[ITEM])))
    had = dict(rows.group_by(USER).agg("row").iter_rows())
    histories = [np.asarray(had.get(user, []), np.int32) for user in users]
    scores = user_scores(ranker, prompts, Ragged.of(histories))
    for row, history in zip(scores, histories, strict=True):
        row[history] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    truth = {str(u): [str(i) for i in of] for u, of in day.truth.group_by(USER).agg(ITEM).sort(USER).iter_rows()}
    ranked = {str(u): [str(i) for i in known[top]] for u, top in zip(users, best, strict=True)}
    return metrics.per_user(truth, ranked, [K], ["ndcg"])[METRIC]


def _row(
    policy: str, values: dict[str, list[np.ndarray]], trained: Sequence[dict[str, Any]], seed: int
) -> dict[str, Any]:
    ours = np.concatenate(values[policy])
    low, high = bootstrap.interval(ours, RESAMPLES, seed)
    half = len(values[policy]) // 2

    def less(other: str) -> tuple[float, float, float] | None:
        if other == policy:
            return None
        apart = ours - np.concatenate(values[other])
        return float(apart.mean()), *map(float, bootstrap.interval(apart, RESAMPLES, seed))

    return {
        "policy": policy, "mean": float(ours.mean()), "low": float(low), "high": float(high),
        "to_frozen": less(FROZEN), "to_anew": less(ANEW),
        "halves": [float(np.concatenate(part).mean()) for part in (values[policy][:half], values[policy][half:])],
        "seconds": sum(done["seconds"] for done in trained), "decisions": sum(done["decisions"] for done in trained),
        "trainings": len(trained),
    }  # fmt: skip


def show(console: Console, report: dict[str, Any]) -> None:
    setup = report["setup"]
    console.print(f"{setup['cpu']}, {setup['threads']} threads; set: {' '.join(setup['set']) or 'nothing'}")
    console.print(f"an update: {setup['daily']}")
    console.print(table("periods", PERIODS, report["periods"]))
    console.print(table("all users of all periods", ROWS, report["rankers"]))


if __name__ == "__main__":
    main()
