"""score: from candidates to staged rankings, bucket by bucket, and their publication.

Three steps stream through Ray Data, a bucket a row: tasks read and judge (`_read`), a pool of model actors scores
(`Scorer`), tasks rank and stage (`_stage`). A bucket leaves one deterministic file and, last, one ledger entry; a job
that is run again does only the buckets without one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch

from llmrec import assets, config, schema, storage
from llmrec.engine.tensor_parallel import Team
from llmrec.engine.training_worker import Prompts, load_prompts
from llmrec.engine.units import reporting
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.ranker import attention, health, precision
from llmrec.ranker.model import Ranker, model_version, score_requests
from llmrec.ranker.packing import Request
from llmrec.ranker.probe import Probe, check_labels, check_parity, slow_scores, top_kept
from llmrec.ranker.prompts import fitting, scoring_request
from llmrec.ranker.ragged import Ragged
from llmrec.schema import BUCKET, ITEM, ITEMS, USER
from llmrec.tables import buckets, rankings, requests
from llmrec.tables.rankings import Published, StagedFile

LEDGER, RUN = "ledger", "run.json"
READ_CPUS = 0.5
PAIRS = ("pairs_in", "to_score", "seen", "blocked", "over_limit", "quarantined")


@dataclass(frozen=True)
class Scored:
    """What score did. pairs_in = to_score + seen + blocked + over_limit + quarantined, summed over buckets.

    pairs_cut: scored pairs whose item's text was cut to prompt.max_item_tokens; tokens: what the model computed;
    prefix_reuse: how many times more it would be, pair by pair. The rates are of all
    actors while they score; starting, reading and writing count in `seconds` alone. probe_difference: packed against
    pair by pair, float32; top10_kept: share of the probed users' float32 top 10 that score.precision keeps.
    """

    run_id: str
    model: str
    model_version: str
    output: str
    users: int
    rows: int
    pairs: dict[str, int]
    pairs_cut: int
    buckets: int
    buckets_resumed: int
    tokens: int
    prefix_reuse: float
    pairs_per_second: float
    tokens_per_second: float
    seconds: float
    probe_difference: float | None
    top10_kept: float | None


@dataclass(frozen=True)
class Job:
    """What every task and actor of a run needs."""

    score: config.Score
    model: config.Model
    prompt: config.Prompt
    layout: Layout
    output: str
    run_id: str
    model_uri: str
    model_version: str


def score(settings: config.Config, layout: Layout, say: Callable[[str], None]) -> Scored:
    """Score every candidate, stage the rankings and complete the ledger of the run; resumes a run that was cut off.

    Raises:
        UserError: inputs are missing or of the wrong shape, the parity probe fails, or too many rows are bad.
    """
    import ray

    started = time.monotonic()
    job, units = _plan(settings, layout)
    staged = ledger(layout, job.run_id)
    missing = [u for u in units if u[BUCKET] not in staged]
    say(
        f"run {job.run_id}: {len(missing)} of {len(units)} buckets to score"
        + (f", {len(units) - len(missing)} done before" if len(missing) < len(units) else "")
    )
    fresh: list[dict[str, Any]] = []
    # The pool grows by one actor a tick; it starts as large as there is work for.
    actors = max(settings.score.min_actors, min(settings.score.max_actors, len(missing)))
    if missing:
        pool = ray.data.ActorPoolStrategy(
            min_size=settings.score.min_actors, max_size=settings.score.max_actors, initial_size=actors
        )
        done = (
            ray.data.from_items(missing, override_num_blocks=min(len(missing), 10_000))
            # Other resources than the actors', or Ray would fuse reading into them.
            .map_batches(_read, batch_size=1, fn_kwargs={"job": job}, batch_format="pyarrow", num_cpus=READ_CPUS)
            .map_batches(
                Scorer, batch_size=1, compute=pool, fn_constructor_args=(job,), batch_format="pyarrow",
                num_cpus=settings.score.cpus_per_actor, num_gpus=settings.score.gpus_per_actor,
            )
            .map_batches(_stage, batch_size=1, fn_kwargs={"job": job}, batch_format="pyarrow", num_cpus=READ_CPUS)
        )  # fmt: skip
        fresh = reporting(done.iter_rows(), len(missing), say, f"score {job.run_id}")
    entries = ledger(layout, job.run_id)
    assert set(entries) == {u[BUCKET] for u in units}, "a bucket left no ledger entry"
    totals = Counter[str]()
    for entry in entries.values():
        totals.update(entry["counts"])
    _check_bad_share(totals, settings.score)
    seconds = time.monotonic() - started
    scoring = sum(json.loads(row["entry"])["seconds"] for row in fresh)
    here = Counter[str]()
    for row in fresh:
        here.update(json.loads(row["entry"])["counts"])
    probes = [Probe(**e["probe"]) for e in entries.values() if e["probe"] is not None]
    summary = Scored(
        run_id=job.run_id,
        model=job.model_uri,
        model_version=job.model_version,
        output=job.output,
        users=sum(e["users"] for e in entries.values()),
        rows=sum(e["rows"] for e in entries.values()),
        pairs={name: totals[name] for name in PAIRS},
        buckets=len(units),
        buckets_resumed=len(units) - len(missing),
        pairs_cut=totals["cut"],
        tokens=totals["tokens"],
        prefix_reuse=round(totals["naive_tokens"] / max(totals["tokens"], 1), 1),
        pairs_per_second=here["to_score"] / scoring * actors if scoring else 0.0,
        tokens_per_second=here["tokens"] / scoring * actors if scoring else 0.0,
        seconds=seconds,
        probe_difference=max((p.difference for p in probes), default=None),
        top10_kept=float(np.average([p.top_kept for p in probes], weights=[p.users for p in probes]))
        if probes
        else None,
    )
    storage.write_json(storage.join(layout.run(job.run_id), RUN), asdict(summary))
    return summary


def publish(layout: Layout, run_id: str) -> Published:
    """Make a staged run visible, after checking that every file is there with the rows that the ledger says.

    Raises:
        UserError: the run is unknown or incomplete, or another publisher was first.
    """
    import pyarrow.parquet as pq

    where = storage.join(layout.run(run_id), RUN)
    if not storage.exists(where):
        raise UserError(f"run '{run_id}' is not complete under {layout.root}; run jobs/score.py with its configuration")
    run = storage.read_json(where)
    entries = ledger(layout, run_id)
    if len(entries) != run["buckets"]:
        raise UserError(
            f"run '{run_id}': {len(entries)} of {run['buckets']} buckets are staged; run jobs/score.py again"
        )
    files, found_schema = [], None
    fs, _ = storage.filesystem(run["output"])
    for bucket, entry in sorted(entries.items()):
        uri = storage.join(run["output"], entry["path"])
        try:
            footer = pq.read_metadata(uri.removeprefix("s3://"), filesystem=fs)
        except (OSError, pa.ArrowInvalid):
            raise UserError(
                f"run '{run_id}': staged file {uri} is gone or damaged; delete {where} and score again"
            ) from None
        if footer.num_rows != entry["rows"]:
            raise UserError(f"run '{run_id}': {uri} has {footer.num_rows} rows, the ledger says {entry['rows']}")
        found_schema = footer.schema.to_arrow_schema()
        if entry["rows"]:
            files.append(StagedFile(bucket, entry["path"], entry["size"], entry["rows"]))
    if not files or found_schema is None:
        raise UserError(f"run '{run_id}' ranked no user; nothing to publish")
    return rankings.publish(run["output"], files, run["buckets"], found_schema, run_id)


def ledger(layout: Layout, run_id: str) -> dict[int, dict[str, Any]]:
    """Finished buckets of a run and what each counted."""
    files = storage.list_files(storage.join(layout.run(run_id), LEDGER), ".json")
    entries = (storage.read_json(uri) for uri, _ in files)
    return {entry[BUCKET]: entry for entry in entries}


def _plan(settings: config.Config, layout: Layout) -> tuple[Job, list[dict[str, Any]]]:
    """Resolve the inputs, name the run by their content, list its buckets."""
    wanted = settings.score
    candidates = storage.absolute(wanted.candidates) if wanted.candidates else layout.candidates()
    output = storage.absolute(wanted.output) if wanted.output else layout.rankings
    histories = buckets.bucket_files(layout.histories)
    listed = buckets.bucket_files(candidates)
    if extra := set(listed) - set(histories):
        raise UserError(
            f"{candidates}: bucket {min(extra)} has no counterpart in {layout.histories}; bucket both into "
            f"{len(histories)} (data.buckets)"
        )
    if wanted.model == "base":
        model_uri = settings.model.base
        found = assets.resolve_model(model_uri)
        version = model_version(found) if Path(found).is_dir() else model_uri  # a hub id stands for itself
    else:
        model_uri = storage.absolute(wanted.model) if wanted.model else layout.ranker
        version = model_version(storage.local_directory(model_uri, assets.cache_directory() / "models"))
    inputs = [
        storage.manifest(uri)
        for uri in (candidates, layout.histories, layout.items, layout.users)
        if storage.exists(uri)
    ]
    ignored = {
        "min_actors",
        "max_actors",
        "cpus_per_actor",
        "gpus_per_actor",
        "publish",
        "probe_users",
        "compile",
        "tensor_parallel",
    }
    identity = [
        wanted.model_dump(exclude=ignored), version, inputs,
        [settings.model.model_dump(), settings.prompt.model_dump()] if wanted.model == "base" else None,
    ]  # fmt: skip
    run_id = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    job = Job(wanted, settings.model, settings.prompt, layout, output, run_id, model_uri, version)
    units = [{BUCKET: b, "histories": histories[b], "candidates": uri} for b, uri in listed.items()]
    return job, units


def _read(batch: pa.Table, job: Job) -> pa.Table:
    """Join and judge one bucket; what is set aside is written here, the rest travels on as one Arrow stream."""
    (unit,) = batch.to_pylist()
    found = buckets.read_parquet(unit["candidates"])
    candidates = requests.candidates_in_long_form(found, unit["candidates"])
    if job.score.users_share < 1:
        candidates = candidates.filter(pa.array(buckets.share_of(candidates[USER], job.score.users_share)))
    ids = buckets.catalogue_ids(job.layout.items)
    work = requests.build(
        buckets.read_parquet(unit["histories"], [USER, ITEMS]),
        candidates,
        requests.Rules(ids, _blocked(job, ids), job.score.exclude_seen, job.score.max_candidates),
        unit["candidates"],
    )
    aside = buckets.bucket_file(job.layout.quarantine(f"score/{job.run_id}"), unit[BUCKET])
    if work.quarantine.num_rows:
        buckets.write_parquet(work.quarantine, aside)
    return _as_row(unit[BUCKET], work, np.empty(0, np.float32), 0.0, None)


class Replica:
    """A model that scores: held against the slow way first, then brought to the job's precision."""

    def __init__(self, job: Job, rank: int = 0) -> None:
        self.job = job
        device = torch.device("cuda", rank) if job.score.gpus_per_actor else torch.device("cpu")
        if device.type == "cpu":
            torch.set_num_threads(max(1, round(job.score.cpus_per_actor / job.score.tensor_parallel)))
        parts = job.score.tensor_parallel
        if job.model_uri == job.model.base:
            directory = assets.resolve_model(job.model.base)
            self.ranker = Ranker.from_base(job.model, job.prompt, directory, parts)
        else:
            saved = storage.local_directory(job.model_uri, assets.cache_directory() / "models")
            self.ranker = Ranker.from_pretrained(saved, parts)
        self.ranker.to(device)
        self.ranker.attend_by(attention.choose(job.model.attention, device))
        self.prompts: Prompts = load_prompts(self.ranker, job.layout)
        self.precision = precision.choose(job.score.precision, device)

    def make_ready(self, few: list[Request]) -> Probe | None:
        """Held against the slow way on a few requests, if there are any, and brought to the job's precision.

        Raises:
            UserError: packed scores are not those of the pairs alone, or the prompt leads to neither label.
        """
        budget = self.job.score.batch_tokens
        slow = slow_scores(self.ranker, few)
        check_labels(self.ranker, few)
        if self.precision == "float32":
            self.ranker.only_score(self.precision, self.job.score.compile)
            kept = np.ones(len(few))
            difference = check_parity(slow, self.ranker, few, budget)
        else:
            difference = check_parity(slow, self.ranker, few, budget)
            exact = score_requests(self.ranker, few, budget)
            self.ranker.only_score(self.precision, self.job.score.compile)
            kept = top_kept(exact, score_requests(self.ranker, few, budget))
        return Probe(difference, float(kept.mean()) if len(kept) else 1.0, len(few)) if few else None

    def score(self, asked: list[Request]) -> list[torch.Tensor]:
        return score_requests(self.ranker, asked, self.job.score.batch_tokens)


