"""The pool's actors: a model that is loaded once and scores bucket after bucket."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch

from llmrec import assets, storage
from llmrec.engine import attempts, ledger, work_rows
from llmrec.engine.prompts import Prompts, bind, tokenise_items
from llmrec.engine.run import Job
from llmrec.engine.tensor_parallel import Team
from llmrec.engine.watch import Beating
from llmrec.ranker import attention, cost, health, precision
from llmrec.ranker.cost import Load, ModelCost
from llmrec.ranker.model import Ranker, layers_of, load_tokenizer, score_requests
from llmrec.ranker.packing import Request
from llmrec.ranker.probe import Probe, check_labels, check_parity, slow_scores, top_kept
from llmrec.ranker.prompts import fitting, scoring_request, trunk_openings
from llmrec.tables import buckets, fingerprints, requests, subsets

ATTEMPTS, MARKS = "attempts", "users"
# Where most users are copied, a few odd ones are no share of anything.
JUDGED_USERS = 20
PEAK_ROWS, PEAK_SECONDS = 2048, 0.3


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


class Replica:
    """A model that scores: held against the slow way first, then brought to the job's precision.

    cost: of a token, of all parts of a model that is split; peak: operations a second of plain matrix products, of all
    parts, known once it is ready.
    """

    def __init__(self, job: Job, texts: Prompts, rank: int = 0) -> None:
        self.job = job
        device = torch.device("cuda", rank) if job.score.gpus_per_actor else torch.device("cpu")
        if device.type == "cpu":
            torch.set_num_threads(max(1, round(job.score.cpus_per_actor / job.score.tensor_parallel)))
        parts = job.score.tensor_parallel
        directory = _model_directory(job)
        if _untouched(job):
            self.ranker = Ranker.from_base(job.model, job.prompt, directory, parts)
        else:
            self.ranker = Ranker.from_pretrained(directory, parts)
        self.ranker.to(device)
        self.ranker.attend_by(attention.choose(job.model.attention, device))
        self.prompts = bind(texts, self.ranker)
        self.precision = precision.choose(job.score.precision, device)
        self.cost = ModelCost.of(layers_of(self.ranker.backbone), self.ranker.backbone.config)
        self.peak = 0.0
        self.progress: Callable[[int], None] | None = None

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
        self.peak = self._peak() * self.job.score.tensor_parallel
        return Probe(difference, float(kept.mean()) if len(kept) else 1.0, len(few)) if few else None

    def _peak(self) -> float:
        config = self.ranker.backbone.config
        hidden, middle = config.hidden_size, config.intermediate_size
        dtype, device = getattr(torch, self.precision), next(self.ranker.parameters()).device
        return cost.operations_per_second(dtype, PEAK_ROWS, hidden, middle, PEAK_SECONDS, device)

    def score(self, asked: list[Request]) -> list[torch.Tensor]:
        return score_requests(self.ranker, asked, self.job.score.batch_tokens, self.progress)


class ModelScorer:
    """The ranker. The catalogue is tokenised once for all actors."""

    @staticmethod
    def shared(job: Job) -> Prompts:
        return tokenise_items(load_tokenizer(_model_directory(job)), job.prompt, job.layout)

    def __init__(self, job: Job, beating: Beating, shared: Prompts) -> None:
        self.job, self.beating = job, beating
        self.team = Team(partial(Replica, job, shared), job.score.tensor_parallel, bool(job.score.gpus_per_actor))
        self.replica: Replica = self.team.own
        replica = self.replica
        replica.progress = beating
        self.prompts, self.card = replica.prompts, replica.ranker.card
        self.items = replica.ranker.items
        self.probe: Probe | None = None
        self.ready_seconds = 0.0
        self.item_marks: np.ndarray | None = None

    def score(self, work: requests.Work, users: Sequence[int]) -> list[np.ndarray]:
        openings = self._openings(subsets.only(work, np.asarray(users, np.int64)))
        asked = [self._request(work, user, opening) for user, opening in zip(users, openings, strict=True)]
        if asked and not self.ready_seconds:
            started = time.monotonic()
            with self.beating.meanwhile():
                self.probe = self.team.call("make_ready", asked[: self.job.score.probe_users])
            self.ready_seconds = time.monotonic() - started
        return [scores.numpy() for scores in self.team.call("score", asked)]

    def load(self, work: requests.Work) -> Load:
        event, candidate = self.prompts.catalogue.event.lengths, self.prompts.catalogue.candidate.lengths
        trunk = np.asarray([
            len(opening) + int(event[self._history(work, i)].sum()) for i, opening in enumerate(self._openings(work))
        ], np.int64)  # fmt: skip
        offsets, causal = work.candidates.offsets, self.replica.ranker.causal
        if self.card.head == "dot":  # a trunk alone scores, alone or together
            found = cost.branches(trunk, np.zeros_like(offsets), np.empty(0, np.int64), causal)
            return replace(found, alone=int((trunk * work.candidates.lengths).sum()))
        lengths = candidate[work.candidates.values]
        return (cost.pair_by_pair if self.card.packing == "pairs" else cost.branches)(trunk, offsets, lengths, causal)

    def operations(self, load: Load) -> float:
        return self.replica.cost.operations(load.tokens, load.visible)

    def mfu(self, load: Load, seconds: float) -> float | None:
        return self.operations(load) / seconds / self.replica.peak if self.replica.peak else None

    def fingerprints(self, work: requests.Work) -> np.ndarray:
        if self.item_marks is None:
            catalogue, vectors = self.prompts.catalogue, None
            if self.items is not None:
                with torch.inference_mode():
                    vectors = torch.cat([self.items()[0], self.items()[1][:, None]], dim=1).float().cpu().numpy()
            self.item_marks = fingerprints.of_items(catalogue.ids, catalogue.event, catalogue.candidate, vectors)
        return fingerprints.of_users(work, self.item_marks, self.prompts.max_history)

    def texts_cut(self, work: requests.Work) -> int:
        return int(self.prompts.catalogue.cut[work.candidates.values].sum())

    def _history(self, work: requests.Work, user: int) -> np.ndarray:
        return work.histories[user][-self.prompts.max_history :].astype(np.int64)

    def _openings(self, work: requests.Work) -> list[np.ndarray]:
        """Each user's opening tokens."""
        plain = self.prompts.plain
        if work.openings is None:
            return [plain] * len(work.users)
        known = trunk_openings(work.openings.drop_null().to_pylist(), self.job.prompt, self.replica.ranker.tokenizer)
        left = iter(known)
        return [next(left) if there else plain for there in work.openings.is_valid().to_pylist()]

    def _request(self, work: requests.Work, user: int, opening: np.ndarray) -> Request:
        candidates = work.candidates[user].astype(np.int64)
        request = scoring_request(opening, self.prompts.catalogue, self._history(work, user), candidates)
        return fitting(request, self.prompts.positions)


