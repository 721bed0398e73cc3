"""fuse: what the ranker's score and what each source says should weigh, fitted on the validation events.

All that is fused is computed anew as if the validation events had not happened yet: candidates from training events,
scored by the ranker with trunks that end before them. Then they are the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec import config, storage
from llmrec.engine import recall, score, score_parts
from llmrec.errors import UserError
from llmrec.fusion import ablations, model
from llmrec.fusion.parts import Parts
from llmrec.layout import Layout
from llmrec.ranker.ragged import offsets_of, within
from llmrec.recall.candidates import pair_keys
from llmrec.schema import ITEMS, TRAIN_LENGTH, USER, WEIGHTS
from llmrec.tables import buckets
from llmrec.tables.histories import flatten, item_rows, keep

FIT_CPUS = 1


@dataclass(frozen=True)
class Fused:
    """What fuse did. users: whose lists the weights were fitted to; found: share of users with a validation event in
    whose candidates it is; importance: what each part counts, as shares of 1; constant: parts that say the same of all
    candidates of every user, which weigh nothing."""

    method: str
    users: int
    found: float
    importance: dict[str, float]
    constant: list[str]
    model: str


def fuse(settings: config.Config, layout: Layout, say: Callable[[str], None]) -> Fused:
    """Write models/fusion: the fusion, and one without each part.

    Raises:
        UserError: fusion.method is none, there are no validation events, the ranker was trained on them, or nothing can
            be fitted.
    """
    import ray

    if settings.fusion.method == "none":
        raise UserError("fusion.method = none: nothing to fit; set it to linear or trees")
    if settings.train.events == "all" and not settings.score.model:
        raise UserError(
            "train.events = all: the ranker has seen the validation events that weights are fitted on; fuse with a "
            "ranker of train.events = training, and give a later one its weights by fusion.model"
        )
    before, storing = replace(layout, before_validation=True), layout.scratch("fuse")
    asked = settings.recall.model_copy(update={"history": "training"})
    users = recall.recall(asked, before, say, settings.model.attention).users
    scoring = {
        "history": "training", "candidates": before.candidates(), "output": storage.join(storing, "rankings"),
        "keep_parts": True, "reuse": "", "users_share": min(1.0, settings.fusion.users / max(users, 1)),
    }  # fmt: skip
    done = score.score(
        settings.model_copy(update={
            "score": settings.score.model_copy(update=scoring), "fusion": config.Fusion(), "rerank": config.Rerank(),
        }),
        layout, say,
    )  # fmt: skip
    say("fitting")
    files = buckets.bucket_files(layout.score_parts(done.run_id))
    histories = buckets.bucket_files(layout.histories)
    fitted, constant = ray.get(
        ray.remote(fit).options(num_cpus=FIT_CPUS).remote(
            [(uri, histories[bucket]) for bucket, uri in files.items()], layout, settings.fusion
        )
    )  # fmt: skip
    storage.write_bytes(layout.fusion, fitted.to_json())
    for gone in (layout.run(done.run_id), storing):
        storage.delete(gone)
    full = fitted.full
    return Fused(settings.fusion.method, full.users, round(full.found, 4), full.importance(), constant, layout.fusion)


def fit(files: list[tuple[str, str]], layout: Layout, settings: config.Fusion) -> tuple[ablations.Fitted, list[str]]:
    """The fusion of some buckets' score parts, and names of parts that say nothing.

    files: where each bucket's parts and histories are.

    Raises:
        UserError: there are no validation events, fusion.parts names something else, or nothing can be fitted.
    """
    ids = buckets.catalogue_ids(layout.items)
    read = [_with_truth(parts, histories, ids) for parts, histories in files]
    parts = Parts(
        read[0][0].names,
        np.concatenate([p.values for p, _ in read]),
        offsets_of(np.concatenate([p.lengths for p, _ in read])),
    )
    truth = np.concatenate([true for _, true in read])
    if not len(parts.lengths):
        raise UserError(
            f"{layout.histories}: no validation events that weights could be fitted on; set data.split to "
            "leave_one_out or time and prepare again"
        )
    if settings.parts:
        for name in settings.parts:
            if name not in parts.names:
                raise UserError(
                    f"fusion.parts names '{name}', of which the candidates tell nothing (they have: "
                    f"{', '.join(parts.names)})"
                )
        parts = parts.only(settings.parts)
    fitted = partial(
        model.fit, normalise=settings.normalise, method=settings.method, l2=settings.l2, seed=settings.seed
    )
    return ablations.fit(parts, truth, fitted, score_parts.groups(parts.names)), model.constant(parts)


def _with_truth(uri: str, histories: str, ids: pa.Array) -> tuple[Parts, np.ndarray]:
    """A bucket's parts of users with validation events, and bool[total]: which of their candidates are such, of events
    with weights the heaviest."""
    table, parts = score_parts.read(uri)
    there = buckets.schema_of(histories).names
    past = buckets.read_parquet(histories, [USER, ITEMS, TRAIN_LENGTH, *({WEIGHTS} & set(there))])
    place = pa.compute.index_in(table[USER].combine_chunks(), past[USER].combine_chunks())
    past = past.take(place)
    events = item_rows(past[ITEMS], ids)
    later = within(events.lengths) >= np.repeat(past[TRAIN_LENGTH].to_numpy(), events.lengths)
    if WEIGHTS in there:  # a view after a purchase that validates is no truth beside it
        counted = flatten(past[WEIGHTS])[0].to_numpy(zero_copy_only=False)
        user = np.repeat(np.arange(len(events)), events.lengths)
        greatest = np.zeros(len(events), np.float32)
        np.maximum.at(greatest, user[later], counted[later])
        later &= counted == greatest[user]
    truth = keep(events, later & (events.values >= 0))
    candidates = item_rows(table[ITEMS], ids)
    true = np.isin(pair_keys(candidates, len(ids)), pair_keys(truth, len(ids)))
    some = truth.lengths > 0
    return parts.take(some), true[np.repeat(some, candidates.lengths)]
