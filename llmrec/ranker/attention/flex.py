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


@functools.cache
def _masking(device: str) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return torch.compile(create_block_mask, dynamic=True) if device == "cuda" else create_block_mask


def _options(query: torch.Tensor) -> dict[str, Any] | None:
    """How CUDA's kernel is to be made. Short batches would take one made for decoding, which has no size that fits
    grouped queries of 65 to 127 tokens (torch 2.13); float32 at torch's own block sizes wants more shared memory than
    most GPUs have."""
    if query.device.type != "cuda":
        return None
    small = {"fwd_BLOCK_M": 32, "fwd_BLOCK_N": 32, "fwd_num_stages": 1} if query.dtype == torch.float32 else {}
    return {"FORCE_USE_FLEX_ATTENTION": True, **small}


def layout(batch: Batch) -> BlockMask:
    """The mask rule of a batch by blocks of 128 x 128 tokens."""
    index = torch.arange(len(batch.token), device=batch.token.device)
    reach = torch.minimum(batch.position, batch.attach) if batch.causal else batch.attach
    request, branch, position = batch.request, batch.branch, batch.position
    after = index if batch.causal else torch.zeros_like(index)

    def rule(_b: torch.Tensor, _h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        in_trunk = (branch[k] == 0) & (position[k] <= reach[q])
        in_branch = (branch[k] == branch[q]) & (after[k] <= after[q])
        return (request[k] == request[q]) & (in_trunk | in_branch)

    device = batch.token.device
    found: BlockMask = _masking(device.type)(rule, None, None, len(index), len(index), device=device)
    return found


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
    usual = scaling is None or abs(scaling * query.shape[-1] ** 0.5 - 1) < 1e-6
    attended = kernel(
        query, key, value, block_mask=packed, scale=None if usual else scaling,
        enable_gqa=query.shape[1] != key.shape[1], kernel_options=_options(query),
    )  # fmt: skip
    return attended.transpose(1, 2).contiguous(), None
