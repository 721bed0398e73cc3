"""How well a ranker finds the held-out item of some users while it trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.ranker.contexts import Contexts
from llmrec.ranker.heads import RetrieveHead
from llmrec.ranker.model import Ranker, score_requests
from llmrec.ranker.prompts import Catalogue, fitting, scoring_request
from llmrec.ranker.ragged import Ragged
from llmrec.ranker.retrieval import nearest, retrieve_head, user_vectors

CUTOFF = 10


@dataclass(frozen=True)
class HeldOut:
    """m users. openings: int32[any] each, the tokens before the history; histories: catalogue rows, oldest first;
    targets: int64[m], each user's item; candidates: rows among which a ranker that cannot retrieve has to find it.
    contexts: m, of the targets' events, None if the ranker reads none."""

    openings: Sequence[np.ndarray]
    histories: Sequence[np.ndarray]
    targets: np.ndarray
    candidates: Sequence[np.ndarray]
    contexts: Contexts | None = None


def gain(
    ranker: Ranker, catalogue: Catalogue, held: HeldOut, max_history: int, shortlist: int, batch_tokens: int
) -> float:
    """The sum over users of NDCG@10 with one relevant item, which is 1 / log2(place + 1).

    A ranker that retrieves finds the item in the whole catalogue without what the user had: by its retrieve head, or
    with the rank head by that one's `shortlist` best in new order. Another finds it among the user's candidates.
    """
    if not len(held.targets):
        return 0.0
    newest = [history[-max_history:] for history in held.histories]
    candidates = list(held.candidates)
    whole = held.contexts
    contexts = [None if whole is None else whole.take(np.asarray([i])) for i in range(len(newest))]
    if retrieve_head(ranker) is not None:
        trunks = [
            fitting(scoring_request(opening, catalogue, history, history[:0], context), ranker.positions)
            for opening, history, context in zip(held.openings, newest, contexts, strict=True)
        ]
        items, top = ranker.vectors(), CUTOFF if isinstance(ranker.head, RetrieveHead) else shortlist
        assert items is not None
        rows, scores = nearest(user_vectors(ranker, trunks, batch_tokens), items, Ragged.of(held.histories), top)
        if isinstance(ranker.head, RetrieveHead):
            hit = (rows == held.targets[:, None]) & np.isfinite(scores)
            return float((hit / np.log2(np.arange(rows.shape[1]) + 2)).sum())
        candidates = [row[np.isfinite(score)] for row, score in zip(rows, scores, strict=True)]
    requests = [
        fitting(scoring_request(opening, catalogue, history, some, context), ranker.positions)
        for opening, history, some, context in zip(held.openings, newest, candidates, contexts, strict=True)
    ]
    total = 0.0
    for found, some, target in zip(
        score_requests(ranker, requests, batch_tokens), candidates, held.targets, strict=True
    ):
        place = np.flatnonzero(some == target)
        if len(place) and np.isfinite(own := float(found[place[0]])):
            above = int((found > own).sum()) + int((found[: place[0]] == own).sum())
            total += 1 / math.log2(above + 2) if above < CUTOFF else 0.0
    return total
