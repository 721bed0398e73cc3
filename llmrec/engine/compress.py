"""compress: smaller rankers made of the trained one, and what each takes, gives and changes.

A pruned ranker keeps the first layers and is trained on from there with the whole ranker as its teacher. All of them,
in every precision, then score the same candidates by the score stage, and are held against the held-out events and
against the lists of the whole ranker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from llmrec import assets, config, storage
from llmrec.engine import ledger, recall, score, train
from llmrec.engine.kept_lists import nothing_held_out
from llmrec.engine.publish import publish
from llmrec.engine.ranking_lists import lists_of, lists_of_rows
from llmrec.engine.run import PLAN, resolve
from llmrec.engine.units import each, reporting
from llmrec.errors import UserError
from llmrec.evaluation import bootstrap, metrics
from llmrec.layout import Layout
from llmrec.ranker.card import read_card
from llmrec.ranker.model import Ranker, layers_of
from llmrec.schema import BUCKET, ITEM, ITEMS, RANK, USER
from llmrec.tables import buckets

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
K = 10
TAUGHT = 50  # items of a user that the whole ranker teaches by


@dataclass(frozen=True)
class Variant:
    """A ranker in a precision.

    layers: how many; layer_megabytes: their weights as they are multiplied; megabytes: with everything else that an
    actor holds of it, in float32; pairs_per_second: of all actors while they scored; ndcg: at 10, of users with events
    held out; change: the 95% bootstrap interval of its difference from the first variant, user by user; overlap: the
    mean share of a user's first 10 items in the first variant that are among his first 10 here.
    """

    name: str
    ranker: str
    layers: int
    precision: str
    layer_megabytes: float
    megabytes: float
    pairs_per_second: float
    ndcg: float
    change: tuple[float, float]
    overlap: float


@dataclass(frozen=True)
class Compressed:
    """variants: the whole ranker in the first precision first. users: with held-out events; lists: all users;
    train_seconds: of each pruned ranker, by its layers."""

    users: int
    lists: int
    variants: list[Variant]
    train_seconds: dict[str, float]


def compress(
    settings: config.Config, layout: Layout, say: Callable[[str], None], layers: Sequence[int],
    precisions: Sequence[str],
) -> Compressed:  # fmt: skip
    """Make the pruned rankers (they stay under models/compressed) and measure every one in every precision.

    layers: of each pruned ranker, less than the whole one has; precisions: of `BYTES`, none twice.

    Raises:
        UserError: there is no trained ranker, it has no more layers than asked for, or nothing was held out.
    """
    whole = storage.absolute(settings.score.model) if settings.score.model else layout.ranker
    card = read_card(storage.local_directory(whole, assets.cache_directory() / "models"))
    for depth in layers:
        if not 1 <= depth < card.layers:
            raise UserError(f"--layers {depth}: {whole} has {card.layers} layers; give numbers from 1 to one less")
    truth = buckets.bucket_files(layout.targets)
    rankers, seconds = {_named(card.layers): (whole, card.layers)}, dict[str, float]()
    storing = layout.scratch("compress")
    _clear(layout, storing)  # of one that was cut off
    if layers:
        teacher = _teach(settings, layout, whole, storing, say)
        for depth in sorted(set(layers), reverse=True):
            say(f"{depth} of {card.layers} layers, taught by all" + _no_promise(settings))
            made = train.train(_student(settings, whole, depth, teacher), layout.compressed(f"layers-{depth}"), say)
            rankers[_named(depth)] = (made.ranker, depth)
            seconds[_named(depth)] = round(made.seconds, 1)
    variants: list[Variant] = []
    first: dict[str, Any] | None = None
    for name, (uri, depth) in rankers.items():
        of_layers, of_others = _weights(uri)
        for precision in precisions:
            say(f"{name}, {precision}")
            output = storage.join(storing, f"run-{len(variants)}")
            asked = _scoring(settings, model=uri, precision=precision, output=output, top_k=K)
            done = _scored_anew(asked, layout, say)
            values = _compared_with(first, done, layout, truth, say)
            first = first or values
            change = bootstrap.interval(
                values["ndcg"] - first["ndcg"], settings.evaluate.bootstrap, settings.evaluate.seed
            )
            size = of_layers * BYTES[precision]
            variants.append(
                Variant(
                    f"{name}, {precision}", uri, depth, precision, size / 1e6, (size + 4 * of_others) / 1e6,
                    done.pairs_per_second, float(values["ndcg"].mean()), change, float(values["overlap"].mean()),
                )
            )  # fmt: skip
    assert first is not None
    _clear(layout, storing)
    return Compressed(len(first["ndcg"]), len(first["overlap"]), variants, seconds)


def _clear(layout: Layout, storing: str) -> None:
    """Delete the tables that were scored only to be measured or to teach, and what tells of their runs."""
    for uri, _ in storage.list_files(layout.runs, f"/{PLAN}"):
        if storage.read_json(uri)["output"].startswith(f"{storing}/"):
            storage.delete(uri.removesuffix(f"/{PLAN}"))
    storage.delete(storing)


def _no_promise(settings: config.Config) -> str:
    """What has to be said of a student where training is private."""
    return "" if settings.train.private.epsilon is None else "; without privacy: train.private is not of it"


def _named(layers: int) -> str:
    return f"{layers} layer" if layers == 1 else f"{layers} layers"


def _teach(settings: config.Config, layout: Layout, whole: str, storing: str, say: Callable[[str], None]) -> str:
    """A rankings table with the whole ranker's scores, as if the validation events had not happened yet."""
    before = replace(layout, before_validation=True)
    asked = settings.recall.model_copy(update={"history": "training"})
    recall.recall(asked, before, say, settings.model.attention, settings.score.requires)
    teacher = storage.join(storing, "teacher")
    taught = _scoring(
        settings, model=whole, history="training", candidates=before.candidates(), output=teacher, top_k=TAUGHT
    )
    publish(layout, _scored_anew(taught, layout, say).run_id)
    storage.delete(layout.scratch("fuse"))
    return teacher