class Scorer:
    """The actor: from a bucket's work to its scores. The model, the catalogue's tokens and the trunk prefixes are
    loaded once."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.team = Team(partial(Replica, job), job.score.tensor_parallel, bool(job.score.gpus_per_actor))
        self.prompts: Prompts = self.team.own.prompts
        self.card = self.team.own.ranker.card
        self.ready = False

    def __call__(self, batch: pa.Table) -> pa.Table:
        started = time.monotonic()
        bucket, work, _, _, _ = _from_row(batch)
        asked = self._requests(work)
        probe = None
        if asked and not self.ready:
            probe = self.team.call("make_ready", asked[: self.job.score.probe_users])
            self.ready = True
        scores = self.team.call("score", asked)
        flat = torch.cat(scores).numpy() if scores else np.empty(0, np.float32)
        health.check(health.measure(flat, work.candidates.offsets), self.job.score)
        work.counts["cut"] = int(self.prompts.catalogue.cut[work.candidates.values].sum())
        if self.card.head == "dot":
            work.counts["tokens"] = sum(len(r.trunk) for r in asked)
            work.counts["naive_tokens"] = sum(len(r.trunk) * len(r.branches) for r in asked)
        else:
            alone = sum(r.tokens + len(r.trunk) * (len(r.branches) - 1) for r in asked)
            work.counts["tokens"] = alone if self.card.packing == "pairs" else sum(r.tokens for r in asked)
            work.counts["naive_tokens"] = alone
        return _as_row(bucket, work, flat, time.monotonic() - started, probe)

    def _requests(self, work: requests.Work) -> list[Request]:
        prompts = self.prompts
        made = (
            scoring_request(
                prompts.prefix(user), prompts.catalogue, work.histories[i][-prompts.max_history :].astype(np.int64),
                work.candidates[i].astype(np.int64),
            )
            for i, user in enumerate(work.users.to_pylist())
        )  # fmt: skip
        return [fitting(request, prompts.positions) for request in made]


def _stage(batch: pa.Table, job: Job) -> pa.Table:
    """Rank one bucket, write its file, then its ledger entry: an entry means that the file is whole."""
    bucket, work, scores, seconds, probe = _from_row(batch)
    table = requests.rank(
        work, scores, job.score.top_k, buckets.catalogue_ids(job.layout.items), job.model_version, job.run_id
    )
    path = rankings.staged_path(job.run_id, bucket)
    size = buckets.write_parquet(table, storage.join(job.output, path))
    entry = {
        BUCKET: bucket, "path": path, "size": size, "rows": table.num_rows, "users": len(work.users),
        "counts": work.counts, "seconds": round(seconds, 3), "probe": probe and asdict(probe),
    }  # fmt: skip
    storage.write_json(storage.join(job.layout.run(job.run_id), LEDGER, f"bucket-{bucket:05d}.json"), entry)
    return pa.table({"entry": [json.dumps(entry)]})


def _as_row(bucket: int, work: requests.Work, scores: np.ndarray, seconds: float, probe: Probe | None) -> pa.Table:
    """A bucket's work as one row, so that no block boundary can ever cut it."""
    sink = pa.BufferOutputStream()
    users = pa.table({USER: work.users})
    pairs = pa.table({
        "candidate": pa.array(work.candidates.values), "recall": pa.array(work.recall_scores), "source": work.sources,
    })  # fmt: skip
    events = pa.table({"event": pa.array(work.histories.values)})
    lengths = pa.table({"h": pa.array(work.histories.offsets), "c": pa.array(work.candidates.offsets)})
    sizes = []
    for table in (users, pairs, events, lengths, pa.table({"score": pa.array(scores)})):
        before = sink.tell()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        sizes.append(sink.tell() - before)
    header = json.dumps({"counts": work.counts, "seconds": seconds, "probe": probe and asdict(probe), "sizes": sizes})
    return pa.table({
        BUCKET: pa.array([bucket], pa.int32()), "header": [header],
        "body": pa.array([sink.getvalue().to_pybytes()], pa.large_binary()),
    })  # fmt: skip


