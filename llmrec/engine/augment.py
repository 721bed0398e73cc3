"""augment: a language model writes texts where the catalogue and the users' table have few.

Every prompt has a content hash, and every answer ever written is kept by it, those that were set aside too: a run
generates what has no answer yet, in shards that actors write one by one, so that a job that was cut off does the rest.
Then the tables in use are put together from the answers, in tasks that load no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec import assets, config, schema, storage
from llmrec.engine import units, watch
from llmrec.engine.augment_pool import SHARDS, TOLD, WriterActor, to_row
from llmrec.engine.prompts import item_texts
from llmrec.generation import generator, instructions
from llmrec.generation.instructions import Instructions
from llmrec.generation.prompts import Prompter, content_hashes
from llmrec.layout import Layout
from llmrec.ranker.card import model_revision
from llmrec.ranker.model import load_tokenizer
from llmrec.ranker.ragged import Ragged
from llmrec.schema import BUCKET, CONTENT_HASH, DETAIL, ITEM, ITEMS, KEY, ORIGIN, REASON, TEXT, TRAIN_LENGTH, USER
from llmrec.tables import augmentations, buckets
from llmrec.tables.augmentations import Generated
from llmrec.tables.catalogue import rows_of
from llmrec.tables.histories import flatten, training_part

ITEM_TEXT, HISTORY = "text", "history"
SEPARATOR = "; "
READ_CPUS = 0.25


@dataclass(frozen=True)
class Augmented:
    """What augment did.

    thin_items: those that were to get a text; items_augmented + items_set_aside make them up; users: those with
    training events, likewise, or 0 if none were to get one. generated: prompts that the model answered in this run;
    unchanged: items and users whose answer was there before; values_cut: of their prompts that were longer than
    max_input_tokens. tables: of what was asked for.
    """

    items: int
    thin_items: int
    items_augmented: int
    items_set_aside: dict[str, int]
    users: int
    users_augmented: int
    users_set_aside: dict[str, int]
    generated: int
    unchanged: int
    values_cut: int
    tokens: int
    tokens_per_second: float | None
    model: str
    revision: str
    templates: dict[str, str]
    tables: dict[str, str]
    quarantine: str


@dataclass(frozen=True)
class Job:
    """What every task and actor needs of one kind of texts, `items` or `users`. revision: of the model's files."""

    settings: config.Augment
    layout: Layout
    kind: str
    instructions: Instructions
    directory: str
    revision: str

    @property
    def folder(self) -> str:
        return self.layout.generated(self.kind)

    @property
    def rule(self) -> dict[str, Any]:
        """What an answer depends on beside its prompt."""
        names = ["max_new_tokens", "precision"]
        if self.settings.temperature:
            names += ["temperature", "top_p", "seed"]
        chosen = {name: getattr(self.settings, name) for name in names}
        return {"model": self.revision, "instructions": self.instructions.digest, **chosen}

    @property
    def source(self) -> dict[str, Any]:
        """Provenance: columns that all rows share."""
        return {
            "model": self.settings.model, "revision": self.revision, "template": self.instructions.name,
            "template_version": self.instructions.version, "template_digest": self.instructions.digest,
            "seed": self.settings.seed if self.settings.temperature else None,
        }  # fmt: skip

    def prompter(self) -> Prompter:
        return Prompter(load_tokenizer(self.directory), self.instructions, self.settings.max_input_tokens)

    @property
    def quarantine(self) -> str:
        return storage.join(self.layout.quarantine("augment"), self.kind)


@dataclass(frozen=True)
class Asked:
    """ids: of the rows that are to get a text; told: what the model is told of each, see `Prompter`; hashes: of the
    whole prompts."""

    ids: pa.Array
    told: list[str]
    hashes: list[str]


@dataclass(frozen=True)
class _Done:
    """Of one kind: rows that were to get a text, those that got one, reasons of the others, those whose answer was
    there before, values cut; of this run: prompts answered, tokens written, seconds of an actor."""

    rows: int = 0
    augmented: int = 0
    aside: tuple[tuple[str, int], ...] = ()
    unchanged: int = 0
    cut: int = 0
    generated: int = 0
    tokens: int = 0
    seconds: float = 0.0


