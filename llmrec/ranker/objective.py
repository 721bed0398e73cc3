"""What a training pass asks of the ranker, and the loss over what it answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from llmrec.config import Train
from llmrec.ranker.examples import Example, Lesson
from llmrec.ranker.heads import RetrieveHead
from llmrec.ranker.losses import catalogue_softmax, distillation, listwise_softmax
from llmrec.ranker.model import Ranker, Scores
from llmrec.ranker.packing import Request, trunk_only
from llmrec.ranker.prompts import (
    Catalogue,
    branch_training_request,
    catalogue_training_request,
    fitting,
    scoring_request,
    training_request,
)

Entry = Example | Lesson


def request_of(entry: Entry, prefix: np.ndarray, catalogue: Catalogue, ranker: Ranker) -> Request:
    """One pass over an entry.

    Raises:
        UserError: it takes more positions than the model has.
    """
    retrieve = isinstance(ranker.head, RetrieveHead)
    if isinstance(entry, Lesson):
        request = scoring_request(prefix, catalogue, entry.history, entry.items)
        request = trunk_only(request) if retrieve else request
    elif not ranker.causal:
        request = branch_training_request(prefix, catalogue, entry.history, entry.negatives)
    elif retrieve:
        request = catalogue_training_request(prefix, catalogue, entry.history, entry.decisions)
    else:
        request = training_request(prefix, catalogue, entry.history, entry.decisions, entry.negatives)
    return fitting(request, ranker.positions)


def loss_of(
    scores: Scores,
    entries: Sequence[Entry],
    train: Train,
    choices: torch.Tensor | None,
    decisions: float,
    lessons: float,
) -> torch.Tensor:
    """The objective over a packed batch: mean listwise softmax over each decision's candidates, over the catalogue, or
    both, whichever scores there are, and the mean distillation loss of lessons times its weight.

    scores: of the entries' requests, in their order. choices: bool[n_items], what may be an answer. decisions, lessons:
    what to divide by, the numbers of the whole step.
    """
    parts = []
    if scores.catalogue is not None:
        rows = scores.catalogue.float().split([_decisions(entry) for entry in entries])
        asked = [(found, entry) for found, entry in zip(rows, entries, strict=True) if isinstance(entry, Example)]
        if asked:
            assert choices is not None
            among = torch.cat([found for found, _ in asked]).masked_fill(~choices, float("-inf"))
            answers = torch.from_numpy(np.concatenate([entry.answers for _, entry in asked])).to(among.device)
            parts.append(catalogue_softmax(among, answers, train.horizon_decay) / decisions)
    if scores.items is not None:
        rows = scores.items.float().split([_reads(entry) for entry in entries])
        against = [(found, entry) for found, entry in zip(rows, entries, strict=True) if isinstance(entry, Example)]
        if against:
            parts.append(_against_negatives(against) / decisions)
    for found, entry in zip(rows, entries, strict=True):
        if isinstance(entry, Lesson):
            own = found if scores.items is not None else found[0, torch.from_numpy(entry.items).to(found.device)]
            wanted = torch.from_numpy(entry.scores).to(own.device)
            parts.append(train.teacher_weight * distillation(own, wanted, train.teacher_temperature) / lessons)
    return torch.stack(parts).sum()


def _decisions(entry: Entry) -> int:
    """Rows of catalogue scores that the entry reads."""
    return 1 if isinstance(entry, Lesson) else len(entry.decisions)


def _reads(entry: Entry) -> int:
    """Items that the entry reads."""
    return len(entry.items) if isinstance(entry, Lesson) else len(entry.decisions) * (1 + entry.negatives.shape[1])


def _against_negatives(asked: Sequence[tuple[torch.Tensor, Example]]) -> torch.Tensor:
    """Each example's scores, its true items first, then its negatives."""
    positive, negative = [], []
    for found, example in asked:
        d, n = example.negatives.shape
        positive.append(found[:d])
        negative.append(found[d:].view(d, n))
    usable = torch.from_numpy(np.concatenate([example.usable for _, example in asked])).to(positive[0].device)
    return listwise_softmax(torch.cat(positive), torch.cat(negative), usable)
