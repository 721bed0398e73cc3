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

    def __init__(self, rows: torch.Tensor) -> None:
        """rows: [2, hidden], those of yes and no."""
        super().__init__(rows.shape[1])
        self.weight = nn.Parameter((rows[0].float() - rows[1].float()).detach().clone())


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
