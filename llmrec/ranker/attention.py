"""Attention over packed batches, plugged into transformers' models through `AttentionInterface`.

A model loaded with `attn_implementation=PACKED` runs unchanged; the packed batch travels to this function as the
keyword `packed`, and transformers builds no mask of its own for an implementation that it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from llmrec.ranker.packing import Batch, visible

PACKED = "llmrec_packed"


@dataclass(frozen=True)
class PackedMask:
    """Per request of a batch: its T-range and its bool[t, t] visibility."""

    bounds: tuple[tuple[int, int], ...]
    visible: tuple[torch.Tensor, ...]


def packed_mask(batch: Batch) -> PackedMask:
    """Build the masks of a batch once; every layer uses them."""
    return PackedMask(batch.bounds, tuple(visible(batch, start, end) for start, end in batch.bounds))


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packed: PackedMask,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attention within each request of a packed batch.

    query: [1, H, T, D]; key, value: [1, H_kv, T, D]. Returns [1, T, H, D]. Requests never meet, so the cost is the sum
    of their squares and not the square of their sum.

    Raises:
        ValueError: the model's layers use a sliding window, whose rule over branches is not defined.
    """
    if sliding_window is not None:
        raise ValueError("sliding-window attention cannot be packed; use a backbone without it")
    parts = [
        scaled_dot_product_attention(
            query[:, :, start:end],
            key[:, :, start:end],
            value[:, :, start:end],
            attn_mask=mask,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for (start, end), mask in zip(packed.bounds, packed.visible, strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(PACKED, packed_attention)
