"""Attention over packed batches, plugged into transformers' models through `AttentionInterface`.

A model loaded with `attn_implementation=PACKED` runs unchanged; the packed batch's layout travels to this function as
the keyword `packed`, and transformers builds no mask of its own for an implementation that it does not know.

The mask rule is never built as a matrix over a whole request: a trunk is plain causal attention, and a branch attends
to its trunk (one product for all branches, keys and values not copied) and to itself (small blocks), in one softmax.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from llmrec.ranker.packing import Batch

PACKED = "llmrec_packed"


@dataclass(frozen=True)
class Branches:
    """How n branch tokens of a request form N branches of at most L tokens.

    grid: int64[N, L], the token at each place, 0 where a branch is shorter; place: int64[n], its inverse into N * L;
    own: bool[n, L], which places of its own branch a token sees; trunk: bool[n, P], or None if all see the whole trunk.
    """

    grid: torch.Tensor
    place: torch.Tensor
    own: torch.Tensor
    trunk: torch.Tensor | None


@dataclass(frozen=True)
class Layout:
    """One request: its trunk is tokens start..middle, its branches middle..end."""

    start: int
    middle: int
    end: int
    branches: Branches | None


def layout(batch: Batch) -> tuple[Layout, ...]:
    """The layout of each request, worked out once per batch and used by every layer."""
    found = []
    for start, end in batch.bounds:
        branch = batch.branch[start:end]
        middle = start + int((branch == 0).sum())
        found.append(
            Layout(start, middle, end, _branches(batch, middle, end, middle - start) if end > middle else None)
        )
    return tuple(found)


def _branches(batch: Batch, middle: int, end: int, trunk_length: int) -> Branches:
    branch = batch.branch[middle:end] - 1
    attach = batch.attach[middle:end]
    offset = batch.position[middle:end] - attach - 1
    count, longest = int(branch.max()) + 1, int(offset.max()) + 1
    place = branch * longest + offset
    grid = torch.zeros(count * longest, dtype=torch.int64, device=place.device)
    grid[place] = torch.arange(len(place), device=place.device)
    own = torch.arange(longest, device=place.device)[None, :] <= offset[:, None]
    trunk = None
    if int(attach.min()) < trunk_length - 1:
        trunk = torch.arange(trunk_length, device=place.device)[None, :] <= attach[:, None]
    return Branches(grid.view(count, longest), place, own, trunk)


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packed: tuple[Layout, ...],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attention within each request of a packed batch.

    query: [1, H, T, D]; key, value: [1, H_kv, T, D]. Returns [1, T, H, D].

    Raises:
        ValueError: the model's layers use a sliding window, whose rule over branches is not defined.
    """
    if sliding_window is not None:
        raise ValueError("sliding-window attention cannot be packed; use a backbone without it")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    parts = []
    for request in packed:
        trunk = slice(request.start, request.middle)
        q, k, v = query[:, :, trunk], key[:, :, trunk], value[:, :, trunk]
        parts.append(
            scaled_dot_product_attention(
                q, k, v, is_causal=True, dropout_p=dropout, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
            )
        )
        if request.branches is not None:
            own = slice(request.middle, request.end)
            parts.append(
                _branch_attention(
                    query[:, :, own], key[:, :, own], value[:, :, own], k, v, request.branches, scale, dropout
                )
            )
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _branch_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    trunk_key: torch.Tensor,
    trunk_value: torch.Tensor,
    branches: Branches,
    scale: float,
    dropout: float,
) -> torch.Tensor:
    """query: [1, H, n, D]; key, value: [1, H_kv, n, D]; trunk_*: [1, H_kv, P, D]. Returns [1, H, n, D]."""
    _, heads, n, size = query.shape
    kv_heads, p = trunk_key.shape[1], trunk_key.shape[2]
    q = query.reshape(kv_heads, heads // kv_heads, n, size)
    to_trunk = q @ trunk_key.reshape(kv_heads, 1, p, size).transpose(-1, -2)
    k_own, v_own = (t.reshape(kv_heads, 1, n, size)[:, :, branches.grid] for t in (key, value))
    to_own = (q[:, :, branches.grid] @ k_own.transpose(-1, -2)).flatten(2, 3)[:, :, branches.place]
    lowest = torch.finfo(to_own.dtype).min
    to_own = to_own.masked_fill(~branches.own, lowest)
    if branches.trunk is not None:
        to_trunk = to_trunk.masked_fill(~branches.trunk, lowest)
    weights = (torch.cat([to_trunk, to_own], dim=-1).float() * scale).softmax(-1)
    weights = drop(weights, dropout).to(value.dtype)
    from_trunk = weights[..., :p] @ trunk_value.reshape(kv_heads, 1, p, size)
    # A token's weights go to its place in the grid; places that no token fills repeat token 0 and are never read.
    from_own = (weights[..., p:][:, :, branches.grid] @ v_own).flatten(2, 3)[:, :, branches.place]
    return (from_trunk + from_own).reshape(1, heads, n, size)


AttentionInterface.register(PACKED, packed_attention)