def augment(settings: config.Config, layout: Layout, say: Callable[[str], None]) -> Augmented:
    """Write the tables of augmentations that are asked for; delete one that is not.

    Raises:
        UserError: a template is wrong or names an unknown column, the model cannot be loaded, or nothing moves for
            cluster.no_progress_seconds.
    """
    wanted = settings.augment
    templates, tables, found = {}, {}, {"items": _Done(), "users": _Done()}
    revision = ""
    if not wanted.wanted:
        say("augment.items.min_characters and augment.users.history are 0: nothing is to be written")
    items = buckets.schema_of(layout.items)
    jobs = {}
    for kind, on, template in (
        ("items", wanted.items.min_characters, wanted.items.template),
        ("users", wanted.users.history, wanted.users.template),
    ):
        if on:
            read = instructions.read(template)
            read.check([ITEM_TEXT, *items.names] if kind == "items" else [HISTORY], kind, f"template '{template}'")
            jobs[kind], templates[kind] = read, f"{read.name}.v{read.version}"
    if jobs:
        directory = assets.resolve_model(wanted.model)  # a wrong name is told before actors start
        revision = model_revision(wanted.model)
        positions = generator.positions_of(directory)
    for kind, where in (("items", layout.item_augmentations), ("users", layout.user_augmentations)):
        if kind not in jobs:
            for gone in (where, storage.join(layout.quarantine("augment"), kind)):
                storage.delete(gone)
            continue
        job = Job(wanted, layout, kind, jobs[kind], directory, revision)
        tables[kind] = where
        work = _items if kind == "items" else _users
        found[kind] = work(job, settings, positions, say)
    total = {name: sum(getattr(done, name) for done in found.values()) for name in _TOTALS}
    return Augmented(
        items=buckets.read_parquet(layout.items, [ITEM]).num_rows,
        thin_items=found["items"].rows,
        items_augmented=found["items"].augmented,
        items_set_aside=dict(found["items"].aside),
        users=found["users"].rows,
        users_augmented=found["users"].augmented,
        users_set_aside=dict(found["users"].aside),
        generated=total["generated"],
        unchanged=total["unchanged"],
        values_cut=total["cut"],
        tokens=total["tokens"],
        tokens_per_second=total["tokens"] / total["seconds"] if total["seconds"] else None,
        model=wanted.model if jobs else "",
        revision=revision,
        templates=templates,
        tables=tables,
        quarantine=layout.quarantine("augment"),
    )


_TOTALS = ("generated", "unchanged", "cut", "tokens", "seconds")


def _items(job: Job, settings: config.Config, positions: int | None, say: Callable[[str], None]) -> _Done:
    """Write item_augmentations."""
    prompter = job.prompter()
    asked = _asked_of_items(job, settings, prompter)
    known = augmentations.generated(job.folder)
    missing = _missing(asked, known)
    _check_length(missing.column(TOLD).to_pylist(), prompter, job.settings, positions)
    before = sum(known.has(asked.hashes).tolist())
    shards = [missing.slice(start, job.settings.shard) for start in range(0, missing.num_rows, job.settings.shard)]
    say(f"{len(asked.ids):,} items with little text, {missing.num_rows:,} texts to write in {len(shards)} shards")
    done = _generate(job, [to_row(shard) for shard in shards], None, settings, say) if shards else []
    known = augmentations.generated(job.folder) if shards else known
    storage.delete(job.quarantine)
    found = _written(job, asked, known, ITEM, job.layout.items, storage.join(job.quarantine, "items.parquet"))
    buckets.write_parquet(found.table, job.layout.item_augmentations)
    augmentations.tidy(job.folder, known)
    return _totals([found.counts], before, done, prompter.cut)


def _asked_of_items(job: Job, settings: config.Config, prompter: Prompter) -> Asked:
    columns = [name for name in job.instructions.placeholders if name != ITEM_TEXT]
    items = item_texts(settings.prompt, job.layout, columns)
    short = pa.compute.less(
        pa.compute.utf8_length(pa.compute.utf8_trim_whitespace(items[TEXT])), job.settings.items.min_characters
    )
    thin = items.filter(short).combine_chunks()
    given = list(dict.fromkeys(job.instructions.placeholders))
    return _asked(job, thin[ITEM].combine_chunks(), thin.select(given), prompter)


def _asked(job: Job, ids: pa.Array, rows: pa.Table, prompter: Prompter) -> Asked:
    told = prompter.told(rows)
    return Asked(ids, told, content_hashes(map(prompter.prompt, told), job.rule))


def _missing(asked: Asked, known: Generated) -> pa.Table:
    """content_hash and told of what has no answer yet, each prompt once."""
    has = known.has(asked.hashes).tolist()
    new = {h: t for h, t, there in zip(asked.hashes, asked.told, has, strict=True) if not there}
    return pa.table({CONTENT_HASH: pa.array(new, pa.string()), TOLD: pa.array(new.values(), pa.large_string())})


