"""Training objectives over the scores of one true item and its negatives."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy


def listwise_softmax(positive: torch.Tensor, negative: torch.Tensor, usable: torch.Tensor) -> torch.Tensor:
    """Softmax cross-entropy of the true item among its candidates, summed over decisions.

    ListNet's top-one likelihood with a single relevant item (Cao et al., 2007, eq. 5).

    positive: float32[D]; negative: float32[D, n]; usable: bool[D, n], false where a negative is the true item itself.
    """
    scores = torch.cat([positive[:, None], negative.masked_fill(~usable, float("-inf"))], dim=1)
    return cross_entropy(scores, torch.zeros(len(positive), dtype=torch.long, device=scores.device), reduction="sum")


def distillation(scores: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """How far a list's softmax is from a teacher's, KL(teacher || own) * temperature ** 2 (Hinton et al., 2015).

    scores, teacher: float32[N], of the same items.
    """
    own, wanted = ((t / temperature).log_softmax(0) for t in (scores, teacher.float()))
    return temperature**2 * (wanted.exp() * (wanted - own)).sum()


def catalogue_softmax(scores: torch.Tensor, answers: torch.Tensor, decay: float) -> torch.Tensor:
    """Softmax cross-entropy over the whole catalogue, summed over decisions.

    A decision's answers weigh 1, decay, decay**2 ..., together 1: what comes a little later is right too, if less so.

    scores: float32[D, n_items], -inf for items that are no choice; answers: int64[D, w] catalogue rows, -1 for
    none, the first always one.
    """
    weight = (answers >= 0) * decay ** torch.arange(answers.shape[1], device=answers.device)
    chosen = scores.gather(1, answers.clamp(min=0))
    surprise = (scores.logsumexp(1, keepdim=True) - chosen).masked_fill(answers < 0, 0.0)
    return (surprise * weight / weight.sum(1, keepdim=True)).sum()
