"""This project's packed scoring with items as vectors: one position an item, in the history and as a candidate.

What the vectors are does not change the time, so they are random ones of the length that the backbone is used to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import torch

from benchmarks.speed.request import Scored, Span, UserRequest, spans_shared
from benchmarks.speed.weights import score_vector
from llmrec.config import Model, Prompt
from llmrec.ranker.heads import RankHead
from llmrec.ranker.item_features import ItemFeatures
from llmrec.ranker.model import Ranker, score_pair_by_pair, score_requests
from llmrec.ranker.packing import Request, first_branches, split
from llmrec.ranker.precision import Precision
from llmrec.ranker.prompts import Catalogue, scoring_request, trunk_opening
from llmrec.ranker.ragged import Ragged

PACKAGES = ("llmrec", "torch", "transformers")
BATCH_TOKENS = 2048  # the default of `score.batch_tokens`
CATALOGUE = 2000  # items, about as many as MovieLens-100k has
HISTORY, CANDIDATES, CHECKED = 50, 100, 3  # items of the request that is checked, and how many of its scores
TOLERANCE = 1e-3

HeadName = Literal["rank", "retrieve"]


def load(
    model: str, precision: Precision, threads: int, head: HeadName = "rank"
) -> Callable[[Sequence[UserRequest]], Scored]:
    """A scorer that takes a request of text for as many items: a trunk of T tokens and items of I tokens stand for a
    history of T // I items and as many candidates, drawn from the catalogue by the trunk's tokens.

    Raises:
        ValueError: packed scores are not those of pairs one by one, so that what would be timed is wrong.
    """
    ranker, catalogue = with_random_items(model, head)
    opening = trunk_opening(Prompt(), ranker.tokenizer)
    rows = np.arange(HISTORY + CANDIDATES)
    check(ranker, scoring_request(opening, catalogue, rows[:HISTORY], rows[HISTORY:]))
    ranker.only_score(precision)

    def score(requests: Sequence[UserRequest]) -> Scored:
        packed = [as_items(r, catalogue, opening) for r in requests]
        scores = score_requests(ranker, packed, BATCH_TOKENS)
        return Scored([s.tolist() for s in scores], [span for p in packed for span in spans(p, head)])

    return score


def with_random_items(model: str, head: HeadName) -> tuple[Ranker, Catalogue]:
    """A ranker of a catalogue with random vectors, biases and correction, and the catalogue as it is packed."""
    torch.manual_seed(0)
    ranker = Ranker.from_base(Model(items="token", head=head), Prompt(), model)
    ids, unread = pa.array(range(CATALOGUE)), Ragged.of([[]] * CATALOGUE)
    catalogue = ranker.bind(Catalogue(ids, unread, unread, np.zeros(CATALOGUE, bool)), ItemFeatures(ids))
    assert ranker.items is not None
    torch.nn.init.normal_(ranker.items.bias)
    if isinstance(ranker.head, RankHead):
        ranker.head.branch.weight.data = score_vector(ranker.backbone.config.hidden_size)
    ranker.freeze_items()
    return ranker, catalogue


def as_items(request: UserRequest, catalogue: Catalogue, opening: np.ndarray) -> Request:
    """The same items for the same trunk."""
    history = len(request.trunk) // len(request.items[0])
    rows = np.random.default_rng(request.trunk).integers(len(catalogue.ids), size=history + len(request.items))
    return scoring_request(opening, catalogue, rows[:history], rows[history:])


def spans(request: Request, head: HeadName) -> list[Span]:
    """What is computed of a request; to retrieve, its trunk alone."""
    if head == "retrieve":
        return spans_shared(len(request.trunk), [])
    # A request over the budget has its trunk computed once per piece.
    pieces = split(request, BATCH_TOKENS)
    return [span for p in pieces for span in spans_shared(len(p.trunk), p.branches.lengths.tolist())]


def check(ranker: Ranker, request: Request) -> None:
    """Hold scores of a packed request, in float32, against those of its first pairs one by one.

    Raises:
        ValueError: they differ by more than TOLERANCE.
    """
    packed = score_requests(ranker, [request], BATCH_TOKENS)[0][:CHECKED]
    apart = float((packed - score_pair_by_pair(ranker, first_branches(request, CHECKED))).abs().max())
    if not apart <= TOLERANCE:  # which holds for NaN, too
        raise ValueError(f"packed scores of items as vectors differ from pair by pair by {apart:.2g}")
