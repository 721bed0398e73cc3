"""What pictures bring a ranker of items as vectors: where they alone tell what users like, and where they tell nothing.

Two generated data sets (see pictures.py) in the protocol of benchmarks.quality: leave-one-out, the whole catalogue but
what a user had; and once more with a tenth of the items without events in training.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.images import pictures
from benchmarks.quality import cache, datasets, protocol, rankers
from benchmarks.quality.language_model import LanguageModel
from benchmarks.quality.splits import COLD, TEST, split
from benchmarks.speed.processes import ROOT, processor
from benchmarks.speed.report import Column, Say, run, table
from llmrec.ranker.ragged import Ragged

TRAIN = {"epochs": 16, "users_per_step": 32}
KINDS = (pictures.TELLS, pictures.NOISE)
SPLITS = {TEST: "all items", COLD: "items without training events"}
COLUMNS: list[Column] = [
    ("pictures", lambda r: r["data"]),
    ("asked for", lambda r: SPLITS[r["split"]]),
    ("users", lambda r: f"{r['users']:,}"),
    ("AUC without", lambda r: f"{r['off']:.4f}"),
    ("with", lambda r: f"{r['on']:.4f}"),
    ("difference, 95%", lambda r: f"{r['difference']:+.4f} [{r['low']:+.4f}, {r['high']:+.4f}]"),
    ("by the truth", lambda r: f"{r['truth']:.4f}"),
]


def main() -> None:
    asked = options()
    torch.set_num_threads(asked.threads)
    run(asked, measure, show)


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.images", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    # fmt: off
    add("--pictures", nargs="+", choices=KINDS, default=KINDS, help="of which of the two data sets")
    add("--users", type=int, default=1500)
    add("--items", type=int, default=240)
    add("--seed", type=int, default=0, help="of the data and of training")
    add("--base", default="smollm2-135m-instruct", metavar="MODEL", help="the backbone, of which two layers are kept")
    add("--encoder", default="all-minilm-l6-v2", metavar="MODEL", help="of the titles")
    add("--image-encoder", default="", metavar="DIRECTORY", help="empty: a small one with random weights")
    add("--threads", type=int, default=1)
    add("--out", type=Path, default=ROOT / "benchmarks" / "results" / "images",
        help="where data, ranks and checkpoints are kept; what is there is not measured again")
    add("--json", type=Path, metavar="FILE", help="where all figures are written; OUT/figures.json if none")
    # fmt: on
    return parser.parse_args(arguments)


def measure(asked: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Every data set and split, without and with pictures, as one report that JSON can hold."""
    encoder = asked.image_encoder or str(pictures.vision_encoder(asked.out / "vision"))
    rows = []
    for kind in asked.pictures:
        name = f"{kind}-{asked.users}-{asked.items}-{asked.seed}"
        made = pictures.write(asked.out / "data" / name, kind, asked.users, asked.items, asked.seed)
        dataset = datasets.read(str(made.folder))
        for split_name in SPLITS:
            measured = partial(cache.measured, asked.out, time.monotonic() + 1e9, dataset)
            off, on = (
                measured(_ranker(asked, photos, say), split_name, asked.seed)
                for photos in ({}, {"images": "photo", "image_root": f"{made.folder}/photos", "image_encoder": encoder})
            )
            rows.append(_row(kind, split_name, dataset, made, off.ranks, on.ranks))
            say(f"{kind}, {SPLITS[split_name]}: {rows[-1]['off']:.4f} without, {rows[-1]['on']:.4f} with")
    setup = {
        "cpu": processor(), "threads": asked.threads, "users": asked.users, "items": asked.items, "seed": asked.seed,
        "encoder": asked.image_encoder or "random weights",
    }  # fmt: skip
    return {"setup": setup, "effects": rows}


def _ranker(asked: argparse.Namespace, photos: dict[str, str], say: Say) -> LanguageModel:
    sections = rankers.sections("pictured", "lm")
    sections["model"]["base"] = asked.base
    sections["train"] |= TRAIN
    sections["items"] |= {"encoder": asked.encoder, **photos}
    return LanguageModel("lm-images" if photos else "lm", sections, asked.out / "work", asked.threads, say)


def _row(
    kind: str, split_name: str, dataset: datasets.Dataset, made: pictures.Pictured, off: np.ndarray, on: np.ndarray
) -> dict[str, Any]:
    """AUC: how often the true item is ranked before another one that the user had not had; of some sixty items that
    suit him he took any, so that the first ten places say little. truth: that of one who knows every item's look, and
    ranks by how often the user took it."""
    asked = split(dataset, split_name)
    others = asked.candidates.sum() - 1 - asked.seen.lengths
    by_truth = protocol.target_ranks(partial(by_look, made.looks), asked)
    without, with_, truth = (1 - (ranks - 1) / others for ranks in (off, on, by_truth))
    return {
        "data": kind, "split": split_name, "users": len(on), "off": float(without.mean()), "on": float(with_.mean()),
        "truth": float(truth.mean()), **protocol.paired(with_, without),
    }  # fmt: skip


def by_look(looks: np.ndarray, histories: Ragged) -> np.ndarray:
    """float32[m, n_items]."""
    users = np.repeat(np.arange(len(histories)), histories.lengths)
    taken = np.zeros((len(histories), len(pictures.LOOKS)), np.float32)
    np.add.at(taken, (users, looks[histories.values]), 1)
    return taken[:, looks]


def show(console: Console, report: dict[str, Any]) -> None:
    setup = report["setup"]
    console.print(f"{setup['cpu']}, {setup['threads']} threads, {setup['users']:,} users, {setup['items']:,} items")
    console.print(table("what pictures bring", COLUMNS, report["effects"]))


if __name__ == "__main__":
    main()
