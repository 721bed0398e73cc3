"""Score heads: from hidden states to float32 scores."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import normalize

from llmrec.ranker.item_encoder import ItemVectors


class LinearHead(nn.Module):
    """score = w . h at the end of a branch; w starts at zero, so that an untrained head prefers nothing."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """states: [B, hidden] -> float32[B]."""
        return (states.float() * self.weight.float()).sum(-1)  # a product of matrices autocast would round


class YesNoHead(LinearHead):
    """score = logit(yes) - logit(no) at the end of a branch, multiplying only those two rows of the vocabulary head."""

    def __init__(self, vocabulary: torch.Tensor, labels: tuple[int, int]) -> None:
        """vocabulary: [V, hidden], the whole head, kept for the probe alone; labels: the rows of yes and no."""
        super().__init__(vocabulary.shape[1])
        yes, no = vocabulary[labels[0]].detach().float(), vocabulary[labels[1]].detach().float()
        self.weight = nn.Parameter(yes - no)
        self.labels = labels
        self.vocabulary: torch.Tensor | None
        self.register_buffer("vocabulary", vocabulary.detach(), persistent=False)


class Compared(NamedTuple):
    """Users beside a catalogue, whose scores are users @ items.T + bias: float32 or lower [D, hidden], [n, hidden] and
    float32[n]. They are never held whole in training."""

    users: torch.Tensor
    items: torch.Tensor
    bias: torch.Tensor

    def first(self, count: int) -> Compared:
        """The first users alone."""
        return self._replace(users=self.users[:count])

    def pairs(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """float32[N]: the scores of rows int64[N] of users, each against the row of items beside it."""
        return (self.users[users].float() * self.items[items].float()).sum(-1) + self.bias[items]


class RetrieveHead(nn.Module):
    """score = s * cos(W h, v) + b: a user's state against an item's vector, s a learned scale, b the item's bias."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(hidden))
        self.log_scale = nn.Parameter(torch.tensor([2.5]))  # of one dimension, as FSDP2 shards no scalars

    def forward(self, states: torch.Tensor, items: ItemVectors) -> Compared:
        """states: [B, hidden]; n items. Their product is taken in autocast's precision, where that is on."""
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        return Compared(self.users(states).to(dtype), items.direction().to(dtype), items.bias)

    def pairs(self, states: torch.Tensor, items: ItemVectors, rows: torch.Tensor) -> torch.Tensor:
        """states: [N, hidden]; rows: int64[N] -> float32[N], each state and the item beside it."""
        return (self.users(states) * items.direction(rows)).sum(-1) + items.bias[rows]

    def users(self, states: torch.Tensor) -> torch.Tensor:
        """float32[B, hidden] of length s, what items' directions are multiplied with."""
        return normalize((states @ self.weight.to(states.dtype).T).float(), dim=-1) * self.log_scale.exp()


class RankHead(nn.Module):
    """score = retrieve(h, v) + w . g: what the user's state says of an item, corrected by the state g of the item as a
    branch, which has seen the history. w starts at zero, so that training starts from the retrieved order."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.retrieve, self.branch = RetrieveHead(hidden), LinearHead(hidden)


Head = LinearHead | RetrieveHead | RankHead

HEADS: dict[str, type[LinearHead] | type[RetrieveHead] | type[RankHead]] = {
    "linear": LinearHead, "yes_no": LinearHead, "retrieve": RetrieveHead, "rank": RankHead,
}  # fmt: skip
