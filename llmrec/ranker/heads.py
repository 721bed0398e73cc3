"""Score heads: from hidden states to float32 scores."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import normalize


class LinearHead(nn.Module):
    """score = w . h at the end of a branch; w starts at zero, so that an untrained head prefers nothing."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """states: [B, hidden] -> float32[B]."""
        return states.float() @ self.weight.float()


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


class DotHead(nn.Module):
    """score = s * cos(W h, v) + b: a user's state against an item's vector, s a learned scale, b the item's bias."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(hidden))
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, states: torch.Tensor, items: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """states: [B, hidden]; items: vectors [n, hidden] and biases [n] -> float32[B, n]."""
        vectors, bias = items
        return self._users(states) @ normalize(vectors.float(), dim=-1).T + bias.float()

    def pairs(self, states: torch.Tensor, vectors: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """states, vectors: [N, hidden]; bias: [N] -> float32[N], the state and the item of the same row."""
        return (self._users(states) * normalize(vectors.float(), dim=-1)).sum(-1) + bias.float()

    def _users(self, states: torch.Tensor) -> torch.Tensor:
        return normalize((states @ self.weight.to(states.dtype).T).float(), dim=-1) * self.log_scale.exp()


Head = LinearHead | DotHead

HEADS: dict[str, type[LinearHead] | type[DotHead]] = {"linear": LinearHead, "yes_no": LinearHead, "dot": DotHead}
