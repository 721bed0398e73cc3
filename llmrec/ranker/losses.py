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


def catalogue_softmax(scores: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Listwise softmax with the whole catalogue as the list, summed over decisions.

    scores: float32[D, n_items]; true: int64[D] catalogue rows.
    """
    return cross_entropy(scores, true, reduction="sum")
