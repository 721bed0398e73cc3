"""explain: why the published run shows what it shows, a sentence an item, beside the rankings.

Every bucket of the run goes to one of a pool of actors (`explain_bucket`), which leaves one file and, last, one entry;
a job that is run again does only the buckets without one. One commit then makes all files the reasons table.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from llmrec import config, storage
from llmrec.engine import publish, watch
from llmrec.engine.explain_bucket import Entry, Explainer, Explaining, know, with_model
from llmrec.engine.run import resolve
from llmrec.engine.watch import Beating
from llmrec.errors import UserError
from llmrec.evaluation import faithfulness
from llmrec.evaluation.faithfulness import Faithfulness, Falls
from llmrec.layout import Layout, reasons_table
from llmrec.ranker.card import model_revision
from llmrec.reasons import templates
from llmrec.reasons.check import VIOLATIONS
from llmrec.schema import BUCKET
from llmrec.tables import buckets, embeddings, rankings
from llmrec.tables.rankings import StagedFile

READ_CPUS = 0.5
EXAMPLES = 6
# Settings that change what explaining costs, or where it writes, never a reason.
OF_COST = frozenset({
    "run", "output", "actors", "cpus_per_actor", "gpus_per_actor", "batch_tokens", "generate_batch", "bootstrap",
})  # fmt: skip


@dataclass(frozen=True)
class Explained:
    """What explain did. run_id: the published run that is explained; id: of the run with all that its reasons depend
    on; version, new: of the reasons table, see `rankings.Published`.

    reasons: rows, of which some name history, attributes, facts (edges), links (edges between items) or a context, or
    have a model's words; violations: sentences of the model that were replaced by the template's, by why. pairs: scores
    of the ranker;
    pairs_per_reason: what a reason took of these; score_difference: the largest between a score here and the published
    one, relative to its size. faithfulness: see there. resumed: buckets done before this job began.
    """

    run_id: str
    id: str
    output: str
    version: int
    new: bool
    template: str
    language: str
    model: str
    users: int
    reasons: int
    with_history: int
    with_attributes: int
    with_facts: int
    with_links: int
    with_context: int
    by_model: int
    violations: dict[str, int]
    pairs: int
    pairs_per_reason: float
    score_difference: float
    faithfulness: Faithfulness
    buckets: int
    resumed: int
    examples: list[dict[str, Any]]


def explain(settings: config.Config, layout: Layout, say: Callable[[str], None]) -> Explained:
    """Explain the run that the rankings table shows; resumes what was cut off.

    Raises:
        UserError: nothing is published, the run was scored with other settings, model or tables than there are now, or
            a template, a column or a model is not there.
    """
    wanted, units, run = _resolve(settings, layout)
    before = _entries(wanted)
    missing = [u for u in units if u[BUCKET] not in before]
    done = len(units) - len(missing)
    say(
        f"run {wanted.job.run_id}: {len(missing)} of {len(units)} buckets to explain"
        + (f", {done} done before" if done else "")
    )
    if missing:
        _run(wanted, missing, settings.cluster.no_progress_seconds, say)
    entries = _entries(wanted)
    assert set(entries) == {u[BUCKET] for u in units}, "a bucket left no entry"
    shown = rankings.snapshot(wanted.job.output)
    if shown.run_id != wanted.job.run_id:
        raise UserError(
            f"{wanted.job.output}: shows run {shown.run_id} meanwhile, not {wanted.job.run_id}, which was explained; "
            "nothing is published, explain again"
        )
    files = [StagedFile(b, e.path, e.size, e.rows) for b, e in sorted(entries.items()) if e.rows]
    if not files:
        raise UserError(f"run '{wanted.job.run_id}' ranked no user; nothing to explain")
    kept = buckets.schema_of(storage.join(wanted.output, files[0].path))
    published = rankings.publish(wanted.output, files, run["buckets"], kept, wanted.id, "reasons")
    summary = _summary(wanted, entries, done, published.version, published.new)
    # As a run of the reasons table, which prune goes by.
    about = {"output": wanted.output, "staged": len(entries), "buckets": run["buckets"], "rule": wanted.id}
    storage.write_json(layout.run_summary(wanted.id), asdict(summary) | about)
    return summary


def _resolve(settings: config.Config, layout: Layout) -> tuple[Explaining, list[dict[str, Any]], dict[str, Any]]:
    asked = settings.explaining
    template = templates.load(asked.template)
    if asked.model and not template.instruction:
        raise UserError(f"explain.model needs a template with an instruction, and {asked.template} has none; add one")
    output = storage.absolute(settings.score.output) if settings.score.output else layout.rankings
    shown = rankings.snapshot(output)
    run, entries = publish.complete(layout, shown.run_id)
    job, units = resolve(settings, layout)
    if run["rule"] != job.rule:
        raise UserError(
            f"{output}: shows run {shown.run_id}, which was scored by other settings or another model than these; "
            "explain with the configuration that it was scored with, or score and publish again"
        )
    if run["buckets"] != job.buckets:
        raise UserError(f"run {shown.run_id} has {run['buckets']} buckets, {layout.histories} has {job.buckets}")
    job = with_model(replace(job, run_id=shown.run_id), asked)
    depends = [
        shown.run_id, asked.model_dump(mode="json", exclude=set(OF_COST)), template.model_dump(),
        model_revision(asked.model),
        [storage.manifest(uri) for uri in read(layout) if storage.exists(uri)],
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:8]
    wanted = Explaining(job, asked, template, f"{shown.run_id}-{digest}", reasons_table(settings, layout))
    files = {u[BUCKET]: u for u in units}
    of_users = np.cumsum([0, *(e.users for _, e in sorted(entries.items()))])
    share = min(1.0, asked.faithfulness_users / max(int(of_users[-1]), 1))
    sample = np.diff(np.round(of_users * share).astype(int))
    found = [
        {**files[bucket], "rows": storage.join(output, entry.path), "sample": int(n)}
        for (bucket, entry), n in zip(sorted(entries.items()), sample, strict=True)
        if entry.rows
    ]
    return wanted, found, run


def read(layout: Layout) -> tuple[str, ...]:
    """What a reason depends on beside the run: trunks and items as the ranker reads them, and what is named."""
    embedded = storage.join(layout.embeddings, embeddings.DESCRIPTION)
    written = layout.item_augmentations, layout.user_augmentations
    return layout.items, layout.histories, layout.users, layout.edges, embedded, *written


def _run(wanted: Explaining, units: Sequence[dict[str, Any]], limit: float, say: Callable[[str], None]) -> None:
    """Explain some buckets by a pool of actors."""
    import ray

    context = ray.data.DataContext.get_current()
    context.execution_no_progress_timeout_s = -1  # what does not move at all is found by the pulse
    settings, pulse = wanted.settings, watch.start_pulse()
    prompts, known, done = ray.remote(_shared).options(num_returns=3, num_cpus=READ_CPUS).remote(wanted, pulse)
    watch.waited(done, pulse, limit)
    rows = (
        ray.data.from_items(list(units), override_num_blocks=min(len(units), 10_000))
        .map_batches(
            _Actor, batch_size=1, batch_format="pyarrow", fn_constructor_args=(wanted, pulse, [prompts, known]),
            compute=ray.data.ActorPoolStrategy(size=min(settings.actors, len(units))),
            num_cpus=settings.cpus_per_actor, num_gpus=settings.gpus_per_actor,
        )
        .iter_rows()
    )  # fmt: skip

    def line(done: int, pairs: int) -> str:
        told = f"{pairs:,} scores and sentences" if pairs else "actors get ready"
        return f"{done} of {len(units)} buckets, {told}"

    watch.collected(rows, pulse, limit, "explain.actors", say, line)


def _shared(wanted: Explaining, pulse: Any) -> tuple[Any, Any, None]:
    with Beating(pulse).meanwhile():
        return (*know(wanted), None)


class _Actor:
    """A member of the pool."""

    def __init__(self, wanted: Explaining, pulse: Any, shared: Sequence[Any]) -> None:
        import ray

        self.wanted, beating = wanted, Beating(pulse)
        with beating.meanwhile():
            self.explainer = Explainer(wanted, beating, *(ray.get(of) for of in shared))

    def __call__(self, batch: pa.Table) -> pa.Table:
        (unit,) = batch.to_pylist()
        entry = self.explainer.explain(unit)
        storage.write_json(_entry_file(self.wanted, entry.bucket), asdict(entry))
        return pa.table({BUCKET: [entry.bucket]})


def _entry_file(wanted: Explaining, bucket: int) -> str:
    return storage.join(wanted.job.layout.ledger(wanted.id), f"bucket-{bucket:05d}.json")


def _entries(wanted: Explaining) -> dict[int, Entry]:
    """Of the buckets that are done, whose files are there."""
    files = dict(storage.list_files(storage.join(wanted.output, rankings.STAGED, wanted.id)))
    listed = [uri for uri, _ in storage.list_files(wanted.job.layout.ledger(wanted.id), ".json")]
    found = [Entry(**values) for values in storage.each(storage.read_json, listed)]
    return {e.bucket: e for e in found if files.get(storage.join(wanted.output, e.path)) == e.size}


def _summary(wanted: Explaining, entries: dict[int, Entry], resumed: int, version: int, new: bool) -> Explained:
    counts = Counter[str]()
    ordered = [entry for _, entry in sorted(entries.items())]
    for entry in ordered:
        counts.update(entry.counts)
    rows, pairs = sum(e.rows for e in ordered), sum(e.pairs for e in ordered)
    names = ("cited", "random", "cited_events", "random_events")
    of_users = [[of for e in ordered for of in e.falls[name]] for name in names]
    falls = Falls(sum(e.falls["reasons"] for e in ordered), *of_users)
    settings = wanted.settings
    return Explained(
        run_id=wanted.job.run_id,
        id=wanted.id,
        output=wanted.output,
        version=version,
        new=new,
        template=f"{wanted.template.name} {wanted.template.version}",
        language=wanted.template.language,
        model=settings.model or "none",
        users=sum(e.users for e in ordered),
        reasons=rows,
        with_history=counts["with_history"],
        with_attributes=counts["with_attributes"],
        with_facts=counts["with_facts"],
        with_links=counts["with_links"],
        with_context=counts["with_context"],
        by_model=counts["by_model"],
        violations={name: counts[name] for name in VIOLATIONS if counts[name]},
        pairs=pairs,
        pairs_per_reason=round(pairs / max(rows, 1), 1),
        score_difference=max((e.difference for e in ordered), default=0.0),
        faithfulness=faithfulness.measure(falls, settings.bootstrap, settings.seed),
        buckets=len(entries),
        resumed=resumed,
        examples=[shown for e in ordered for shown in e.examples][:EXAMPLES],
    )
