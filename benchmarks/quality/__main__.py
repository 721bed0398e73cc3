"""Ranking quality of recommenders in one harness: leave-one-out by time, the whole catalogue ranked, seen items left
out. Prints a table per data set; ranks are kept, so that a second run only prints, and a killed one goes on.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from benchmarks.quality import cache, datasets, figures, fused, protocol, rankers, report, settings, titles, tuning
from benchmarks.quality.cache import OutOfTimeError
from benchmarks.quality.command_line import methods_of, options
from benchmarks.quality.contextual import InContext
from benchmarks.quality.datasets import Dataset
from benchmarks.quality.diversity import curve
from benchmarks.quality.language_model import LanguageModel
from benchmarks.quality.methods import TITLES, Baseline, Fusion, Method, baseline
from benchmarks.quality.splits import TEST, split
from benchmarks.speed.processes import processor
from benchmarks.speed.report import Say, run
from llmrec import assets


def main() -> None:
    asked = options(str(__doc__))
    torch.set_num_threads(asked.threads)
    with threadpool_limits(asked.threads):
        run(asked, measure, report.show)


def measure(asked: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Every method on every data set, as one report that JSON can hold."""
    deadline = time.monotonic() + 60 * asked.limit_minutes
    not_run: dict[str, str] = {}
    measured = partial(cache.measured, asked.out, deadline)
    read = [datasets.read(source) for source in asked.data]
    found = [on_dataset(asked, dataset, measured, not_run, say) for dataset in read]
    setup = {"cpu": processor(), "threads": asked.threads, "seeds": asked.seeds}
    return {"setup": setup, "datasets": found, "not_run": not_run}


def on_dataset(
    asked: argparse.Namespace, dataset: Dataset, measured: tuning.Measure, not_run: dict[str, str], say: Say
) -> dict[str, Any]:
    """The figures of one data set; what was left out is added to `not_run` with the reason."""
    methods = asked.methods or methods_of(dataset)
    tuned: dict[str, list[tuple[settings.Settings, float]]] = {}
    vectors = None
    if asked.encoder and any(TITLES in names or names[0] in fused.FUSIONS for names in methods):
        vectors = titles.vectors(dataset, Path(assets.resolve_model(asked.encoder)), asked.out)

    def ranker(name: str) -> LanguageModel:
        sections = rankers.sections(dataset.name, name)
        for section, key, value in asked.changed:
            sections.setdefault(section, {})[key] = value
        return LanguageModel(name, sections, asked.out / "work", asked.threads, say)

    def of_settings(name: str) -> Baseline | InContext:
        """A baseline, its settings searched first if that was asked for."""
        if asked.tune and name in settings.GRID and name not in tuned:
            tuned[name] = tuning.tried(dataset, name, vectors, measured)
            say(f"{dataset.name} {name}: ndcg@10 {tuned[name][0][1]:.4f} on validation with {tuned[name][0][0]}")
        chosen = tuned[name][0][0] if name in tuned else settings.of(dataset.name, name)
        return baseline(name, chosen, vectors)

    def made(names: list[str]) -> Method:
        if names[0] in fused.FUSIONS:
            members, how = fused.FUSIONS[names[0]]
            of = [alone(name) for name in members if name != TITLES or vectors is not None]
            return fused.Fused(names[0], of, how, asked.out / "best", fused.SILENT)
        return alone(names[0]) if len(names) == 1 else Fusion([of_settings(name) for name in names])

    def alone(name: str) -> fused.Member:
        if name in fused.AVERAGED:
            member, count = fused.AVERAGED[name]
            return fused.Averaged(name, ranker(member), count)
        return ranker(name) if name in rankers.VARIANTS else of_settings(name)

    splits = {name: split(dataset, name) for name in asked.splits}
    kept: dict[str, list] = {name: [] for name in splits}
    curves: dict[str, Any] = {}
    for names in methods:
        what = f"{dataset.name} {'+'.join(names)}"
        if TITLES in names and vectors is None:
            not_run[what] = "it needs an --encoder"
            continue
        try:
            method = made(names)
            seeds = asked.seeds if method.seeded else asked.seeds[:1]
            for name, of in splits.items():
                runs = [measured(dataset, method, name, seed) for seed in seeds]
                kept[name].append((figures.row(method, seeds, runs, protocol.segments(of)), runs))
                say(f"{what}: ndcg@10 {kept[name][-1][0]['ndcg@10']:.4f} on {name}")
            if isinstance(method, fused.Fused) and vectors is not None and asked.trades:
                best = method.best(dataset, seeds[0])
                curves[method.name] = curve(best, splits[TEST].target, vectors[0], asked.trades)
        except OutOfTimeError:
            not_run[what] = "out of time; another call goes on from here"
    return {
        "name": dataset.name, "users": len(dataset.users), "items": dataset.items.num_rows,
        "events": len(dataset.histories.values), "tuned": tuned, "diversity": curves,
        "splits": {
            name: {
                "targets": len(splits[name].target),
                "methods": figures.to_best(*zip(*rows, strict=True)), "added": figures.added(*zip(*rows, strict=True)),
            }
            for name, rows in kept.items() if rows
        },
    }  # fmt: skip


if __name__ == "__main__":
    main()
