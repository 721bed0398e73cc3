"""fuse: what the ranker's score and what each source says should weigh, fitted on the validation events.

All that is fused is computed anew as if the validation events had not happened yet: candidates from training events,
scored by the ranker with trunks that end before them. Then they are the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec import config, storage
from llmrec.engine import recall, score, score_parts, training_histories
from llmrec.errors import StoreError, UserError
from llmrec.fusion import ablations, model
from llmrec.fusion.model import Fusion
from llmrec.fusion.parts import Parts
from llmrec.layout import Layout
from llmrec.ranker.ragged import offsets_of, within
from llmrec.recall.candidates import pair_keys
from llmrec.schema import ITEMS, TRAIN_LENGTH, USER, WEIGHTS
from llmrec.tables import buckets
from llmrec.tables.histories import flatten, item_rows, keep

FIT_CPUS = 1
AS_NEW = 20_000
# Of section score, what fuse sets by itself where it scores, and what its own run does not depend on.
OF_ITS_OWN = ("history", "candidates", "output", "keep_parts", "reuse", "users_share", "publish")


@dataclass(frozen=True)
class Fused:
    """What fuse did. users: whose lists the weights were fitted to; found: share of users with a validation event in
    whose candidates it is; importance: what each part counts, as shares of 1; constant: parts that say the same of all
    candidates of every user, which weigh nothing; new_users: importance for users without a history, None if theirs is
    the same."""

    method: str
    users: int
    found: float
    importance: dict[str, float]
    constant: list[str]
    new_users: dict[str, float] | None
    model: str


def fuse(settings: config.Config, layout: Layout, say: Callable[[str], None]) -> Fused:
    """Write models/fusion: the fusion, and one without each part.

    Raises:
        UserError: fusion.method is none, there are no validation events, the ranker was trained on them, or nothing can
            be fitted.
    """
    if settings.fusion.method == "none":
        raise UserError("fusion.method = none: nothing to fit; set it to linear or trees")
    if settings.train.events == "all" and not settings.score.model:
        raise UserError(
            "train.events = all: the ranker has seen the validation events that weights are fitted on; fuse with a "
            "ranker of train.events = training, and give a later one its weights by fusion.model"
        )
    if not training_histories.count(layout.histories, training_only=True).held_out:
        raise _no_truth(layout)
    (fitted, constant), version = _of_scored(fit, settings, layout, "training", settings.fusion.users, say)
    others = settings.fusion.new_users
    if others is None:
        there = any(storage.each(_without_history, buckets.bucket_files(layout.histories).values()))
        others = AS_NEW if there else 0
    if others:
        say("once more for users without a history")
        own, _ = _of_scored(fit_as_new, settings, layout, "none", others, say)
        fitted = replace(fitted, new_users=own)
    fitted = replace(fitted, ranker=version)
    storage.write_bytes(layout.fusion, fitted.to_json())
    storage.delete(layout.scratch("fuse"))
    full = fitted.full
    return Fused(
        settings.fusion.method, full.users, round(full.found, 4), full.importance(), constant,
        None if fitted.new_users is None else fitted.new_users.importance(), layout.fusion,
    )  # fmt: skip


def _of_scored(
    what: Any, settings: config.Config, layout: Layout, history: str, users: int, say: Callable[[str], None]
) -> tuple[Any, str]:
    """What `fit` or `fit_as_new` makes of about so many users who are scored with such a history, and the version of
    the ranker."""
    import ray

    before, storing = replace(layout, before_validation=True), layout.scratch("fuse")
    asked = settings.recall.model_copy(update={"history": history})
    all_users = recall.recall(asked, before, say, settings.model.attention, settings.score.requires).users
    scoring = {
        "history": history, "candidates": before.candidates(), "output": storage.join(storing, "rankings"),
        "keep_parts": True, "reuse": "", "users_share": min(1.0, users / max(all_users, 1)),
    }  # fmt: skip
    done = score.score(
        settings.model_copy(update={
            "score": settings.score.model_copy(update=scoring), "fusion": config.Fusion(), "rerank": config.Rerank(),
        }),
        layout, say,
    )  # fmt: skip
    say("fitting")
    histories, parts = buckets.bucket_files(layout.histories), buckets.bucket_files(layout.score_parts(done.run_id))
    files = [(uri, histories[bucket]) for bucket, uri in parts.items()]
    found = ray.get(ray.remote(what).options(num_cpus=FIT_CPUS).remote(files, layout, settings.fusion))
    storage.delete(layout.run(done.run_id))
    return found, done.model_version


def _no_truth(layout: Layout) -> UserError:
    return UserError(
        f"{layout.histories}: no validation events that weights could be fitted on; set data.split to leave_one_out or "
        "time and prepare again, or give fusion.model a fusion that was fitted before"
    )


def _without_history(uri: str) -> bool:
    lengths = pa.compute.list_value_length(buckets.read_parquet(uri, [ITEMS])[ITEMS])
    return bool(pa.compute.any(pa.compute.equal(lengths.fill_null(0), 0)).as_py())


def fit(files: list[tuple[str, str]], layout: Layout, settings: config.Fusion) -> tuple[ablations.Fitted, list[str]]:
    """The fusion of some buckets' score parts, and names of parts that say nothing.

    files: where each bucket's parts and histories are.

    Raises:
        UserError: there are no validation events, fusion.parts names something else, or nothing can be fitted.
    """
    parts, truth = _read(files, layout, settings, as_new=False)
    return ablations.fit(parts, truth, _fitting(settings), score_parts.groups(parts.names)), model.constant(parts)


def fit_as_new(files: list[tuple[str, str]], layout: Layout, settings: config.Fusion) -> Fusion | None:
    """The fusion for users without a history, by others who were scored as if they had none, and of whom all that they
    ever had is true. None if nothing tells candidates apart, or none of them is true."""
    try:
        return _fitting(settings)(*_read(files, layout, settings, as_new=True))
    except StoreError:
        raise
    except UserError:
        return None


def _fitting(settings: config.Fusion) -> Callable[[Parts, np.ndarray], Fusion]:
    return partial(
        model.fit, normalise=settings.normalise, method=settings.method, l2=settings.l2, seed=settings.seed
    )  # fmt: skip


def _read(
    files: list[tuple[str, str]], layout: Layout, settings: config.Fusion, as_new: bool
) -> tuple[Parts, np.ndarray]:
    """The parts that are fused, and bool[total]: which candidates are true."""
    ids = buckets.catalogue_ids(layout.items)
    read = [_with_truth(parts, histories, ids, as_new) for parts, histories in files]
    parts = Parts(
        read[0][0].names,
        np.concatenate([p.values for p, _ in read]),
        offsets_of(np.concatenate([p.lengths for p, _ in read])),
    )
    truth = np.concatenate([true for _, true in read])
    if not len(parts.lengths):
        raise _no_truth(layout)
    if settings.parts:
        for name in settings.parts:
            if name not in parts.names:
                raise UserError(
                    f"fusion.parts names '{name}', of which the candidates tell nothing (they have: "
                    f"{', '.join(parts.names)})"
                )
        parts = parts.only(settings.parts)
    return parts, truth


def _with_truth(uri: str, histories: str, ids: pa.Array, as_new: bool = False) -> tuple[Parts, np.ndarray]:
    """A bucket's parts of users with validation events, and bool[total]: which of their candidates are such, of events
    with weights the heaviest. as_new: any events are such."""
    table, parts = score_parts.read(uri)
    there = buckets.schema_of(histories).names
    past = buckets.read_parquet(histories, [USER, ITEMS, TRAIN_LENGTH, *({WEIGHTS} & set(there))])
    place = pa.compute.index_in(table[USER].combine_chunks(), past[USER].combine_chunks())
    past = past.take(place)
    events = item_rows(past[ITEMS], ids)
    later = within(events.lengths) >= np.repeat(past[TRAIN_LENGTH].to_numpy(), events.lengths)
    later |= as_new
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
