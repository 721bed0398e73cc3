"""The training loop that every Ray Train worker runs.

Ranks see equally many users per step and equally many forward passes per step, so collective operations always meet.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import get_cosine_schedule_with_warmup

from llmrec import assets, config, storage
from llmrec.engine.counts import known_contexts, known_events, known_histories, known_weights
from llmrec.engine.prompts import Prompts, load_prompts
from llmrec.layout import Layout
from llmrec.ranker import attention, precision
from llmrec.ranker.adversarial import perturbation
from llmrec.ranker.averaging import WeightAverage
from llmrec.ranker.contexts import ContextEncoder, Contexts
from llmrec.ranker.examples import Example, Lesson, Recaller, sample, sample_last
from llmrec.ranker.model import Ranker, Scores, layers_of
from llmrec.ranker.objective import Entry, loss_of, request_of
from llmrec.ranker.packing import WHOLE, Request, pack, plan
from llmrec.ranker.private import Mechanism, PrivateGradient, drawn
from llmrec.ranker.retrieval import retrieve_head
from llmrec.ranker.templates import placeholders
from llmrec.ranker.tuning import prepare_tuning
from llmrec.ranker.validation import HeldOut, gain
from llmrec.schema import TEACHER_ITEMS, TEACHER_SCORES, TRAIN_LENGTH, USER
from llmrec.tables import contexts
from llmrec.tables.histories import flatten, item_rows, keep

METRIC = "validation_ndcg@10"
STEPS, BEST, VALIDATIONS = "steps_done", "best", "validations"
STATE_FILE = "state.pt"
MODEL, AVERAGE = "model", "average"  # weights in it; the average, where there is one, is what validates and is saved
NEWS_SECONDS = 5.0
CURVE_POINTS = 200


@dataclass(frozen=True)
class Task:
    """What a worker needs.

    similar: object reference to the item-item csr matrix; trained: one to bool[n_items], the items with events that are
    trained; start: one to float32[n_items, any], where learned parts of items begin, or None; validation: one to
    histories. contexts: values of each context of which a ranker of vectors learns one, or None. ranker: where that
    lies from which training goes on; empty: the untouched base. since: unix seconds, only later events are decisions;
    None: all are. private: how each user's part is bounded and hidden, or None. base: where model.base lies, as a
    process of another directory understands it.
    """

    model: config.Model
    items: config.Items
    prompt: config.Prompt
    train: config.Train
    layout: Layout
    steps: int
    similar: Any
    decay: float
    trained: Any
    start: Any
    validation: Any
    contexts: dict[str, list[str]] | None = None
    ranker: str = ""
    since: int | None = None
    private: Mechanism | None = None
    base: str = ""


@dataclass
class Progress:
    """What a checkpoint restores beside weights and optimizer.

    losses: (step, mean loss of the steps since the point before); validations: (step, metric).
    """

    step: int = 0
    tokens: int = 0
    decisions: int = 0
    best: float = -1.0
    without_gain: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)


def run_worker(settings: dict[str, Any]) -> None:
    """Train until the planned steps are done or validation stops improving, checkpointing at every validation."""
    import ray.train
    from ray.train.torch import get_device
    from tensorboardX import SummaryWriter

    task: Task = settings["task"]
    train, context = task.train, ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = get_device()
    torch.set_num_threads(max(1, int(train.cpus_per_worker)))
    torch.manual_seed(train.seed)

    trained = ray.get(task.trained)
    ranker, prompts = begin(task, trained)
    if task.start is not None:
        assert ranker.items is not None
        ranker.items.start_from(ray.get(task.start))
    if ranker.contexts is not None:
        ranker.contexts.dropout = train.id_dropout
    prepare_tuning(ranker, train)
    ranker.dropout.p = train.dropout
    ranker.keep_embedded = train.adversarial > 0
    ranker.to(device)
    if ranker.items is not None:
        ranker.items.own_dropout = train.id_dropout
    ranker.attend_by(attention.choose(task.model.attention, device, training=True))
    recaller = Recaller(ray.get(task.similar), task.decay, 100, np.flatnonzero(trained))
    everywhere = retrieve_head(ranker) is not None
    validation = ray.get(task.validation)
    names = placeholders(task.prompt.context)
    asked = ranker.read_contexts(contexts.now(validation, names, training_only=True) if names else None)
    held = held_out(validation, prompts, recaller, train, everywhere, rank, world, asked)
    choices = torch.from_numpy(trained).to(device) if everywhere else None
    dtype = getattr(torch, precision.choose(train.precision, device))

    private = task.private
    # Ranks' gradients are then summed once, after each user's is clipped.
    model = ranker.train() if private else _distributed(ranker, train.strategy, device, world)
    learning = [p for p in model.parameters() if p.requires_grad]
    summed = PrivateGradient(learning, private) if private else None
    # Fused, as on a CPU the loop over parameters is a seventh of a step of a whole backbone.
    optimizer = torch.optim.AdamW(
        _groups(ranker, train), lr=train.learning_rate, weight_decay=train.weight_decay, fused=True
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, round(task.steps * train.warmup_share), task.steps)
    average = WeightAverage(model.parameters(), train.average) if train.average else None
    progress = _resume(model, optimizer, schedule, average)
    rng = np.random.default_rng([train.seed, rank, progress.step])
    curves_directory = tempfile.TemporaryDirectory(prefix="llmrec-curves-")  # gone with this function's end
    curves = SummaryWriter(logdir=curves_directory.name) if rank == 0 else None
    news, last_news, started = settings["news"], time.monotonic(), time.monotonic()
    tokens_before = progress.tokens

    losses: list[float] = []
    since = 0  # losses before it are in the curve
    every = -(-task.steps // CURVE_POINTS)
    negatives_from = None if task.model.head == "retrieve" else recaller
    causal = ranker.causal
    draw: Any = sample if causal else sample_last
    steps = _steps if private is None else _drawn_steps
    for users in steps(task, prompts, ranker, rng, progress.step):
        examples: list[Entry] = [
            user.weighed(draw(user.history, train, task.prompt.max_history, negatives_from, rng, user.first))
            for user in users
        ]
        taught = [user for user in users if len(user.lesson.items)]
        entries = [*examples, *(user.lesson for user in taught)]
        requests = [
            request_of(entry, prompts.prefix(user.id), prompts.catalogue, ranker, user.asked(entry))
            for user, entry in zip([*users, *taught], entries, strict=True)
        ]
        decisions = _sum(float(sum(len(e.decisions) for e in examples if isinstance(e, Example))), device, world)
        lessons = max(1.0, _sum(float(len(taught)), device, world))
        counted = _sum(sum(e.weight for e in examples if isinstance(e, Example)), device, world)
        objective = partial(loss_of, train=train, choices=choices)
        step = partial(_step, model, causal, train=train, dtype=dtype, device=device)
        if summed is None:
            loss = step(requests, entries, partial(objective, decisions=counted, lessons=lessons), world=world)
            losses.append(_sum(loss, device, world))
            torch.nn.utils.clip_grad_norm_(learning, train.clip_norm)
        else:
            # His loss is divided by what his own decisions count, and is told to nobody.
            for request, example in zip(requests, examples, strict=True):
                assert isinstance(example, Example)
                step([request], [example], partial(objective, decisions=example.weight, lessons=1.0), world=1)
                summed.add()
            summed.release(world)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        if average is not None:
            average.update(progress.step)
        progress.decisions += int(decisions)
        progress.tokens += int(_sum(float(sum(r.tokens for r in requests)), device, world))
        validates = progress.step % train.validate_every == 0 or progress.step == task.steps
        if losses and (validates or progress.step % every == 0):
            progress.losses.append((progress.step, float(np.mean(losses[since:]))))
            since = len(losses)
        if curves is not None:
            if losses:
                curves.add_scalar("train/loss", losses[-1], progress.step)
            curves.add_scalar("train/learning_rate", schedule.get_last_lr()[0], progress.step)
        if rank == 0 and time.monotonic() - last_news > NEWS_SECONDS:
            last_news = time.monotonic()
            rate = (progress.tokens - tokens_before) / (last_news - started)
            recent = f"  loss {np.mean(losses[-10:]):.3f}" if losses else ""
            news.put_nowait(f"step {progress.step}/{task.steps}{recent}  {rate:,.0f} tokens/s")
        if validates:
            with average.applied() if average is not None else contextlib.nullcontext(), _whole(model):
                metric = _validate(ranker, prompts, held, train, dtype, device, world)
            improved = metric is None or metric > progress.best
            progress.best = max(progress.best, metric or 0.0)
            progress.without_gain = 0 if improved else progress.without_gain + 1
            if metric is not None:
                progress.validations.append((progress.step, metric))
            if curves is not None:
                if metric is not None:
                    curves.add_scalar(f"validation/{METRIC}", metric, progress.step)
                curves.flush()
                storage.upload_directory(Path(curves_directory.name), storage.join(task.layout.training, "tensorboard"))
                storage.write_json(
                    task.layout.curves,
                    {"metric": METRIC, "loss": progress.losses, "validation": progress.validations},
                )
                shown = "no validation users" if metric is None else f"{METRIC} {metric:.4f}"
                news.put_nowait(f"step {progress.step}/{task.steps}  {shown}")
            # Without validation the newest weights are the best known.
            metric = float(progress.step) if metric is None else metric
            _report(model, optimizer, schedule, average, progress, metric, rank)
            if progress.without_gain >= train.patience:
                break
    if curves is not None:
        curves.close()


def begin(task: Task, trained: np.ndarray) -> tuple[Ranker, Prompts]:
    """The ranker as training finds it, bound to the catalogue: the untouched base, or an earlier one, which knows of
    new items what their other parts foretell. The same in every process: checkpoints hold what learns, and what does
    not has to be had again beside it. trained: bool[n_items]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.train.seed)
        if task.ranker:
            earlier = storage.local_directory(task.ranker, assets.cache_directory() / "models")
            ranker = Ranker.from_pretrained(earlier, layers=task.model.layers)
        else:
            base = assets.resolve_model(task.base or task.model.base)
            ranker = Ranker.from_base(task.model, task.prompt, base, items=task.items)
        prompts = load_prompts(ranker, task.layout, trained)
        if task.contexts is not None:
            fresh = ContextEncoder(task.contexts, ranker.backbone.config.hidden_size)
            ranker.contexts = fresh if ranker.contexts is None else ranker.contexts.extended(task.contexts)
    return ranker, prompts


