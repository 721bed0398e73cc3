"""Before a job scores: are the fast scores the right ones? A few real requests are scored the slow way too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from llmrec.errors import UserError
from llmrec.ranker.heads import YesNoHead
from llmrec.ranker.model import Ranker, last_states, score_pair_by_pair, score_requests
from llmrec.ranker.packing import Request, first_branches

TOLERANCE, CANDIDATES = 1e-3, 8
LEAST_LABEL_SHARE = 0.01
TOP = 10


def slow_scores(ranker: Ranker, requests: Sequence[Request]) -> list[torch.Tensor]:
    """float32 scores of each request's first few candidates, pair by pair; before `only_score` changes the ranker."""
    return [score_pair_by_pair(ranker, first_branches(r, CANDIDATES)) for r in requests]


def check_parity(
    slow_scores: Sequence[torch.Tensor], ranker: Ranker, requests: Sequence[Request], batch_tokens: int
) -> float:
    """The largest relative difference between packed float32 scores and `slow_scores` of the same requests.

    Raises:
        UserError: it is more than rounding.
    """
    few = [first_branches(r, CANDIDATES) for r in requests]
    largest = 0.0
    for slow, fast in zip(slow_scores, score_requests(ranker, few, batch_tokens), strict=True):
        if len(slow):
            difference = float((fast - slow).abs().max()) / float(slow.abs().max().clamp(min=1.0))
            largest = max(largest, difference) if np.isfinite(difference) else np.inf
    if largest > TOLERANCE:
        raise UserError(
            f"parity probe: packed scores differ from pair-by-pair scores by {largest:.2g}, more than "
            f"{TOLERANCE:g} allows; refusing to score with this model"
        )
    return largest


def check_labels(ranker: Ranker, requests: Sequence[Request]) -> None:
    """Does the prompt lead an untouched model to answer with one of the two labels?

    A template that does not (a missing "Answer:", a chat template that opens with something else, a stray space) gives
    scores that mean nothing: each label has next to no probability there.

    Raises:
        UserError: yes and no together have less than a hundredth of the probability, on average.
    """
    head = ranker.head
    if not isinstance(head, YesNoHead) or head.vocabulary is None:
        return
    shares = []
    for request in requests:
        states = last_states(ranker, first_branches(request, CANDIDATES))
        if len(states):
            chances = (states.float() @ head.vocabulary.float().T).softmax(-1)
            shares.append(chances[:, list(head.labels)].sum(-1))
    share = float(torch.cat(shares).mean()) if shares else 1.0
    if not share >= LEAST_LABEL_SHARE:
        yes, no = ranker.card.labels
        raise UserError(
            f"prompt probe: after prompt.after_candidate the model says {yes!r} or {no!r} with probability "
            f"{share:.2g} only, less than {LEAST_LABEL_SHARE:g}; change the prompt's template or model.labels"
        )


def top_kept(exact: Sequence[torch.Tensor], found: Sequence[torch.Tensor], top: int = TOP) -> np.ndarray:
    """float64[users with more than `top` candidates]: which share of the exact top list the found scores keep."""
    kept = []
    for right, other in zip(exact, found, strict=True):
        if len(right) > top:
            both = set(right.topk(top).indices.tolist()) & set(other.topk(top).indices.tolist())
            kept.append(len(both) / top)
    return np.asarray(kept)
