"""What a training pass asks of the ranker, and the loss over what it answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from llmrec.config import Train
from llmrec.ranker.contexts import Contexts
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


def request_of(
    entry: Entry, prefix: np.ndarray, catalogue: Catalogue, ranker: Ranker, contexts: Contexts | None = None
) -> Request:
    """One pass over an entry. contexts: of each of its decisions, if the ranker reads any.

    Raises:
        UserError: it takes more positions than the model has.
    """
    retrieve = isinstance(ranker.head, RetrieveHead)
    if isinstance(entry, Lesson):
        request = scoring_request(prefix, catalogue, entry.history, entry.items, contexts)
        request = trunk_only(request) if retrieve else request
    elif not ranker.causal:
        request = branch_training_request(prefix, catalogue, entry.history, entry.negatives, contexts)
    elif retrieve:
        request = catalogue_training_request(prefix, catalogue, entry.history, entry.decisions, contexts)
    else:
        request = training_request(prefix, catalogue, entry.history, entry.decisions, entry.negatives, contexts)
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
    what to divide by, what the decisions of the whole step count together (their number, if they have no weights) and
    the number of its lessons.
    """
    examples = [(i, entry) for i, entry in enumerate(entries) if isinstance(entry, Example)]
    lessons_of = [(i, entry) for i, entry in enumerate(entries) if isinstance(entry, Lesson)]
    parts, taught = [], []
    if scores.catalogue is not None:
        users, items, bias = scores.catalogue
        rows = torch.arange(len(users), device=users.device).split([_decisions(entry) for entry in entries])
        if examples:
            assert choices is not None
            asked = torch.cat([rows[i] for i, _ in examples])
            answers = torch.from_numpy(np.concatenate([entry.answers for _, entry in examples])).to(users.device)
            among = bias.masked_fill(~choices, float("-inf"))
            closed = _had([entry for _, entry in examples], users.device) if train.exclude_seen else None
            counted = _weights([entry for _, entry in examples], users.device)
            parts.append(
                catalogue_softmax(users[asked], items, among, answers, train.horizon_decay, closed, counted) / decisions
            )
        for i, entry in lessons_of if scores.items is None else ():
            listed = torch.from_numpy(entry.items).to(users.device)
            taught.append(scores.catalogue.pairs(rows[i].expand(len(listed)), listed))
    if scores.items is not None:
        reads = scores.items.float().split([_reads(entry) for entry in entries])
        if examples:
            parts.append(_against_negatives([(reads[i], entry) for i, entry in examples]) / decisions)
        taught = [reads[i] for i, _ in lessons_of]
    for own, (_, entry) in zip(taught, lessons_of, strict=True):
        wanted = torch.from_numpy(entry.scores).to(own.device)
        parts.append(train.teacher_weight * distillation(own, wanted, train.teacher_temperature) / lessons)
    return torch.stack(parts).sum()


def _weights(examples: Sequence[Example], device: torch.device) -> torch.Tensor | None:
    """float32: what each decision counts; None if all count 1."""
    given = [example.weights for example in examples if example.weights is not None]
    return torch.from_numpy(np.concatenate(given)).to(device) if given else None


def _had(examples: Sequence[Example], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """What users had by each decision of theirs: int64[N] decisions, ascending, int64[N] items."""
    had = [example.had() for example in examples]
    lengths = np.concatenate([one.lengths for one in had])
    items = np.concatenate([one.values for one in had]).astype(np.int64)
    decisions = np.repeat(np.arange(len(lengths)), lengths)
    return torch.from_numpy(decisions).to(device), torch.from_numpy(items).to(device)


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
    counted = _weights([example for _, example in asked], positive[0].device)
    return listwise_softmax(torch.cat(positive), torch.cat(negative), usable, counted)
