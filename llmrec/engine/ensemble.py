"""Several rankers that score as one: the mean of what each says, brought to one scale user by user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llmrec import assets, storage
from llmrec.engine.prompts import Prompts
from llmrec.engine.run import Job
from llmrec.engine.scorer import ModelScorer
from llmrec.engine.watch import Beating
from llmrec.ranker.card import model_version, read_card
from llmrec.ranker.cost import Load
from llmrec.ranker.health import Probe
from llmrec.tables import requests

MIX = np.uint64(0x9E3779B97F4A7C15)  # an odd number, so that no member's fingerprint is lost


class EnsembleScorer:
    """The job's ranker and those of score.ensemble; see `pool.Scorer`."""

    @staticmethod
    def shared(job: Job) -> list[Prompts]:
        return [ModelScorer.shared(member) for member in members(job)]

    def __init__(self, job: Job, beating: Beating, shared: Sequence[Prompts]) -> None:
        self.members = [
            ModelScorer(member, beating, prompts) for member, prompts in zip(members(job), shared, strict=True)
        ]

        self.probe: Probe | None = None
        self.ready_seconds = 0.0

    def score(self, work: requests.Work, users: Sequence[int]) -> list[np.ndarray]:
        of_members = [member.score(work, users) for member in self.members]
        probes = [member.probe for member in self.members if member.probe is not None]
        if probes:  # the worst of each figure
            self.probe = Probe(max(p.difference for p in probes), min(p.top_kept for p in probes), probes[0].users)
        self.ready_seconds = sum(member.ready_seconds for member in self.members)
        return [np.mean([standardised(of) for of in said], axis=0) for said in zip(*of_members, strict=True)]

    def pack(self, work: requests.Work, users: Sequence[int]) -> None:
        for member in self.members:
            member.pack(work, users)

    def load(self, work: requests.Work) -> Load:
        return self.members[0].load(work)

    def operations(self, load: Load) -> float:
        return sum(member.operations(load) for member in self.members)

    def mfu(self, load: Load, seconds: float) -> float | None:
        peak = self.members[0].replica.peak
        return self.operations(load) / seconds / peak if peak else None

    def texts_cut(self, work: requests.Work) -> int:
        return self.members[0].texts_cut(work)

    def fingerprints(self, work: requests.Work) -> np.ndarray:
        found = np.zeros(len(work.users), np.uint64)
        for member in self.members:
            found = found * MIX + member.fingerprints(work)
        return found


def members(job: Job) -> list[Job]:
    """The job as each of its rankers has it."""
    own = storage.local_directory(job.model_uri, assets.cache_directory() / "models")
    found = [replace(job, model_version=model_version(own), ensemble=())]
    for uri in job.ensemble:
        directory = storage.local_directory(uri, assets.cache_directory() / "models")
        version, prompt = model_version(directory), read_card(directory).prompt
        found.append(replace(job, model_uri=uri, model_version=version, prompt=prompt, ensemble=()))
    return found


def standardised(scores: np.ndarray) -> np.ndarray:
    """float32[n]: of mean 0 and standard deviation 1; zeros where all are the same."""
    deviation = float(scores.std())
    if deviation <= 1e-6 * float(np.abs(scores).max(initial=0)):
        return np.zeros_like(scores)
    return np.asarray((scores - scores.mean()) / deviation, np.float32)
