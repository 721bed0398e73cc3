"""train: fine-tune the ranker with Ray Train, its histories streamed from the object store by Ray Data.

This module is the driver's part; `training_worker` holds the loop that every worker runs.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

from llmrec import assets, storage
from llmrec.config import Config
from llmrec.engine import counts, training_histories
from llmrec.engine.counts import in_context
from llmrec.engine.prompts import check_trainable
from llmrec.engine.training_histories import Counted
from llmrec.engine.training_worker import (
    AVERAGE,
    METRIC,
    MODEL,
    STATE_FILE,
    STEPS,
    VALIDATIONS,
    Task,
    begin,
    run_worker,
)
from llmrec.engine.warm_start import COMPLETE, PREVIOUS, copies_of_previous, starting_ranker
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.ranker.card import RANKER_FILE, RankerCard, model_version
from llmrec.ranker.contexts import COMMON
from llmrec.ranker.model import Ranker
from llmrec.ranker.private import Mechanism, mechanism
from llmrec.ranker.templates import placeholders
from llmrec.ranker.tuning import merge_adapters, prepare_tuning, trainable
from llmrec.recall import context, item_item
from llmrec.tables import buckets, contexts, embeddings, rankings
from llmrec.tables.augmentations import item_texts_read

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Trained:
    """What train did. ranker: where the model lies; version: a hash of its files; start: the earlier ranker that it
    went on from, empty if it began with the base; private: what it promises of users; None if nothing."""

    ranker: str
    version: str
    users: int
    steps: int
    steps_planned: int
    start: str
    tokens: int
    decisions: int
    metric: str
    best: float | None
    trainable_parameters: int
    seconds: float
    private: Mechanism | None = None


@dataclass(frozen=True)
class Begun:
    """What a training begins with. name: of the run, by all that it depends on; ranker: where that lies from which it
    goes on, empty: the untouched base; since: unix seconds, only later events are trained; None: all are; there: what
    can be trained on."""

    name: str
    ranker: str
    since: int | None
    there: Counted


@dataclass(frozen=True)
class Planned:
    """A training before it starts. there: what can be trained on; trained: bool[n_items], the items with events that
    are trained; name: of the run, by all that it depends on."""

    task: Task
    there: Counted
    trained: np.ndarray
    name: str


def train(config: Config, layout: Layout, say: Callable[[str], None]) -> Trained:
    """Fine-tune, take the best checkpoint by validation, save the ranker under the root.

    Runs that were cut off resume: the same settings over the same histories go on from the last checkpoint. Where only
    new events train the previous ranker on and too few users have any, it is kept: 0 steps.

    Raises:
        UserError: there is nothing to train on, the model cannot be loaded, or workers failed more often than allowed.
    """
    started = time.monotonic()
    begun = begin_with(config, layout)
    if begun.since is not None and config.train.start == PREVIOUS and begun.there.users < config.train.workers:
        return _kept(begun, config, layout, say, started)
    plan = planned(config, layout, begun)
    checkpoint, metrics = fit(config, layout, plan, say)

    ranker, _ = begin(plan.task, plan.trained)
    prepare_tuning(ranker, config.train)
    parameters = sum(t.numel() for t in trainable(ranker).values())
    with checkpoint.as_directory() as directory:
        saved = torch.load(Path(directory) / STATE_FILE, map_location="cpu", weights_only=True)
    state = saved[AVERAGE if config.train.average else MODEL]
    missing = set(trainable(ranker)) - set(state)
    assert not missing, f"checkpoint lacks {sorted(missing)[:3]}"
    ranker.load_state_dict(state, strict=False)
    merge_adapters(ranker)
    if ranker.items is not None:
        ranker.items.foretell()
    ranker.card = ranker.card.model_copy(update={"trained": True, "trained_until": plan.there.newest})
    version = _save(ranker, layout, _model_card(config, plan.there, metrics, plan.task.private))
    _forget_run(layout, plan.name)
    return Trained(
        ranker=layout.ranker,
        version=version,
        users=plan.there.users,
        steps=metrics[STEPS],
        steps_planned=plan.task.steps,
        start=config.train.start if plan.task.ranker else "",
        tokens=metrics["tokens"],
        decisions=metrics["decisions"],
        metric=METRIC,
        best=metrics[METRIC] if metrics[VALIDATIONS] else None,
        trainable_parameters=parameters,
        seconds=time.monotonic() - started,
        private=plan.task.private,
    )


def begin_with(config: Config, layout: Layout) -> Begun:
    """Where training starts and who there is to train on.

    Raises:
        UserError: the settings do not go together, or the model cannot be found.
    """
    if config.model.head == "yes_no":
        raise UserError(
            "model.head = yes_no scores an untouched model; to train, set model.head to linear, or model.items to token"
        )
    check_trainable(config.prompt, layout)
    training_only = config.train.events == "training"
    name = _run_name(config, layout)
    earlier, card = starting_ranker(config, layout, name)
    if card is None:
        assets.resolve_model(config.model.base)  # a wrong name is told before workers start
    since = _since(config, card)
    there = training_histories.count(layout.histories, training_only, since)
    if config.train.private.epsilon is not None:  # nobody's events choose the checkpoint, or tell its day
        there = replace(there, held_out=0, newest=None)
    return Begun(name, earlier, since, there)


def planned(config: Config, layout: Layout, begun: Begun) -> Planned:
    """What workers need to train, the tables read and the settings held against them. begun: of `begin_with`.

    Raises:
        UserError: there is nothing to train on.
    """
    import ray

    earlier, since, there = begun.ranker, begun.since, begun.there
    training_only, private = config.train.events == "training", config.train.private.epsilon is not None
    users, held_out = there.users, there.held_out
    if users < config.train.workers:
        enough = training_histories.MIN_EVENTS
        later = "" if since is None else f" and one since those that {config.train.start} was trained on"
        raise UserError(
            f"{layout.histories}: {users} users with {enough} or more training events{later}; too few to train on"
        )
    if config.train.teacher:
        _check_teacher(storage.absolute(config.train.teacher), layout)
    n_items, settings = len(ids := buckets.catalogue_ids(layout.items)), config.recall.item_item
    events, weights = counts.events_and_weights(layout.histories, ids, training_only)
    had = np.bincount(events.values, minlength=n_items)
    trained = np.ones(n_items, bool) if private else had > 0  # nor may it show which items anybody had
    # The retrieve head learns and validates against the whole catalogue: it asks for no neighbours.
    similar = (
        sparse.csr_matrix((n_items, n_items), dtype=np.float32) if config.model.head == "retrieve"
        else counts.similar_by_users(events, n_items, settings, weights)
    )  # fmt: skip
    steps_per_epoch = math.ceil(users // config.train.workers / config.train.users_per_step)
    steps = steps_per_epoch * config.train.epochs
    if config.train.max_steps is not None:
        steps = min(steps, config.train.max_steps)
    task = Task(
        config.model, config.items, config.prompt, config.train, layout, steps, ray.put(similar), settings.decay,
        ray.put(trained), None if earlier else _start(config, layout, had),
        ray.put(training_histories.validation(layout.histories, config.train.validation_users, held_out)),
        _context_values(config, layout, training_only), earlier, since, _mechanism(config, users, steps),
        assets.placed(config.model.base),
    )  # fmt: skip
    return Planned(task, there, trained, begun.name)


def _mechanism(config: Config, users: int, steps: int) -> Mechanism | None:
    """How training is private; None if it is not."""
    asked, a_step = config.train.private, config.train.users_per_step * config.train.workers
    if asked.epsilon is None:
        return None
    delta = 0.1 / users if asked.delta is None else asked.delta
    return mechanism(asked.epsilon, delta, users, a_step, steps, asked.norm)


def _since(config: Config, card: RankerCard | None) -> int | None:
    """Unix seconds after which events are new to the ranker that training goes on from; None if all events train.

    Raises:
        UserError: nothing says which events are new to it.
    """
    if not config.train.new_events or card is None:
        return None
    if config.data.split == "leave_one_out":
        raise UserError(
            "train.new_events with data.split = leave_one_out: what was held out of a user before is older than what "
            "the ranker has seen of others; set data.split to time or none, or train.new_events to false"
        )
    if card.trained_until is None:
        raise UserError(
            f"train.start = {config.train.start}: that ranker does not say up to when it was trained; set "
            "train.new_events to false once"
        )
    return card.trained_until


def _start(config: Config, layout: Layout, users: np.ndarray) -> Any:
    """A reference to the vectors from which the learned parts of items start; None if these start at random."""
    import ray

    items = config.items
    if config.model.items == "text" or not items.id or not items.id_start:
        return None
    ids, training_only = buckets.catalogue_ids(layout.items), config.train.events == "training"
    shared = counts.cooccurrence(layout.histories, ids, training_only, shared=True)
    return ray.put(item_item.factors(shared, users, items.id_start))


def _context_values(config: Config, layout: Layout, training_only: bool) -> dict[str, list[str]] | None:
    """The values of each context of which a ranker of vectors learns one, ascending; None if it reads none, or as text.

    Raises:
        UserError: prompt.context names none, or one that the histories lack.
    """
    names = placeholders(config.prompt.context)
    first = next(iter(buckets.bucket_files(layout.histories).values()))
    contexts.check(buckets.schema_of(first), names, layout.histories)
    as_text = config.model.items == "text" or config.prompt.context_as == "text"
    if as_text or not config.prompt.context:
        return None
    if not names:
        raise UserError(
            f"prompt.context = {config.prompt.context!r} has no placeholder; with model.items = token it names what is "
            "read of data.context"
        )
    counts = in_context(layout.histories, buckets.catalogue_ids(layout.items), training_only)
    values = context.values_of(counts, COMMON)
    return {name: values.get(name, []) for name in dict.fromkeys(names)}


def fit(
    config: Config, layout: Layout, plan: Planned, say: Callable[[str], None], callbacks: Sequence[Any] = ()
) -> tuple[Any, dict[str, Any]]:
    """Run the workers to the end; the best checkpoint and its metrics.

    callbacks: Ray Train's, told of every validation.

    Raises:
        UserError: workers failed more often than allowed, or no step was made.
    """
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    train = config.train
    say(
        f"fine-tuning {train.start if plan.task.ranker else config.model.base}: {plan.there.users:,} users, "
        f"{plan.task.steps} steps, {train.workers} workers (they take a while to start)"
    )
    resources = {"CPU": train.cpus_per_worker} | ({"GPU": train.gpus_per_worker} if train.gpus_per_worker else {})
    fs, path = storage.filesystem(layout.training)
    news = Queue(actor_options={"num_cpus": 0})
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"task": plan.task, "news": news},
        datasets={
            "train": training_histories.streamed(
                layout.histories, train, placeholders(config.prompt.context), plan.task.since
            )
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=train.workers, use_gpu=train.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=plan.name,
            storage_path=path,
            storage_filesystem=fs,
            failure_config=ray.train.FailureConfig(max_failures=train.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=METRIC, checkpoint_score_order="max"
            ),
            callbacks=list(callbacks),
        ),
    )
    stop = threading.Event()
    relay = threading.Thread(target=_relay, args=(news, say, stop), daemon=True)
    relay.start()
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise UserError(f"training failed: {_last_line(error)}") from error
    finally:
        stop.set()
        relay.join(timeout=10 * POLL_SECONDS)
        news.shutdown(force=True)
    if not result.best_checkpoints:
        raise UserError("training ended without a checkpoint; raise train.epochs or train.max_steps")
    checkpoint, metrics = max(result.best_checkpoints, key=lambda pair: pair[1][METRIC])
    return checkpoint, {**result.metrics, **{METRIC: metrics[METRIC]}}


def _relay(news: Any, say: Callable[[str], None], stop: threading.Event) -> None:
    """Print what rank 0 reports: Ray Train keeps the workers' own output in its logs."""
    from ray.util.queue import Empty

    while not stop.is_set():
        try:
            say(news.get(timeout=POLL_SECONDS))
        except Empty:
            continue
        except Exception:  # noqa: BLE001 - the queue's actor may be gone with its node; progress is not worth a job
            return


