"""What stands in the model's place in the scoring job."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.scale import formula
from benchmarks.scale.tables import FIRST_ITEM, ITEM_STEP
from llmrec.engine.run import Job
from llmrec.engine.watch import Beating
from llmrec.ranker.cost import Load
from llmrec.tables.requests import Work


class FreeScorer:
    """Scores by `formula.score`."""

    probe = None
    ready_seconds = 0.0

    @staticmethod
    def shared(job: Job) -> None:
        return None

    def __init__(self, job: Job, beating: Beating, shared: None) -> None:
        self.beating = beating

    def score(self, work: Work, users: Sequence[int]) -> list[np.ndarray]:
        lists = work.candidates.take(np.asarray(users))
        owners = np.repeat(work.users.to_numpy()[users], lists.lengths)
        found = formula.score(owners, FIRST_ITEM + ITEM_STEP * lists.values.astype(np.int64))
        self.beating(len(found))
        return [found[start:end] for start, end in zip(lists.offsets[:-1], lists.offsets[1:], strict=True)]

    def pack(self, work: Work, users: Sequence[int]) -> None:
        return None

    def load(self, work: Work) -> Load:
        return Load(0, 0, 0)

    def operations(self, load: Load) -> float:
        return 0.0

    def mfu(self, load: Load, seconds: float) -> None:
        return None

    def texts_cut(self, work: Work) -> int:
        return 0

    def fingerprints(self, work: Work) -> np.ndarray:
        return np.zeros(len(work.users), np.uint64)