def held_out(
    histories: pa.Table,
    prompts: Prompts,
    recaller: Recaller,
    train: config.Train,
    everywhere: bool,
    rank: int,
    world: int,
    asked: Contexts | None = None,
) -> HeldOut:
    """This rank's users of a validation table.

    everywhere: their item is looked for in the whole catalogue; else among what recall brings, and users to whom it is
    not brought are left out: no order of candidates would find it. asked: what the table's users are asked about in.
    """
    rows = known_histories(histories, prompts.catalogue.ids, training_only=False)
    found: list[tuple[np.ndarray, np.ndarray, int, np.ndarray]] = []
    kept: list[int] = []
    for i in range(rank, len(rows), world):
        length = int(histories[TRAIN_LENGTH][i].as_py())
        history, rest = rows[i][:length].astype(np.int64), rows[i][length:]
        if not len(history) or not len(rest):
            continue
        none = history[:0]
        candidates = none if everywhere else recaller.top(history, history)[: train.validation_candidates]
        if everywhere or (candidates == rest[0]).any():
            kept.append(i)
            found.append((prompts.prefix(histories[USER][i].as_py()), history, int(rest[0]), candidates))
    return HeldOut(
        [f[0] for f in found], [f[1] for f in found], np.asarray([f[2] for f in found], np.int64),
        [f[3] for f in found], None if asked is None else asked.take(np.asarray(kept, np.int64)),
    )  # fmt: skip


