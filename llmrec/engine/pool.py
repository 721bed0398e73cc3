"""The pool's actors: what scores is loaded once, and takes bucket after bucket."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from llmrec.engine import attempts, ledger, work_rows
from llmrec.engine.run import Job
from llmrec.engine.watch import Beating
from llmrec.ranker import health
from llmrec.ranker.cost import Load
from llmrec.ranker.health import Probe
from llmrec.tables import buckets, fingerprints, requests, subsets

# Where most users are copied, a few odd ones are no share of anything.
JUDGED_USERS = 20


class Scorer(Protocol):
    """What scores, made once in each actor. It tells `beating` of every few pairs that it has scored.

    ready_seconds: how much of the time of all calls of `score` went into getting ready, which rates leave out.
    """

    probe: Probe | None
    ready_seconds: float

    @staticmethod
    def shared(job: Job) -> Any:
        """What all actors read and none changes: made once, in the shared memory of every node that needs it."""

    def __init__(self, job: Job, beating: Beating, shared: Any) -> None: ...

    def score(self, work: requests.Work, users: Sequence[int]) -> list[np.ndarray]:
        """float32[candidates] of each of these users, by their numbers in the work."""

    def pack(self, work: requests.Work, users: Sequence[int]) -> None:
        """All that `score` does but the model's own arithmetic."""

    def load(self, work: requests.Work) -> Load:
        """What scoring the work takes."""

    def operations(self, load: Load) -> float:
        """A load's arithmetic, multiply-adds counted twice."""

    def mfu(self, load: Load, seconds: float) -> float | None:
        """Share of the rate of plain matrix products, measured here at the start, that a load's arithmetic reached."""

    def texts_cut(self, work: requests.Work) -> int:
        """How many candidates are not scored by their whole text."""

    def fingerprints(self, work: requests.Work) -> np.ndarray:
        """uint64[users], equal in two runs if a user's scores are."""


@dataclass(frozen=True)
class Shared:
    """References to what is read once a run and lies in the shared memory of each node: `requests.Rules`, and what
    `Scorer.shared` made."""

    rules: Any
    scorer: Any


class PoolActor:
    """A member of the actor pool: from a bucket's work to its scores."""

    def __init__(self, job: Job, scorer: type[Scorer], pulse: Any, shared: Shared) -> None:
        import ray
        from ray.util import metrics

        self.job, self.beating = job, Beating(pulse)
        with self.beating.meanwhile():
            self.scorer = scorer(job, self.beating, ray.get(shared.scorer))
            self.rules = ray.get(shared.rules)
        tags = ("run",)
        self.pairs = metrics.Counter("llmrec_pairs_scored", "Candidates scored.", tag_keys=tags)
        self.aside = metrics.Counter("llmrec_pairs_quarantined", "Candidates set aside.", tag_keys=tags)
        self.buckets = metrics.Counter("llmrec_buckets_scored", "Buckets scored.", tag_keys=tags)
        self.copied = metrics.Counter("llmrec_users_copied", "Users copied from an earlier run.", tag_keys=tags)
        for metric in (self.pairs, self.aside, self.buckets, self.copied):
            metric.set_default_tags({"run": job.run_id})

    def __call__(self, batch: pa.Table) -> pa.Table:
        started, ready_before = time.monotonic(), self.scorer.ready_seconds
        bucket = work_rows.from_row(batch)
        work = bucket.work
        marks = fingerprints.with_rules(self.scorer.fingerprints(work), work, self.rules.marks)
        same = unchanged(self.job, bucket.number, work, marks)
        copied = work.users.filter(pa.array(same))
        work = subsets.only(work, np.flatnonzero(~same))
        journal_uri = self.job.attempts_file(bucket.number)
        found, journal = attempts.score_all(len(work.users), partial(self.scorer.score, work), journal_uri)
        left = subsets.set_aside(work, journal.aside, self.rules.ids, bucket.source)
        if left.quarantine.num_rows:
            buckets.write_parquet(left.quarantine, self.job.quarantine_file(bucket.number, "scoring"))
        flat = np.concatenate([np.empty(0, np.float32), *(scores for scores in found if scores is not None)])
        if not len(copied) or len(left.users) >= JUDGED_USERS:
            health.check(health.measure(flat, left.candidates.offsets), self.job.score)
        load = self.scorer.load(left)
        seconds = time.monotonic() - started - (self.scorer.ready_seconds - ready_before)
        counts = dict(left.counts) | {"tokens": load.tokens, "naive_tokens": load.alone, "scored": len(flat)}
        counts |= {"users_copied": len(copied), "texts_cut": self.scorer.texts_cut(left)}
        self.buckets.inc()
        for metric, n in ((self.pairs, len(flat)), (self.aside, left.quarantine.num_rows), (self.copied, len(copied))):
            if n:  # a counter refuses 0
                metric.inc(n)
        facts = {
            "attempt": journal.attempt, "seconds": round(seconds, 3), "mfu": self.scorer.mfu(load, seconds),
            "probe": self.scorer.probe and asdict(self.scorer.probe),
        }  # fmt: skip
        gone = np.zeros(len(same), bool)
        gone[np.flatnonzero(~same)[sorted(journal.aside)]] = True
        kept = fingerprints.table(bucket.work.users.filter(pa.array(~gone)), marks[~gone])
        return work_rows.to_row(
            replace(bucket, work=replace(left, counts=counts), scores=flat, copied=copied, marks=kept, facts=facts)
        )


def unchanged(job: Job, number: int, work: requests.Work, marks: np.ndarray) -> np.ndarray:
    """bool[users]: whose rows the earlier run, if there is one, already has."""
    if job.earlier is None or ledger.find(job.layout, job.earlier.run_id, number) is None:
        return np.zeros(len(work.users), bool)
    return fingerprints.unchanged(work.users, marks, buckets.read_parquet(job.marks_file(job.earlier.run_id, number)))