def _check_teacher(teacher: str, layout: Layout) -> None:
    taught, here = rankings.snapshot(teacher).buckets, len(buckets.bucket_files(layout.histories))
    if taught != here:
        raise UserError(f"train.teacher = {teacher}: has {taught} buckets, the histories have {here}; score it again")


def _run_name(config: Config, layout: Layout) -> str:
    """The same for the same settings and inputs, so that Ray Train finds what a run cut off left, and nothing else."""
    read = [layout.histories, layout.items, layout.users, layout.edges]
    read += [storage.join(layout.embeddings, embeddings.DESCRIPTION)] * (config.model.items == "token")
    read += [layout.item_augmentations] * item_texts_read(config.prompt.item)
    read += [*assets.files_of(config.model.base), *assets.files_of(config.train.start)]
    content = [storage.manifest(uri) for uri in read if storage.exists(uri)]
    taught = rankings.snapshot(config.train.teacher) if config.train.teacher else None
    what = [getattr(config, part).model_dump() for part in ("model", "items", "prompt", "train")]
    what.append(config.recall.item_item.model_dump())  # whom negatives and shortlists come from
    named = [what, content, None if taught is None else [taught.run_id, taught.version]]
    return "run-" + hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:12]


def _kept(begun: Begun, config: Config, layout: Layout, say: Callable[[str], None], started: float) -> Trained:
    """Leave the previous ranker as it is: what it foretells of new items it does wherever it is bound to them. It stays
    trained up to the day that it was, so that the few events that are new to it train it when there are more."""
    users, workers = begun.there.users, config.train.workers
    say(
        f"{users} users have training events that are new to the previous ranker, and train.workers = {workers} takes "
        f"{workers} at least; it is kept as it is"
    )
    cache = assets.cache_directory() / "models"
    if not storage.exists(storage.join(layout.ranker, RANKER_FILE)):  # a run was cut off while it wrote another there
        _put(storage.local_directory(begun.ranker, cache), layout)
        storage.delete(storage.join(layout.ranker, COMPLETE))  # which is of the copy
    version = model_version(storage.local_directory(layout.ranker, cache))
    _forget_run(layout, begun.name)
    return Trained(
        ranker=layout.ranker, version=version, users=users, steps=0, steps_planned=0, start=PREVIOUS,
        tokens=0, decisions=0, metric=METRIC, best=None, trainable_parameters=0, seconds=time.monotonic() - started,
    )  # fmt: skip