def _check_length(told: Sequence[str], prompter: Prompter, settings: config.Augment, positions: int | None) -> None:
    longest = sorted(told, key=lambda text: len(text.encode()))[-8:]  # by bytes, nearly as good as by tokens
    own = max(map(len, prompter.tokens(longest)), default=0)
    generator.check_length(len(prompter.prefix) + own, settings, positions)


@dataclass(frozen=True)
class _Found:
    table: pa.Table
    counts: dict[str, int]


def _written(job: Job, asked: Asked, known: Generated, key: str, origin: str, quarantine: str) -> _Found:
    """The rows in use of those asked for, by ascending id, and how many are set aside for which reason, under "" those
    that are not. The others go to quarantine."""
    answers = known.look_up(asked.hashes)
    order = pa.compute.array_sort_indices(asked.ids)
    ids, answers = asked.ids.take(order), answers.take(order)
    hashes = [asked.hashes[i] for i in order.to_pylist()]
    good = pa.compute.equal(answers["reason"], "").combine_chunks()
    bad = answers.filter(pa.compute.invert(good))
    if bad.num_rows:
        aside = ids.filter(pa.compute.invert(good))
        rows = {
            KEY: aside.cast(pa.string()), REASON: bad["reason"], DETAIL: bad[DETAIL],
            ORIGIN: pa.array([origin] * len(aside), pa.string()),
        }  # fmt: skip
        buckets.write_parquet(pa.table(rows, schema=schema.QUARANTINE), quarantine)
    texts = answers[TEXT].combine_chunks().filter(good)
    kept = [h for h, g in zip(hashes, good.to_pylist(), strict=True) if g]
    form = schema.augmentations(key, asked.ids.type)
    table = augmentations.table(key, ids.filter(good), texts, kept, form, job.source)
    return _Found(table, dict(Counter(answers["reason"].to_pylist())))


def _users(job: Job, settings: config.Config, positions: int | None, say: Callable[[str], None]) -> _Done:
    """Write user_augmentations, a file a bucket of histories."""
    import ray

    files = buckets.bucket_files(job.layout.histories)
    texts = item_texts(settings.prompt, job.layout, [])
    known = augmentations.generated(job.folder)
    given = {"job": job, "texts": ray.put(texts.select([ITEM, TEXT]))}
    sources = [{BUCKET: b, "uri": uri} for b, uri in sorted(files.items())]
    say(f"reading the users of {len(sources)} buckets")
    claims = watch.beside_driver(_Claims, max_task_retries=-1)
    plan = {**given, "positions": positions, "known": ray.put(known), "claims": claims}
    done = _generate(job, sources, plan, settings, say)
    after = augmentations.generated(job.folder)
    storage.delete(job.quarantine)
    with buckets.rewriting(job.layout.user_augmentations):
        rows = units.reporting(
            units.each(sources, _write_users, {**given, "known": ray.put(after), "before": ray.put(known)}),
            len(sources), say, "users",
        )  # fmt: skip
    augmentations.tidy(job.folder, after)
    counts = [dict(zip(row["reasons"], row["counts"], strict=True)) for row in rows]
    return _totals(counts, sum(r["unchanged"] for r in rows), done, sum(r["cut"] for r in rows))


def _asked_of_users(job: Job, uri: str, texts: pa.Table, prompter: Prompter) -> Asked:
    """Of users with training events, by the newest of these: what validation and test ask about is told to nobody."""
    table = training_part(buckets.read_parquet(uri, [USER, ITEMS, TRAIN_LENGTH]))
    flat, offsets = flatten(table[ITEMS])
    rows = Ragged(rows_of(flat, texts[ITEM].combine_chunks()), offsets)
    used = np.unique(rows.values[rows.values >= 0])
    said = dict(zip(used.tolist(), texts[TEXT].take(pa.array(used)).to_pylist(), strict=True))
    histories = []
    for i in range(len(rows)):
        newest = rows[i][-job.settings.users.history :]
        names = (said[row].strip() for row in reversed(newest.tolist()) if row >= 0)
        histories.append(SEPARATOR.join(dict.fromkeys(name for name in names if name)))
    some = pa.array([bool(history) for history in histories], pa.bool_())
    told = pa.table({HISTORY: pa.array(histories, pa.string())}).filter(some)
    return _asked(job, table[USER].combine_chunks().filter(some), told, prompter)


