"""FlexAttention (Dong et al., 2024): the mask rule compiled into the kernel, blocks that it empties never computed.

Made for CUDA, where it is compiled; elsewhere torch runs the same rule unfused, as a check.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llmrec.ranker.packing import Batch

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@functools.cache
def _kernel(device: str) -> Any:
    # Its import brings torch's whole compiler, which takes seconds that only its users should wait for.
    from torch.nn.attention.flex_attention import flex_attention

    # Batches differ in length, so shapes are dynamic; one compilation serves all.
    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention


def layout(batch: Batch) -> BlockMask:
    """The mask rule of a batch by blocks of 128 x 128 tokens."""
    from torch.nn.attention.flex_attention import create_block_mask

    index = torch.arange(len(batch.token), device=batch.token.device)
    reach = torch.minimum(batch.position, batch.attach) if batch.causal else batch.attach
    request, branch, position = batch.request, batch.branch, batch.position
    after = index if batch.causal else torch.zeros_like(index)

    def rule(_b: torch.Tensor, _h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        in_trunk = (branch[k] == 0) & (position[k] <= reach[q])
        in_branch = (branch[k] == branch[q]) & (after[k] <= after[q])
        return (request[k] == request[q]) & (in_trunk | in_branch)

    device = batch.token.device
    return create_block_mask(rule, None, None, len(index), len(index), device=device, _compile=device.type == "cuda")


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packed: BlockMask,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """query: [1, H, T, D]; key, value: [1, H_kv, T, D]. Returns [1, T, H, D].

    Raises:
        ValueError: the backbone asks for attention dropout, which FlexAttention lacks.
    """
    if dropout:
        raise ValueError("FlexAttention has no dropout; set the backbone's attention_dropout to 0 or use cascade")
    query, key = query.to(value.dtype), key.to(value.dtype)
    kernel = _kernel(query.device.type)
    attended = kernel(query, key, value, block_mask=packed, scale=scaling, enable_gqa=query.shape[1] != key.shape[1])
    return attended.transpose(1, 2).contiguous(), None
