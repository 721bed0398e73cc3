"""Attention that never computes what the mask hides, for the CPU.

The mask rule is never built as a matrix over a whole request: a trunk is plain attention over itself, and a branch
attends to its trunk (one product for all branches, keys and values not copied) and to itself (small blocks), in one
softmax.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention

from llmrec.ranker.packing import Batch


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
    causal: bool
    branches: Branches | None


def layout(batch: Batch) -> tuple[Layout, ...]:
    """The layout of each request, worked out once per batch and used by every layer."""
    found = []
    for start, end in batch.bounds:
        middle = start + int((batch.branch[start:end] == 0).sum())
        branches = _branches(batch, middle, end, middle - start) if end > middle else None
        found.append(Layout(start, middle, end, batch.causal, branches))
    return tuple(found)


def _branches(batch: Batch, middle: int, end: int, trunk_length: int) -> Branches:
    branch = batch.branch[middle:end] - 1
    attach = batch.attach[middle:end]
    offset = batch.position[middle:end] - attach - 1
    count, longest = int(branch.max()) + 1, int(offset.max()) + 1
    place = branch * longest + offset
    grid = torch.zeros(count * longest, dtype=torch.int64, device=place.device)
    grid[place] = torch.arange(len(place), device=place.device)
    last = offset if batch.causal else torch.bincount(branch, minlength=count)[branch] - 1
    own = torch.arange(longest, device=place.device)[None, :] <= last[:, None]
    trunk = None
    if int(attach.min()) < trunk_length - 1:
        trunk = torch.arange(trunk_length, device=place.device)[None, :] <= attach[:, None]
    return Branches(grid.view(count, longest), place, own, trunk)


# Its loop depends on the batch; a compiled layer calls it as it is.
@torch.compiler.disable
def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packed: tuple[Layout, ...],
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attention within each request of a packed batch.

    query: [1, H, T, D]; key, value: [1, H_kv, T, D]. Returns [1, T, H, D].
    """
    query, key = query.to(value.dtype), key.to(value.dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    grouped = query.shape[1] != key.shape[1]
    parts = []
    for request in packed:
        trunk = slice(request.start, request.middle)
        q, k, v = query[:, :, trunk], key[:, :, trunk], value[:, :, trunk]
        parts.append(
            scaled_dot_product_attention(
                q, k, v, is_causal=request.causal, dropout_p=dropout, scale=scale, enable_gqa=grouped
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
    count, longest = branches.grid.shape
    grid = branches.grid.flatten()
    q = query.reshape(kv_heads, heads // kv_heads, n, size)
    to_trunk = q @ trunk_key[0, :, None].transpose(-1, -2)
    k_own, v_own = (t[0].index_select(1, grid).view(kv_heads, 1, count, longest, size) for t in (key, value))
    q_own = q.index_select(2, grid).unflatten(2, (count, longest))
    to_own = (q_own @ k_own.transpose(-1, -2)).flatten(2, 3).index_select(2, branches.place)
    lowest = torch.finfo(to_own.dtype).min
    to_own = to_own.masked_fill(~branches.own, lowest)
    if branches.trunk is not None:
        to_trunk = to_trunk.masked_fill(~branches.trunk, lowest)
    weights = (torch.cat([to_trunk, to_own], dim=-1).float() * scale).softmax(-1)
    weights = drop(weights, dropout).to(value.dtype)
    from_trunk = weights[..., :p] @ trunk_value[0, :, None]
    # A token's weights go to its place in the grid; places that no token fills repeat token 0 and are never read.
    own_weights = weights[..., p:].index_select(2, grid).unflatten(2, (count, longest))
    from_own = (own_weights @ v_own).flatten(2, 3).index_select(2, branches.place)
    return (from_trunk + from_own).reshape(1, heads, n, size)