class _Claims:
    """Which bucket has each prompt answered whose users are in several: the first that asks, as often as it does, since
    a task that is lost comes again. Forgotten with its node, it lets a prompt be answered twice, never not at all."""

    def __init__(self) -> None:
        self.bucket: dict[bytes, int] = {}

    def mine(self, bucket: int, hashes: Sequence[str]) -> list[bool]:
        return [self.bucket.setdefault(bytes.fromhex(h), bucket) == bucket for h in hashes]


def _plan_users(batch: pa.Table, job: Job, texts: Any, positions: int | None, known: Any, claims: Any) -> pa.Table:
    """A bucket's prompts without an answer that are its to have answered, in shards."""
    import ray

    (source,) = batch.to_pylist()
    prompter = job.prompter()
    missing = _missing(_asked_of_users(job, source["uri"], ray.get(texts), prompter), ray.get(known))
    mine = ray.get(claims.mine.remote(source[BUCKET], missing[CONTENT_HASH].to_pylist()))
    missing = missing.filter(pa.array(mine, pa.bool_()))
    _check_length(missing[TOLD].to_pylist(), prompter, job.settings, positions)
    starts = range(0, missing.num_rows, job.settings.shard)
    return pa.Table.from_pylist([to_row(missing.slice(s, job.settings.shard)) for s in starts], schema=SHARDS)


def _write_users(batch: pa.Table, job: Job, texts: Any, known: Any, before: Any) -> pa.Table:
    """A bucket's table, from answers that are all there."""
    import ray

    (source,) = batch.to_pylist()
    prompter = job.prompter()
    asked = _asked_of_users(job, source["uri"], ray.get(texts), prompter)
    aside = buckets.bucket_file(job.quarantine, source[BUCKET])
    found = _written(job, asked, ray.get(known), USER, source["uri"], aside)
    buckets.write_parquet(found.table, buckets.bucket_file(job.layout.user_augmentations, source[BUCKET]))
    unchanged = int(ray.get(before).has(asked.hashes).sum())
    return pa.table({
        "reasons": pa.array([list(found.counts)], pa.list_(pa.string())),
        "counts": pa.array([list(found.counts.values())], pa.list_(pa.int64())), "unchanged": [unchanged],
        "cut": [prompter.cut],
    })  # fmt: skip


def _totals(counts: Iterable[dict[str, int]], unchanged: int, done: Sequence[dict[str, Any]], cut: int) -> _Done:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    aside = tuple(sorted((reason, n) for reason, n in total.items() if reason))
    generated, tokens = (sum(row[name] for row in done) for name in ("texts", "tokens"))
    seconds = sum(row["seconds"] for row in done) / max(1, len({row["actor"] for row in done}))
    return _Done(
        rows=sum(total.values()), augmented=total[""], aside=aside, unchanged=unchanged, cut=cut, generated=generated,
        tokens=tokens, seconds=seconds,
    )  # fmt: skip


def _generate(
    job: Job, rows: list[dict[str, Any]], plan: dict[str, Any] | None, settings: config.Config,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """Answer what has no answer, by a pool of actors; what each shard counted. rows: shards, or with `plan`, what
    `_plan_users` is given, sources of them."""
    import ray

    context = ray.data.DataContext.get_current()
    # A shard may take as long as it needs; what does not move at all is found by the pulse.
    context.execution_no_progress_timeout_s = -1
    actors = job.settings.actors if plan else max(1, min(job.settings.actors, len(rows)))
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors)
    pulse = watch.start_pulse()
    data = ray.data.from_items(rows, override_num_blocks=min(len(rows), 10_000))
    if plan:
        data = data.map_batches(
            _plan_users, batch_size=1, fn_kwargs=plan, batch_format="pyarrow", num_cpus=READ_CPUS
        )  # fmt: skip
    done = data.map_batches(
        WriterActor, batch_size=1, compute=pool, batch_format="pyarrow",
        fn_constructor_args=(job.settings, job.instructions, job.directory, job.folder, pulse),
        num_cpus=job.settings.cpus_per_actor, num_gpus=job.settings.gpus_per_actor,
    )  # fmt: skip

    def line(shards: int, texts: int) -> str:
        which = f"{shards} shards" if plan else f"{shards} of {len(rows)} shards"
        told = f"{texts:,} texts written" if texts or shards else "actors get ready"
        return f"{job.kind}: {which}, {told}"

    limit = settings.cluster.no_progress_seconds
    return watch.collected(done.iter_rows(), pulse, limit, "augment.actors", say, line)
