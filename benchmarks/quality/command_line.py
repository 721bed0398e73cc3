"""The command line's options."""

from __future__ import annotations

import argparse
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from benchmarks.quality.datasets import MOVIELENS, Dataset
from benchmarks.quality.fused import AVERAGED, FUSIONS
from benchmarks.quality.linked import METHODS
from benchmarks.quality.methods import IN_CONTEXT, MODULES, TITLES
from benchmarks.quality.rankers import VARIANTS
from benchmarks.quality.settings import CONTEXTS
from benchmarks.quality.splits import SPLITS, TEST
from benchmarks.speed.processes import ROOT

OURS = ("lm", "fused-without-lm", "fused")  # measured beside the baselines if nothing else is asked for
WITH_GRAPH = ("graph", "closeness", "fused-graph-without-lm", "fused-graph")
WITH_CONTEXT = ("popularity-in-context", "lm-context", "fused-in-context-without-lm", "fused-in-context")
ALONE = (*IN_CONTEXT, *METHODS, *VARIANTS, *AVERAGED, *FUSIONS)  # not for fusion by reciprocal rank


def _setting(parser: argparse.ArgumentParser, text: str) -> tuple[str, str, Any]:
    """(section, key, value) of SECTION.KEY=VALUE."""
    place, _, value = text.partition("=")
    section, _, key = place.partition(".")
    if not (section and key and value):
        parser.error(f"--set: '{text}' is not SECTION.KEY=VALUE")
    return section, key, yaml.safe_load(value)


def options(about: str, arguments: list[str] | None = None) -> argparse.Namespace:
    """What was asked for, with `methods` as a list of lists: a method's baselines, several for a fusion."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    # fmt: off
    add("--data", nargs="+", default=[MOVIELENS], metavar="DIR[:Ncore][:noiseN]",
        help=f"data sets: {MOVIELENS}, which is fetched, or folders with interactions.parquet (user_id, item_id, order "
        "or timestamp) and items.parquet (item_id, title); ':5core' leaves out whatever has fewer than 5 events; "
        "':noise10' puts random items in place of 10%% of each user's events but the last two")
    add("--methods", default="", metavar="NAME,...",
        help=f"if empty {', '.join((*MODULES, *OURS))}, and what the graph and contexts add to data that has them; "
        f"baselines, of which some joined by '+' are fused by reciprocal rank, others that know the context: "
        f"{', '.join(IN_CONTEXT)}, or the graph: {', '.join(METHODS)}, rankers: {', '.join(VARIANTS)}, "
        f"several of which are averaged: {', '.join(AVERAGED)}, "
        f"and what llmrec fuses by weights fitted on validation: {', '.join(FUSIONS)}")
    add("--splits", nargs="+", choices=SPLITS, default=[TEST], metavar="SPLIT",
        help="of validation, validation-4 (each of the four events before a user's last, which tells settings apart "
        "better), test, cold (a tenth of the items has no events in training; users with such a test item), cold-only "
        "(the same, ranked among such items)")
    add("--seeds", type=int, nargs="+", default=[0], help="of methods that draw numbers")
    add("--encoder", default="all-minilm-l6-v2", metavar="MODEL",
        help=f"an asset's name or the directory of a sentence-transformers model, for {TITLES}, which is left out, of "
        "fusions too, if this is empty")
    add("--tune", action="store_true",
        help="search every baseline's grid on validation and use the best; else the values in settings.py")
    add("--set", nargs="+", default=[], metavar="SECTION.KEY=VALUE",
        help="change settings of the rankers, as train.epochs=4; values as YAML")
    add("--trades", type=float, nargs="*", default=[0.1, 0.2, 0.3, 0.5, 0.7], metavar="SHARE",
        help="of relevance that a fusion's lists give for diversity, by the vectors of --encoder; none: no such table")
    add("--threads", type=int, default=1, help="of linear algebra and torch")
    add("--limit-minutes", type=float, default=float("inf"), metavar="MINUTES",
        help="start nothing new after so long; the next call goes on from there")
    add("--out", type=Path, default=ROOT / "benchmarks" / "results" / "quality",
        help="where ranks are kept; what is there is not measured again")
    add("--json", type=Path, metavar="FILE", help="where all figures are written; OUT/figures.json if none")
    # fmt: on
    found = parser.parse_args(arguments)
    found.methods = [name.split("+") for name in found.methods.split(",") if name]
    for name in chain.from_iterable(found.methods):
        if name not in (there := (*MODULES, *ALONE)):
            parser.error(f"--methods: no method '{name}'; there are {', '.join(there)}")
    for names in found.methods:
        if len(names) > 1 and (rankers := set(names) & set(ALONE)):
            parser.error(f"--methods: {'+'.join(names)}: {', '.join(sorted(rankers))} cannot be fused here")
    found.changed = [_setting(parser, text) for text in found.set]
    if any(not 0 < trade <= 1 for trade in found.trades):
        parser.error("--trades: more than 0 and at most 1")
    if found.threads < 1:
        parser.error("--threads: at least 1")
    return found


def methods_of(dataset: Dataset) -> list[list[str]]:
    """What is measured of a data set if nothing is asked for: what its graph and its contexts add, too."""
    names = [*MODULES, *OURS]
    names += WITH_GRAPH if dataset.edges is not None else ()
    names += WITH_CONTEXT if dataset.name in CONTEXTS else ()
    return [[name] for name in names]