def _from_row(row: pa.Table) -> tuple[int, requests.Work, np.ndarray, float, Probe | None]:
    header = json.loads(row["header"][0].as_py())
    body, tables, start = row["body"][0].as_buffer(), [], 0
    for size in header["sizes"]:
        tables.append(pa.ipc.open_stream(body.slice(start, size)).read_all().combine_chunks())
        start += size
    users, pairs, events, lengths, scores = tables
    work = requests.Work(
        users=_array(users[USER]),
        histories=Ragged(events["event"].to_numpy(), lengths["h"].to_numpy()),
        candidates=Ragged(pairs["candidate"].to_numpy(), lengths["c"].to_numpy()),
        recall_scores=pairs["recall"].to_numpy(),
        sources=_array(pairs["source"]),
        counts=header["counts"],
        quarantine=schema.QUARANTINE.empty_table(),
    )
    probe = header["probe"] and Probe(**header["probe"])
    return row[BUCKET][0].as_py(), work, scores["score"].to_numpy(), header["seconds"], probe


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _blocked(job: Job, ids: pa.Array) -> np.ndarray:
    if not job.score.blocked_items:
        return np.zeros(len(ids), bool)
    blocked = buckets.read_parquet(job.score.blocked_items)
    if schema.id_type(blocked.schema, ITEM, job.score.blocked_items) != ids.type:
        raise UserError(f"{job.score.blocked_items}: column '{ITEM}' must hold {ids.type} ids, as the items table does")
    return pa.compute.is_in(ids, blocked[ITEM].combine_chunks()).to_numpy(zero_copy_only=False)


def _check_bad_share(totals: Counter[str], limits: config.Score) -> None:
    bad, total = totals["quarantined"], totals["pairs_in"]
    if total == 0:
        raise UserError("the candidates table is empty; nothing is published")
    if bad > limits.max_bad_share * total:
        raise UserError(
            f"{bad:,} of {total:,} candidates are bad, more than score.max_bad_share = {limits.max_bad_share} allows; "
            "nothing is published, see the quarantine table"
        )