def _save(ranker: Ranker, layout: Layout, card: str) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        ranker.save_pretrained(temporary, card)
        version = model_version(temporary)
        _put(Path(temporary), layout)
    return version


def _put(saved: Path, layout: Layout) -> None:
    """A ranker in the place of the one before."""
    storage.delete(storage.join(layout.ranker, RANKER_FILE))  # without it there is no ranker
    storage.delete(layout.ranker)
    storage.upload_directory(saved, layout.ranker, last=RANKER_FILE)


def _forget_run(layout: Layout, name: str) -> None:
    """The ranker is saved: drop the checkpoints and what training began with, keep the curves. So of runs that were cut
    off on the way from the ranker before: what they would go on to begins with this one."""
    starts = copies_of_previous(layout)
    others = {uri.removeprefix(f"{starts}/").split("/")[0] for uri, _ in storage.list_files(starts)}
    for run in {name, *others}:
        storage.delete(storage.join(layout.training, run))
    storage.delete(starts)


def _model_card(config: Config, there: Counted, metrics: dict[str, Any], private: Mechanism | None) -> str:
    model, train = config.model, config.train
    among = (
        "among the candidates that item-item recall brings; users whose item recall does not find are left out"
        if model.head in ("linear", "yes_no")
        else "among the whole catalogue"
    )
    metric = f"{metrics[METRIC]:.4f}" if metrics[VALIDATIONS] else "none"
    decisions = f"{metrics['decisions']:,}" if private is None else "not told"
    privacy = "" if private is None else (
        f"\n| differential privacy of a user | epsilon {private.epsilon:g}, delta {private.delta:.2g} |"
    )  # fmt: skip
    licence = assets.REGISTRY[model.base].licence if model.base in assets.REGISTRY else "that of the base model"
    return f"""---
library_name: llmrec
base_model: {model.base}
---
# Ranker

A {model.base} backbone ({model.layers or "all"} layers), items as {model.items}, score head {model.head}, fine-tuned by
llmrec on next-item decisions of {there.users:,} users with the listwise softmax objective. Load it with
`llmrec.ranker.model.Ranker.from_pretrained(directory)`.

| | |
|---|---|
| data | {config.data.interactions} |
| learning weights | {train.tune} |
| optimizer steps | {metrics[STEPS]} |
| decisions seen | {decisions} |
| {METRIC} | {metric} |
| licence of the base model | {licence} |{privacy}

`{METRIC}` ranks the held-out item of validation users {among}. It chooses the
checkpoint and is no estimate of test quality.
"""


def _last_line(error: BaseException) -> str:
    """The innermost reason: workers' errors arrive wrapped, with their traceback as text."""
    text = str(error.__cause__ or error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return storage.redact(
        next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "unknown")
    )
