"""plan: what a scoring run will take, from the size of its inputs and a short calibration, before it is paid for.

The sample is judged as the job judges, and scored by as many actors of the job's own kind as fit the cluster, all at
once, since actors that share a machine slow each other down. The rest is proportion.
"""

from __future__ import annotations

import heapq
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmrec import storage
from llmrec.config import Config
from llmrec.engine import ledger, watch, work_rows
from llmrec.engine.attempts import WINDOW
from llmrec.engine.ensemble import EnsembleScorer
from llmrec.engine.pool import Scorer, Shared, unchanged
from llmrec.engine.run import Job, resolve
from llmrec.engine.score import actors_for, share
from llmrec.engine.scorer import ModelScorer
from llmrec.engine.tasks import fused, judged, ranked
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.schema import BUCKET
from llmrec.tables import buckets, fingerprints, subsets

# Dense bfloat16 operations a second that NVIDIA's data sheets give, without sparsity; SXM where there is a choice.
GPUS = {"L4": 121e12, "L40S": 362e12, "A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}
SAMPLED = 4
# What is scored at once in the calibration, in batches: enough to fill them as a long list of users does.
BATCHES = 4


@dataclass(frozen=True)
class Plan:
    """What a run will take: the sample's figures in proportion to the candidates that the files' footers count.

    device: what was calibrated, or the named GPU; buckets: to score now; done: staged before; pairs: `in` of the
    buckets to score, `to_score` by the model, `copied` from an earlier run. actor_mb: the most that a calibrating actor
    held; bucket_mb: of the largest bucket on its way; output_mb: of the staged files. start_seconds: until the actors
    have started, loaded their models and probed them. packed_per_second: pairs that all actors could pack here with no
    model behind it, which no GPU goes beyond. mfu: reached in the calibration, or by the GPU if packing allows it;
    cost: at score.price_per_hour an actor.
    """

    run_id: str
    model: str
    device: str
    buckets: int
    done: int
    users: int
    pairs: dict[str, int]
    tokens: int
    prefix_reuse: float
    operations: float
    actors: int
    actors_calibrated: int
    sampled_pairs: int
    pairs_per_second: float
    tokens_per_second: float
    packed_per_second: float
    mfu: float | None
    start_seconds: float
    hours: float
    cost: float
    cost_per_million_pairs: float | None
    actor_mb: float | None
    bucket_mb: float
    output_mb: float | None


@dataclass(frozen=True)
class Sample:
    """A bucket as judged. scored, copied: pairs; read_seconds: of reading and judging; other_seconds: what an actor
    spends on it beside scores; pack_seconds: a pair, of what `Scorer.pack` does."""

    pairs: int
    users: int
    rows: int
    scored: int
    copied: int
    tokens: int
    alone: int
    operations: float
    size_mb: float
    read_seconds: float
    other_seconds: float
    pack_seconds: float


@dataclass(frozen=True)
class Rate:
    """What an actor did in the calibration. bytes_per_row: of staged rankings."""

    pairs: int
    seconds: float
    mfu: float | None
    actor_mb: float
    bytes_per_row: float


class Calibrator:
    """An actor like those of the pool, that keeps what it read and says how long it took."""

    def __init__(self, job: Job, scorer: type[Scorer], pulse: Any, shared: Shared) -> None:
        import ray

        self.job, self.beating = job, watch.Beating(pulse)
        with self.beating.meanwhile():
            self.scorer = scorer(job, self.beating, ray.get(shared.scorer))
            self.rules = ray.get(shared.rules)

    def sample(self, unit: dict[str, Any], calibrating: bool) -> Sample:
        """Judge a bucket, and score a user or two of it, so that the next call finds everything warm."""
        started = time.monotonic()
        with self.beating.meanwhile():
            work = judged(unit, self.job, self.rules)
            read = time.monotonic()
            marks = fingerprints.with_rules(self.scorer.fingerprints(work), work, self.rules.marks)
            same = unchanged(self.job, unit[BUCKET], work, marks)
            self.work = subsets.only(work, np.flatnonzero(~same))
            load = self.scorer.load(self.work)
            other = time.monotonic()
            if calibrating and len(self.work.users):
                self.scorer.score(self.work, range(min(len(self.work.users), max(2, self.job.score.probe_users))))
        scored = len(self.work.candidates.values)
        few = range(min(len(self.work.users), WINDOW))
        packing = time.monotonic()
        self.scorer.pack(self.work, few)
        packed = time.monotonic() - packing
        return Sample(
            pairs=work.counts["pairs_in"],
            users=len(work.users),
            rows=int(np.minimum(work.candidates.lengths, self.job.score.top_k).sum()),
            scored=scored,
            copied=work.counts["to_score"] - scored,
            tokens=load.tokens,
            alone=load.alone,
            operations=self.scorer.operations(load),
            size_mb=work_rows.to_row(work_rows.Bucket(0, "", work)).nbytes / 1e6,
            read_seconds=read - started,
            other_seconds=other - read,
            pack_seconds=packed / max(int(self.work.candidates.lengths[: len(few)].sum()), 1),
        )

    def measure(self, seconds: float) -> Rate | None:
        """Score for so long; None where there is nothing to score."""
        users = len(self.work.users)
        if not users:
            return None
        each = max(1, self.scorer.load(self.work).tokens // users)
        group = min(WINDOW, -(-BATCHES * self.job.score.batch_tokens // each))
        started, at = time.monotonic(), 0
        scores: list[np.ndarray] = []
        while at == 0 or (at < users and time.monotonic() - started < seconds):
            scores += self.scorer.score(self.work, range(at, min(at + group, users)))
            at += group
        spent = time.monotonic() - started
        done = subsets.only(self.work, np.arange(len(scores)))
        table = ranked(done, fused(done, np.concatenate(scores), self.job, self.rules), self.job, self.rules)
        return Rate(
            pairs=len(done.candidates.values),
            seconds=spent,
            mfu=self.scorer.mfu(self.scorer.load(done), spent),
            actor_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            bytes_per_row=len(buckets.parquet_bytes(table)) / max(table.num_rows, 1),
        )


def plan(
    settings: Config,
    layout: Layout,
    say: Callable[[str], None],
    seconds: float = 20.0,
    gpu: str | None = None,
    mfu: float = 0.4,
    scorer: type[Scorer] = ModelScorer,
) -> Plan:
    """What `score` with these settings would take now: only what is missing of a run that was begun.

    seconds: of calibration; gpu: one of GPUS, for which a rate is worked out of its published one, an actor a GPU, at
    `mfu` of it, instead of measured.

    Raises:
        UserError: inputs are missing or of the wrong shape, or the GPU is not known.
    """
    if gpu is not None and gpu not in GPUS:
        raise UserError(f"--gpu {gpu}: not known; one of {', '.join(GPUS)}")
    if gpu is not None:
        few = {"gpus_per_actor": 0, "tensor_parallel": 1}
        settings = settings.model_copy(update={"score": settings.score.model_copy(update=few)})
    job, units = resolve(settings, layout)
    if job.ensemble and scorer is ModelScorer:
        scorer = EnsembleScorer
    done = ledger.read(layout, job.run_id)
    missing = [u for u in units if u[BUCKET] not in done]
    device = gpu or "this cluster"
    if not missing:
        none = {"in": 0, "to_score": 0, "copied": 0}
        return Plan(
            job.run_id, job.model_uri, device, 0, len(done), 0, none, 0, 1.0, 0.0, 0, 0, 0, 0.0, 0.0, 0.0, None, 0.0,
            0.0, 0.0, None, None, 0.0, None,
        )  # fmt: skip
    sizes = np.asarray(storage.each(buckets.pairs_in, (u["candidates"] for u in missing)), np.int64)
    actors = actors_for(job.score, len(missing))
    say(f"{sizes.sum():,} pairs in {len(missing)} buckets; calibrating on a few of them")
    samples, sampled, rates, start = _calibrate(job, scorer, missing, actors, 0.0 if gpu else seconds, settings, say)
    judged_pairs = sum(sizes[i] for i in sampled)
    share_of = {
        name: sum(getattr(s, name) for s in samples) / max(judged_pairs, 1)
        for name in ("pairs", "users", "rows", "scored", "copied", "tokens", "alone", "operations", "other_seconds")
    }
    total = {name: share * int(sizes.sum()) for name, share in share_of.items()}
    scored = max(total["scored"], 1e-9)
    packing = float(np.mean([s.pack_seconds for s in samples]))
    if gpu:  # which computes one batch while the next is packed
        per_pair = max(packing, total["operations"] / scored / (GPUS[gpu] * mfu))
    else:
        per_pair = float(np.mean([r.seconds / r.pairs for r in rates])) if rates else 0.0
    by_bucket = sizes * (share_of["scored"] * per_pair + share_of["other_seconds"])
    ahead = start + float(by_bucket[0]) if not done and len(missing) >= job.score.canary_from else 0.0
    read = float(np.mean([s.read_seconds for s in samples]))
    hours = (ahead + start + read + makespan(by_bucket[1:] if ahead else by_bucket, actors)) / 3600
    cost = hours * actors * job.score.price_per_hour
    known = [r.mfu for r in rates if r.mfu is not None]
    return Plan(
        run_id=job.run_id,
        model=job.model_uri,
        device=device,
        buckets=len(missing),
        done=len(done),
        users=round(total["users"]),
        pairs={"in": round(total["pairs"]), "to_score": round(total["scored"]), "copied": round(total["copied"])},
        tokens=round(total["tokens"]),
        prefix_reuse=round(total["alone"] / max(total["tokens"], 1), 1),
        operations=total["operations"],
        actors=actors,
        actors_calibrated=len(rates),
        sampled_pairs=sum(r.pairs for r in rates),
        pairs_per_second=actors / per_pair if per_pair else 0.0,
        tokens_per_second=total["tokens"] / scored * actors / per_pair if per_pair else 0.0,
        packed_per_second=actors / packing if packing else 0.0,
        mfu=total["operations"] / scored / per_pair / GPUS[gpu] if gpu else float(np.mean(known)) if known else None,
        start_seconds=start,
        hours=hours,
        cost=cost,
        cost_per_million_pairs=cost / scored * 1e6 if cost else None,
        actor_mb=max((r.actor_mb for r in rates), default=None),
        bucket_mb=max(s.size_mb / max(sizes[i], 1) for s, i in zip(samples, sampled, strict=True)) * int(sizes.max()),
        output_mb=float(np.mean([r.bytes_per_row for r in rates])) * total["rows"] / 1e6 if rates else None,
    )


def makespan(seconds: Sequence[float] | np.ndarray, actors: int) -> float:
    """When the last of some actors is done, each taking the next bucket as soon as it is free."""
    free = [0.0] * actors
    for each in seconds:
        heapq.heappush(free, heapq.heappop(free) + float(each))
    return max(free)


def _calibrate(
    job: Job, scorer: type[Scorer], units: Sequence[dict[str, Any]], actors: int, seconds: float, settings: Config,
    say: Callable[[str], None],
) -> tuple[list[Sample], list[int], list[Rate], float]:  # fmt: skip
    """Some buckets as judged, which they are, what each calibrating actor reached if `seconds` are given, and how long
    it took until all could score."""
    import ray

    limit, began = settings.cluster.no_progress_seconds, time.monotonic()
    pulse = watch.start_pulse()
    shared = share(job, scorer, pulse, limit)
    some = _room(job, actors) if seconds else 1
    chosen = np.unique(np.linspace(0, len(units) - 1, max(SAMPLED, some)).round().astype(int))
    made = ray.remote(Calibrator).options(num_cpus=job.score.cpus_per_actor, num_gpus=job.score.gpus_per_actor)
    running = [made.remote(job, scorer, pulse, shared) for _ in range(some)]
    samples: list[Sample] = []
    for start in range(0, len(chosen), some):
        asked = [
            actor.sample.remote(units[i], bool(seconds))
            for actor, i in zip(running, chosen[start : start + some], strict=False)
        ]
        samples += [watch.waited(found, pulse, limit) for found in asked]
        if start == 0:
            ready = time.monotonic() - began - max(s.read_seconds + s.other_seconds for s in samples)
    rates: list[Rate] = []
    if seconds:
        say(f"scoring for {seconds:.0f} s by {some} of {actors} actors")
        found = [actor.measure.remote(seconds) for actor in running]
        rates = [rate for rate in (watch.waited(f, pulse, limit) for f in found) if rate is not None]
    for actor in running:
        ray.kill(actor)
    return samples, chosen.tolist(), rates, ready


def _room(job: Job, actors: int) -> int:
    """How many actors fit the cluster now, at most as many as the job wants.

    Raises:
        UserError: none does.
    """
    import ray

    free, wanted = ray.available_resources(), {"CPU": job.score.cpus_per_actor, "GPU": job.score.gpus_per_actor}
    room = min([actors, *(int(free.get(name, 0) // each) for name, each in wanted.items() if each)])
    if room < 1:
        raise UserError(
            f"no actor fits: score.cpus_per_actor = {wanted['CPU']:g}, score.gpus_per_actor = {wanted['GPU']:g}, free "
            f"are {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs; name the machine by --gpu instead"
        )
    return room