class User(NamedTuple):
    """A user of a step: his training history, int64[>= 1] catalogue rows, and a lesson, of no items if he has none.

    contexts: of his history's events and, last, one of which nothing is known; None if the ranker reads none.
    weights: float32, what each event of his history counts; None if all count the same. first: the first event that
    may be a decision.
    """

    id: Any
    history: np.ndarray
    lesson: Lesson
    contexts: Contexts | None
    weights: np.ndarray | None = None
    first: int = 0

    def weighed(self, example: Example) -> Example:
        """An example of his whose decisions count what their events do."""
        if self.weights is None:
            return example
        return replace(example, weights=self.weights[example.first + example.decisions])

    def asked(self, entry: Entry) -> Contexts | None:
        """The context of each decision of an entry of his: of its event, or of none at the history's end."""
        if self.contexts is None:
            return None
        if isinstance(entry, Lesson):
            return self.contexts.take(np.asarray([len(self.history)]))
        return self.contexts.take(entry.first + entry.decisions)


def _steps(task: Task, prompts: Prompts, ranker: Ranker, rng: np.random.Generator, done: int) -> Iterator[list[User]]:
    """The users of each remaining step, epoch after epoch, streamed from the store and shuffled."""
    import ray.train

    shard = ray.train.get_dataset_shard("train")
    users = task.train.users_per_step
    while done < task.steps:
        seed = int(rng.integers(2**31))
        batches = shard.iter_batches(
            batch_size=users, batch_format="pyarrow", local_shuffle_buffer_size=64 * users, local_shuffle_seed=seed
        )
        for batch in batches:
            yield _users(batch, task, prompts, ranker)
            done += 1
            if done == task.steps:
                return


