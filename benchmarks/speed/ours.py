"""This project's packed scoring: a trunk computed once, its candidates as branches, many users in a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.speed.request import Scored, UserRequest, spans_shared
from benchmarks.speed.weights import score_vector
from llmrec.config import Model, Prompt
from llmrec.ranker.model import Ranker, score_requests
from llmrec.ranker.packing import Request, split
from llmrec.ranker.precision import Precision
from llmrec.ranker.ragged import Ragged

PACKAGES = ("llmrec", "torch", "transformers")
BATCH_TOKENS = 2048  # the default of `score.batch_tokens`


def load(
    model: str, precision: Precision, threads: int, attention: str = "cascade", compiled: bool = False
) -> Callable[[Sequence[UserRequest]], Scored]:
    """A scorer by attention backend and precision, what lies between its products compiled or not."""
    ranker = with_score_vector(model)
    ranker.attend_by(attention)
    ranker.only_score(precision, compiled)

    def score(requests: Sequence[UserRequest]) -> Scored:
        packed = [as_request(r) for r in requests]
        scores = score_requests(ranker, packed, BATCH_TOKENS)
        # A request over the budget has its trunk computed once per piece.
        pieces = [piece for request in packed for piece in split(request, BATCH_TOKENS)]
        spans = [span for p in pieces for span in spans_shared(len(p.trunk), p.branches.lengths.tolist())]
        return Scored([s.tolist() for s in scores], spans)

    return score


def with_score_vector(model: str) -> Ranker:
    ranker = Ranker.from_base(Model(items="text", head="linear"), Prompt(), model)
    ranker.head.weight.data = score_vector(ranker.backbone.config.hidden_size)
    return ranker


def as_request(request: UserRequest) -> Request:
    return Request.to_score(np.asarray(request.trunk, np.int32), Ragged.of(request.items))