class PoolActor:
    """A member of the actor pool: from a bucket's work to its scores."""

    def __init__(self, job: Job, scorer: type[Scorer], pulse: Any, shared: Shared) -> None:
        import ray
        from ray.util import metrics

        self.job, self.beating = job, Beating(pulse)
        with self.beating.meanwhile():
            self.scorer = scorer(job, self.beating, ray.get(shared.scorer))
            self.ids = ray.get(shared.rules).ids
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
        work, marks = bucket.work, self.scorer.fingerprints(bucket.work)
        same = unchanged(self.job, bucket.number, work, marks)
        copied = work.users.filter(pa.array(same))
        work = subsets.only(work, np.flatnonzero(~same))
        journal_uri = attempts_file(self.job, bucket.number)
        found, journal = attempts.score_all(len(work.users), partial(self.scorer.score, work), journal_uri)
        left = subsets.set_aside(work, journal.aside, self.ids, bucket.source)
        if left.quarantine.num_rows:
            buckets.write_parquet(left.quarantine, quarantine_file(self.job, bucket.number, "scoring"))
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
    return fingerprints.unchanged(work.users, marks, buckets.read_parquet(marks_file(job, job.earlier.run_id, number)))


def _untouched(job: Job) -> bool:
    return job.model_uri == job.model.base


def _model_directory(job: Job) -> str:
    """Where the model lies on this machine, fetched if need be."""
    if _untouched(job):
        return assets.resolve_model(job.model.base)
    return str(storage.local_directory(job.model_uri, assets.cache_directory() / "models"))


def attempts_file(job: Job, bucket: int) -> str:
    return storage.join(job.layout.run(job.run_id), ATTEMPTS, f"bucket-{bucket:05d}.json")


def marks_file(job: Job, run_id: str, bucket: int) -> str:
    return buckets.bucket_file(storage.join(job.layout.run(run_id), MARKS), bucket)


def quarantine_file(job: Job, bucket: int, step: str) -> str:
    return storage.join(job.layout.quarantine(f"score/{job.run_id}"), f"bucket-{bucket:05d}-{step}.parquet")