def _drawn_steps(
    task: Task, prompts: Prompts, ranker: Ranker, rng: np.random.Generator, done: int
) -> Iterator[list[User]]:
    """The users of each remaining step, each of this rank's with the same probability; all are held in memory. No seed
    tells who is drawn: from those who know it, noise hides less."""
    import ray.train

    assert task.private is not None
    shard = ray.train.get_dataset_shard("train")
    everyone = pa.concat_tables(shard.iter_batches(batch_size=1024, batch_format="pyarrow")).combine_chunks()
    unknown = np.random.default_rng()
    for _ in range(done, task.steps):
        chosen = drawn(everyone.num_rows, task.private.rate, unknown)
        yield _users(everyone.take(chosen), task, prompts, ranker) if len(chosen) else []


def _users(batch: pa.Table, task: Task, prompts: Prompts, ranker: Ranker) -> list[User]:
    ids, training_only = prompts.catalogue.ids, task.train.events == "training"
    rows, told = known_histories(batch, ids, training_only), None
    if names := placeholders(task.prompt.context):
        events, nothing = known_contexts(batch, ids, training_only), pa.nulls(1, pa.string())
        texts = {name: events[name].cast(pa.string()) for name in names}  # a teacher's lists come with large ones
        told = ranker.read_contexts(pa.table({name: pa.concat_arrays([texts[name], nothing]) for name in names}))
    weights = known_weights(batch, ids, training_only)
    old = None if task.since is None else known_events(batch, ids, training_only)[1] <= task.since
    taught = scores = None
    if TEACHER_SCORES in batch.column_names:
        lists = item_rows(batch[TEACHER_ITEMS], ids)
        flat = flatten(batch[TEACHER_SCORES])[0].to_numpy(zero_copy_only=False)
        taught, scores = keep(lists, lists.values >= 0), flat[lists.values >= 0].astype(np.float32)
    users = []
    for i, user in enumerate(batch[USER].to_pylist()):
        history = rows[i].astype(np.int64)
        items, own = np.empty(0, np.int64), np.empty(0, np.float32)
        if taught is not None and scores is not None:
            items, own = taught[i].astype(np.int64), scores[taught.offsets[i] : taught.offsets[i + 1]]
        first = 0 if old is None else int(old[rows.offsets[i] : rows.offsets[i + 1]].sum())
        if first < len(history):
            places = np.append(np.arange(rows.offsets[i], rows.offsets[i + 1]), len(rows.values))
            lesson = Lesson(history[-prompts.max_history :], items, own)
            own_weights = None if weights is None else weights[places[:-1]]
            users.append(User(user, history, lesson, None if told is None else told.take(places), own_weights, first))
    return users


def _step(
    model: Any,
    causal: bool,
    requests: list[Request],
    entries: list[Entry],
    loss: Callable[[Scores, list[Entry]], torch.Tensor],
    *,
    train: config.Train,
    dtype: torch.dtype,
    device: torch.device,
    world: int,
) -> float:
    """Accumulate the gradient of the step's loss over all ranks; this rank's share of that loss."""
    groups = plan([r.tokens for r in requests], train.batch_tokens)
    passes = int(_max(len(groups), device, world))
    total = torch.zeros((), device=device)  # read once a step: each reading waits for the device
    for index in range(passes):
        # A rank with fewer passes repeats its last one at weight zero.
        weight = 1.0 if index < len(groups) else 0.0
        group = groups[min(index, len(groups) - 1)]
        batch = pack([requests[i] for i in group], causal, WHOLE).to(device)
        # Each mask of dropout, and each adversary, is a pass of its own that counts as much as any other.
        rounds = train.dropout_passes * (2 if train.adversarial else 1)
        added = None
        for round_ in range(rounds):
            with _synchronising(model, index == passes - 1 and round_ == rounds - 1):
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    scores = model(batch, added)
                found = loss(scores, [entries[i] for i in group]) * (weight / rounds)
                # Gradients are averaged over ranks; the loss is a sum over them.
                (found * world).backward()
            total += found.detach()
            read = _ranker(model).embedded
            added = perturbation(read, train.adversarial) if read is not None and added is None else None
    return float(total)


def _ranker(model: Any) -> Ranker:
    """The ranker of what exchanges gradients."""
    found: Ranker = getattr(model, "module", model)
    return found