def _student(settings: config.Config, whole: str, depth: int, teacher: str) -> config.Config:
    """Its training promises nothing of users: what teaches it has seen all of them."""
    changes = {
        "model.layers": depth, "train.start": whole, "train.new_events": False, "train.teacher": teacher,
        "train.private": config.PrivateTraining(),
    }  # fmt: skip
    return config.varied(settings, changes, "compress")


def _scoring(settings: config.Config, **changed: Any) -> config.Config:
    """The score stage by the ranker alone, by one process an actor, since int8 is not split and all are to be timed
    alike."""
    alone = {
        "keep_parts": False, "reuse": "", "ensemble": (), "tensor_parallel": 1,
        "gpus_per_actor": settings.score.gpus_per_actor / settings.score.tensor_parallel,
    }  # fmt: skip
    changes = {f"score.{name}": value for name, value in (alone | changed).items()}
    return config.varied(settings, changes | {"fusion": config.Fusion(), "rerank": config.Rerank()}, "compress")


def _scored_anew(settings: config.Config, layout: Layout, say: Callable[[str], None]) -> score.Scored:
    """A run from its beginning: of one that was cut off the files are gone, and it would not tell how fast it is."""
    job, _ = resolve(settings, layout)
    storage.delete(layout.run(job.run_id))
    return score.score(settings, layout, say)


def _weights(uri: str) -> tuple[int, int]:
    """How many weights the linear layers of a ranker's backbone have, and all else of it."""
    ranker = Ranker.from_pretrained(storage.local_directory(uri, assets.cache_directory() / "models"))
    linear = sum(p.numel() for p in layers_of(ranker.backbone).parameters() if p.dim() == 2)
    return linear, sum(p.numel() for p in ranker.parameters()) - linear


def _compared_with(
    first: Mapping[str, Any] | None, done: score.Scored, layout: Layout, truth: Mapping[int, str],
    say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Of a staged run: `ndcg` of users with held-out events, `overlap` with the first run of all, and its `files`."""
    files = {b: storage.join(done.output, e.path) for b, e in ledger.read(layout, done.run_id).items() if e.rows}
    units = [{BUCKET: bucket, "mine": mine, "truth": truth.get(bucket, "")} for bucket, mine in sorted(files.items())]
    given = {"others": None if first is None else first["files"]}
    rows = sorted(reporting(each(units, _compared, given), len(units), say, "compress"), key=lambda r: int(r[BUCKET]))
    storage.delete(layout.run(done.run_id))
    values = {name: np.concatenate([np.asarray(row[name]) for row in rows]) for name in ("ndcg", "overlap")}
    if not len(values["ndcg"]):
        raise nothing_held_out(layout)
    return values | {"files": files}


def _compared(batch: pa.Table, others: Mapping[int, str] | None) -> pa.Table:
    """One bucket, of the users whom the run to compare with ranks: others are its files, None for itself. One who is
    set aside here counts 0."""
    (unit,) = batch.to_pylist()
    columns = [USER, RANK, ITEM]
    mine = lists_of_rows(buckets.read_parquet(unit["mine"], columns), K)
    theirs = mine if others is None else lists_of_rows(buckets.read_parquet(others[unit[BUCKET]], columns), K)
    truth = lists_of(buckets.read_parquet(unit["truth"], [USER, ITEMS])) if unit["truth"] else {}
    truth = {user: items for user, items in truth.items() if user in theirs}
    ndcg = metrics.per_user(truth, mine, [K], ["ndcg"])[f"ndcg@{K}"]
    overlap = [len(set(items) & set(mine.get(user, ()))) / max(len(items), 1) for user, items in theirs.items()]
    return pa.table({BUCKET: [unit[BUCKET]], "ndcg": [ndcg.tolist()], "overlap": [overlap]})
