"""The ranker as what scores in the pool's actors; see `pool.Scorer`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import torch

from llmrec import assets, storage
from llmrec.engine.item_vectors import freeze
from llmrec.engine.prompts import Prompts, bind, check_items, opening_tokens, tokenise_items
from llmrec.engine.run import Job
from llmrec.engine.tensor_parallel import Team
from llmrec.engine.watch import Beating
from llmrec.ranker import attention, cost, precision
from llmrec.ranker.contexts import Contexts
from llmrec.ranker.cost import Load, ModelCost
from llmrec.ranker.health import Probe
from llmrec.ranker.model import Ranker, batches, layers_of, load_tokenizer, score_requests
from llmrec.ranker.packing import Request
from llmrec.ranker.probe import check_labels, check_parity, slow_scores, top_kept
from llmrec.tables import fingerprints, requests

PEAK_ROWS, PEAK_SECONDS = 2048, 0.3


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
        directory = model_directory(job)
        if _untouched(job):
            self.ranker = Ranker.from_base(job.model, job.prompt, directory, parts)
        else:
            self.ranker = Ranker.from_pretrained(directory, parts)
        self.ranker.to(device)
        self.ranker.attend_by(attention.choose(job.model.attention, device))
        self.prompts = bind(texts, self.ranker, job.layout)
        freeze(self.ranker, job.model_uri, job.model_version, job.layout)
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

    def openings(self, work: requests.Work, users: Sequence[int]) -> list[np.ndarray]:
        """The opening tokens of each of these users."""
        texts = None if work.openings is None else work.openings.take(pa.array(users, pa.int64()))
        return opening_tokens(texts, len(users), self.prompts.plain, self.job.prompt, self.ranker.tokenizer)

    def contexts(self, work: requests.Work, users: Sequence[int]) -> list[Contexts | None]:
        """What each of these users is asked about in, as the model reads it."""
        some = None if work.contexts is None else work.contexts.take(pa.array(users, pa.int64()))
        asked = self.ranker.read_contexts(some)
        return [None if asked is None else asked.take(np.asarray([i])) for i in range(len(users))]

    def score(self, asked: list[Request]) -> list[torch.Tensor]:
        return score_requests(self.ranker, asked, self.job.score.batch_tokens, self.progress)


class ModelScorer:
    """The ranker. The catalogue is tokenised once for all actors."""

    @staticmethod
    def shared(job: Job) -> Prompts:
        directory = model_directory(job)
        check_items(directory, job.layout)
        return tokenise_items(load_tokenizer(directory), job.prompt, job.layout)

    def __init__(self, job: Job, beating: Beating, shared: Prompts) -> None:
        self.job, self.beating = job, beating
        self.team = Team(partial(Replica, job, shared), job.score.tensor_parallel, bool(job.score.gpus_per_actor))
        self.replica: Replica = self.team.own
        replica = self.replica
        replica.progress = beating
        self.prompts, self.card = replica.prompts, replica.ranker.card
        self.items = replica.ranker.frozen
        self.probe: Probe | None = None
        self.ready_seconds = 0.0
        self.item_marks: np.ndarray | None = None

    def score(self, work: requests.Work, users: Sequence[int]) -> list[np.ndarray]:
        asked = self._requests(work, users)
        if asked and not self.ready_seconds:
            started = time.monotonic()
            with self.beating.meanwhile():
                self.probe = self.team.call("make_ready", asked[: self.job.score.probe_users])
            self.ready_seconds = time.monotonic() - started
        return [scores.numpy() for scores in self.team.call("score", asked)]

    def pack(self, work: requests.Work, users: Sequence[int]) -> None:
        for _ in batches(self.replica.ranker, self._requests(work, users), self.job.score.batch_tokens):
            pass

    def load(self, work: requests.Work) -> Load:
        event, candidate = self.prompts.catalogue.event.lengths, self.prompts.catalogue.candidate.lengths
        trunk = np.asarray([
            len(opening) + int(event[self.prompts.newest(work.histories[i])].sum())
            for i, opening in enumerate(self._openings(work, range(len(work.users))))
        ], np.int64)  # fmt: skip
        asked = self.replica.ranker.read_contexts(work.contexts)
        trunk = trunk if asked is None else trunk + asked.more
        offsets, causal = work.candidates.offsets, self.replica.ranker.causal
        if self.card.head == "retrieve":  # a trunk alone scores, alone or together
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
            catalogue = self.prompts.catalogue
            vectors = [] if self.items is None else [part.cpu().numpy() for part in self.items]
            self.item_marks = fingerprints.of_items(catalogue.ids, catalogue.event, catalogue.candidate, vectors)
        return fingerprints.of_users(work, self.item_marks, self.prompts.max_history)

    def texts_cut(self, work: requests.Work) -> int:
        return int(self.prompts.catalogue.cut[work.candidates.values].sum())

    def _openings(self, work: requests.Work, users: Sequence[int]) -> list[np.ndarray]:
        return self.replica.openings(work, users)

    def _requests(self, work: requests.Work, users: Sequence[int]) -> list[Request]:
        opened, contexts = self.replica.openings(work, users), self.replica.contexts(work, users)
        return [
            self.prompts.request(opening, work.histories[user], work.candidates[user], context)
            for user, opening, context in zip(users, opened, contexts, strict=True)
        ]


def _untouched(job: Job) -> bool:
    return job.model_uri == job.model.base


def model_directory(job: Job) -> str:
    """Where the model lies on this machine, fetched if need be."""
    if _untouched(job):
        return assets.resolve_model(job.model.base)
    return str(storage.local_directory(job.model_uri, assets.cache_directory() / "models"))