def _validate(
    ranker: Ranker,
    prompts: Prompts,
    held: HeldOut,
    train: config.Train,
    dtype: torch.dtype,
    device: torch.device,
    world: int,
) -> float | None:
    """Mean NDCG@10 of the true item over all ranks' users; None if there are none."""
    ranker.freeze_items()
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        found = gain(
            ranker, prompts.catalogue, held, prompts.max_history, train.validation_candidates, train.batch_tokens
        )
    ranker.thaw_items()
    ranker.train()
    users = _sum(float(len(held.targets)), device, world)
    found = _sum(found, device, world)
    return found / users if users else None


def _distributed(ranker: Ranker, strategy: str, device: torch.device, world: int) -> Any:
    if world == 1:
        return ranker.train()
    if strategy == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (world,))
        for layer in _layers(ranker):
            fully_shard(layer, mesh=mesh)
        fully_shard(ranker, mesh=mesh)  # in place
        return ranker.train()
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(ranker, device_ids=ids).train()


@contextlib.contextmanager
def _whole(model: Any) -> Iterator[None]:
    """Sharded weights gathered meanwhile: ranks validate different numbers of batches, so none may wait for another."""
    from torch.distributed.fsdp import FSDPModule

    sharded = [m for m in model.modules() if isinstance(m, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    yield
    for module in sharded:
        module.set_reshard_after_forward(True, recurse=False)
        module.reshard()


def _layers(ranker: Ranker) -> Any:
    backbone: Any = ranker.backbone
    return layers_of(getattr(backbone, "get_base_model", lambda: backbone)())


@contextlib.contextmanager
def _synchronising(model: Any, last: bool) -> Iterator[None]:
    """Exchange gradients only on the last of a step's passes."""
    if isinstance(model, DistributedDataParallel):
        with contextlib.nullcontext() if last else model.no_sync():
            yield
    else:
        if hasattr(model, "set_requires_gradient_sync"):
            model.set_requires_gradient_sync(last)
        yield


def _groups(ranker: Ranker, train: config.Train) -> list[dict[str, Any]]:
    quick = list(ranker.head.parameters()) if ranker.items is None else ranker.items.tables()
    quick += [] if ranker.contexts is None else list(ranker.contexts.parameters())
    ids = {id(p) for p in quick}
    slow = [p for p in ranker.parameters() if p.requires_grad and id(p) not in ids]
    fast = {"params": quick, "lr": train.head_learning_rate, "weight_decay": 0.0}
    return [{"params": slow}, fast] if slow else [fast]


def _resume(model: Any, optimizer: Any, schedule: Any, average: WeightAverage | None) -> Progress:
    import ray.train
    from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_state_dict

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Progress()
    with checkpoint.as_directory() as directory:
        state = torch.load(Path(directory) / STATE_FILE, map_location="cpu", weights_only=True)
    if average is not None:
        with average.applied():
            set_model_state_dict(model, state[AVERAGE], options=_state_options(False))
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state[MODEL],
        optim_state_dict=state["optimizer"],
        options=_state_options(False),
    )
    schedule.load_state_dict(state["schedule"])
    return Progress(**state["progress"])


def _report(
    model: Any,
    optimizer: Any,
    schedule: Any,
    average: WeightAverage | None,
    progress: Progress,
    metric: float,
    rank: int,
) -> None:
    """Hand metrics, and from rank 0 a checkpoint, to Ray Train."""
    import ray.train
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_state_dict

    averages = {}
    if average is not None:
        with average.applied():
            found: Any = get_model_state_dict(model, options=_state_options(True))
            averages = {
                AVERAGE: {name: weight.clone() for name, weight in found.items()}
            }  # they may be the model's own
    model_state, optimizer_state = get_state_dict(model, optimizer, options=_state_options(True))
    done = {STEPS: progress.step, "tokens": progress.tokens, "decisions": progress.decisions}
    metrics = {METRIC: metric, BEST: progress.best, VALIDATIONS: list(progress.validations), **done}
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as directory:
        state = {
            MODEL: model_state, "optimizer": optimizer_state, "schedule": schedule.state_dict(),
            "progress": vars(progress), **averages,
        }  # fmt: skip
        torch.save(state, Path(directory) / STATE_FILE)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(directory))


def _state_options(offload: bool) -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=offload, ignore_frozen_params=True, strict=False)


def _sum(value: float, device: torch.device, world: int) -> float:
    return _reduce(value, dist.ReduceOp.SUM, device, world)


def _max(value: float, device: torch.device, world: int) -> float:
    return _reduce(value, dist.ReduceOp.MAX, device, world)


def _reduce(value: float, operation: Any, device: torch.device, world: int) -> float:
    if world == 1:
        return value
    tensor = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op=operation)
    return float(tensor)
