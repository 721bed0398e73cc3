"""score: from candidates to staged rankings, bucket by bucket.

Three steps stream through Ray Data, a bucket a row: tasks read and judge (`tasks.read`), a pool of model actors scores
(`pool.PoolActor`), tasks rank and stage (`tasks.stage`). A bucket leaves one deterministic file and, last, one ledger
entry; a job that is run again does only the buckets without one.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec import config, schema, storage
from llmrec.engine import ledger, tasks, watch
from llmrec.engine.ensemble import EnsembleScorer
from llmrec.engine.ledger import Entry
from llmrec.engine.pool import PoolActor, Scorer, Shared
from llmrec.engine.run import PLAN, Job, fusion_uri, resolve
from llmrec.engine.scorer import ModelScorer
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.schema import BUCKET, ITEM, USER
from llmrec.tables import buckets

READ_CPUS = 0.5
SECONDS_BETWEEN_LINES = 5.0
SHOWN_USERS, SHOWN_ITEMS = 2, 3


@dataclass(frozen=True)
class Scored:
    """What score did. pairs: `in` is the sum of the others, in every bucket of the ledger and here; below_top_k: ranked
    behind the last place kept, or left out of a list by rerank; over_limit: beyond score.max_candidates.

    users_short: with fewer than score.top_k rows, for want of candidates or of some that rerank.quotas allow;
    users_without_list: with candidates none of which may be shown to them.
    users_copied: whose rows come from the run `reused`; pairs_scored: those of the others. texts_cut: scored pairs
    whose item's text was cut to prompt.max_item_tokens; tokens: what the model computed; prefix_reuse: how many times
    more it would be, pair by pair. buckets: how many users are hashed into; staged: those with candidates; resumed:
    staged before this job began; retried: on which a process died. The rates are of all actors while they score;
    starting, reading and writing count in `seconds` alone. mfu: share of an actor's rate of plain matrix products,
    which it measures at its start, that the arithmetic of its tokens reached. probe_difference: packed against pair by
    pair, float32; top10_kept: share of the probed users' float32 top 10 that score.precision keeps. cost: at
    score.price_per_hour, of this job's actors from their start to its end.
    """

    run_id: str
    model: str
    model_version: str
    rule: str
    work: str
    output: str
    ledger: str
    quarantine: str
    users: int
    users_short: int
    users_without_list: int
    rows: int
    pairs: dict[str, int]
    users_copied: int
    reused: str | None
    pairs_scored: int
    texts_cut: int
    buckets: int
    staged: int
    resumed: int
    retried: int
    tokens: int
    prefix_reuse: float
    pairs_per_second: float
    tokens_per_second: float
    mfu: float | None
    seconds: float
    cost: float
    cost_per_million_pairs: float | None
    probe_difference: float | None
    top10_kept: float | None


def score(
    settings: config.Config, layout: Layout, say: Callable[[str], None], scorer: type[Scorer] = ModelScorer
) -> Scored:
    """Score every candidate, stage the rankings and complete the ledger of the run; resumes a run that was cut off.

    Raises:
        UserError: inputs are missing or of the wrong shape, the parity probe fails, too many rows are bad, or nothing
            moves for cluster.no_progress_seconds.
    """
    started = time.monotonic()
    job, units = resolve(settings, layout)
    if job.ensemble and scorer is ModelScorer:
        scorer = EnsembleScorer
    before = ledger.read(layout, job.run_id)
    missing = [u for u in units if u[BUCKET] not in before]
    say(
        f"run {job.run_id}: {len(missing)} of {len(units)} buckets to score"
        + (f", {len(units) - len(missing)} done before" if len(missing) < len(units) else "")
    )
    # From here on the run is known to be under way, and prune leaves it alone.
    storage.write_json(
        storage.join(layout.run(job.run_id), PLAN),
        {"output": job.output, "units": units, "model": job.model_uri, "score": settings.score.model_dump(mode="json")},
    )
    if job.fusion is not None:  # the file may hold that of a later ranker by the time somebody asks what parts added
        fitted = storage.read_bytes(fusion_uri(settings.fusion, layout))
        storage.write_bytes(layout.fusion_of(job.run_id), fitted)
    if settings.score.reuse and missing:
        say(
            f"copying users of whom nothing changed since run {job.earlier.run_id}"
            if job.earlier
            else f"score.reuse = {settings.score.reuse}: no run with this model and these settings; scoring every user"
        )
    actors = actors_for(settings.score, len(missing))
    status = _Status(say, len(missing), settings.score.price_per_hour * actors)
    limit = settings.cluster.no_progress_seconds
    fresh: list[Entry] = []
    if missing:
        pulse = watch.start_pulse()
        shared = share(job, scorer, pulse, limit)
        if not before and len(missing) >= settings.score.canary_from:
            say("scoring one bucket first")
            fresh += _run(job, missing[:1], 1, scorer, shared, pulse, limit, status)
            _show(job, fresh[0], say)
            missing = missing[1:]
        if missing:
            fresh += _run(job, missing, actors, scorer, shared, pulse, limit, status)
    entries = ledger.read(layout, job.run_id)
    assert set(entries) == {u[BUCKET] for u in units}, "a bucket left no ledger entry"
    totals = ledger.total(entries)
    _check_bad_share(totals, settings.score)
    summary = _summary(job, entries, fresh, actors, totals, time.monotonic() - started)
    storage.write_json(layout.run_summary(job.run_id), asdict(summary))
    return summary


def actors_for(wanted: config.Score, buckets: int) -> int:
    return max(wanted.min_actors, min(wanted.max_actors, buckets))


def share(job: Job, scorer: type[Scorer], pulse: Any, limit: float) -> Shared:
    """What the processes of a run share.

    Raises:
        UserError: the model or the tables do not go together, or nothing moves.
    """
    import ray

    # The last is nothing but the task's end, or its error: the driver has no use for the others.
    by, made, done = ray.remote(tasks.make_shared).options(num_returns=3, num_cpus=READ_CPUS).remote(job, scorer, pulse)
    watch.waited(done, pulse, limit)
    return Shared(by, made)


def _run(
    job: Job, units: Sequence[dict[str, Any]], actors: int, scorer: type[Scorer], shared: Shared, pulse: Any,
    limit: float, status: _Status,
) -> list[Entry]:  # fmt: skip
    """Score some buckets by so many actors; their entries."""
    import ray

    context = ray.data.DataContext.get_current()
    # A bucket may take as long as it needs; what does not move at all is found by the pulse.
    context.execution_no_progress_timeout_s = -1
    # The pool grows by one actor a tick; it starts as large as there is work for.
    pool = ray.data.ActorPoolStrategy(
        min_size=min(job.score.min_actors, actors), max_size=max(job.score.max_actors, actors), initial_size=actors
    )
    given = {"job": job, "by": shared.rules}
    done = (
        ray.data.from_items(list(units), override_num_blocks=min(len(units), 10_000))
        # Other resources than the actors', or Ray would fuse reading into them.
        .map_batches(tasks.read, batch_size=1, fn_kwargs=given, batch_format="pyarrow", num_cpus=READ_CPUS)
        .map_batches(
            PoolActor, batch_size=1, compute=pool, fn_constructor_args=(job, scorer, pulse, shared),
            batch_format="pyarrow", num_cpus=job.score.cpus_per_actor, num_gpus=job.score.gpus_per_actor,
        )
        .map_batches(tasks.stage, batch_size=1, fn_kwargs=given, batch_format="pyarrow", num_cpus=READ_CPUS)
    )  # fmt: skip
    found = []
    for row in watch.watched(done.iter_rows(), pulse, limit, status.tick):
        found.append(ledger.entry(json.loads(row["entry"])))
        status.done(found[-1])
    return found


class _Status:
    """One line every few seconds: how far, how fast, how long still, what was set aside, what it costs."""

    def __init__(self, say: Callable[[str], None], total: int, price_per_hour: float) -> None:
        self.say, self.total, self.price = say, total, price_per_hour
        self.started = self.last = time.monotonic()
        self.buckets = self.aside = self.scored = 0
        self.first: tuple[float, int] | None = None  # when pairs were seen first, and how many

    def done(self, entry: Entry) -> None:
        self.buckets += 1
        self.scored += entry.counts["scored"]
        self.aside += entry.counts["quarantined"]

    def tick(self, pairs: int) -> None:
        now = time.monotonic()
        if now - self.last < SECONDS_BETWEEN_LINES:
            return
        self.last, seconds = now, now - self.started
        line = f"{self.buckets} of {self.total} buckets, "
        if pairs and self.first is None:
            self.first = (now, pairs)
        if self.first is None or now == self.first[0]:
            line += f"{pairs:,} pairs" if pairs else "actors get ready"
        else:
            rate = (pairs - self.first[1]) / (now - self.first[0])
            line += f"{pairs:,} pairs, {rate:,.0f} pairs/s"
            if self.buckets and rate:
                left = max(0, round(self.scored / self.buckets * self.total) - pairs)
                line += f", about {_clock(left / rate)} left"
        line += f", {self.aside:,} set aside" if self.aside else ""
        self.say(line + (f", cost {self.price * seconds / 3600:.2f}" if self.price else ""))


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _summary(
    job: Job, entries: dict[int, Entry], fresh: Sequence[Entry], actors: int, totals: Counter[str], seconds: float
) -> Scored:
    scoring = sum(entry.seconds for entry in fresh)
    here, timed = Counter[str](), [e for e in fresh if e.mfu is not None and e.seconds]
    for entry in fresh:
        here.update(entry.counts)
    probes = [e.probe for e in entries.values() if e.probe is not None]
    cost = job.score.price_per_hour * actors * seconds / 3600 if fresh else 0.0
    return Scored(
        run_id=job.run_id,
        model=job.model_uri,
        model_version=job.model_version,
        rule=job.rule,
        work=job.work,
        output=job.output,
        ledger=ledger.write_table(job.layout, job.run_id, entries),
        quarantine=job.layout.quarantine(f"score/{job.run_id}"),
        users=sum(e.users for e in entries.values()),
        users_short=totals["users_short"],
        users_without_list=totals["users_in"] - sum(e.users for e in entries.values()),
        rows=sum(e.rows for e in entries.values()),
        pairs={"in": totals["pairs_in"]} | {name: totals[name] for name in ledger.ENDS},
        users_copied=totals["users_copied"],
        reused=job.earlier.run_id if job.earlier else None,
        pairs_scored=totals["scored"],
        texts_cut=totals["texts_cut"],
        buckets=job.buckets,
        staged=len(entries),
        resumed=len(entries) - len(fresh),
        retried=sum(e.attempt > 1 for e in entries.values()),
        tokens=totals["tokens"],
        prefix_reuse=round(totals["naive_tokens"] / max(totals["tokens"], 1), 1),
        pairs_per_second=here["scored"] / scoring * actors if scoring else 0.0,
        tokens_per_second=here["tokens"] / scoring * actors if scoring else 0.0,
        mfu=float(np.average([e.mfu for e in timed], weights=[e.seconds for e in timed])) if timed else None,
        seconds=seconds,
        cost=cost,
        cost_per_million_pairs=cost / here["scored"] * 1e6 if cost and here["scored"] else None,
        probe_difference=max((p.difference for p in probes), default=None),
        top10_kept=float(np.average([p.top_kept for p in probes], weights=[p.users for p in probes]))
        if probes
        else None,
    )


def _show(job: Job, entry: Entry, say: Callable[[str], None]) -> None:
    """What the first bucket gave."""
    rows = buckets.read_parquet(storage.join(job.output, entry.path))
    say(
        f"bucket {entry.bucket}: {entry.users:,} users, {entry.counts['scored']:,} pairs in {entry.seconds:.1f} s, "
        f"{entry.counts['quarantined']:,} set aside"
    )
    for user in rows[USER].unique().to_pylist()[:SHOWN_USERS]:
        best = rows.filter(pa.compute.equal(rows[USER], user)).slice(0, SHOWN_ITEMS).to_pylist()
        say(f"  user {user}: " + ", ".join(f"{r[ITEM]} ({r[schema.SCORE]:.3f})" for r in best) + " ...")


def _check_bad_share(totals: Counter[str], limits: config.Score) -> None:
    bad, total = totals["quarantined"], totals["pairs_in"]
    if total == 0:
        raise UserError("the candidates table is empty; nothing is published")
    if bad > limits.max_bad_share * total:
        raise UserError(
            f"{bad:,} of {total:,} candidates are bad, more than score.max_bad_share = {limits.max_bad_share} allows; "
            "nothing is published, see the quarantine table"
        )
