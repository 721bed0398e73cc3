"""The reference: the mask rule as one matrix over all tokens of the batch, in torch's own attention."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from llmrec.ranker.packing import Batch, visible


def layout(batch: Batch) -> torch.Tensor:
    """bool[T, T], the keys (columns) that each query (row) sees."""
    return visible(batch)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packed: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """query: [1, H, T, D]; key, value: [1, H_kv, T, D]. Returns [1, T, H, D]."""
    query, key = query.to(value.dtype), key.to(value.dtype)
    attended = scaled_dot_product_attention(
        query, key, value, attn_mask=packed, dropout_p=dropout, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return attended.transpose(1, 2).contiguous(), None
