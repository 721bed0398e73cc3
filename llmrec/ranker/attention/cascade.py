"""Attention that never computes what the mask hides, for the CPU.

The mask rule is never built as a matrix over a whole request: a trunk is plain attention over itself, and a branch
attends to its trunk (one product for all branches, keys and values not copied) and to itself (small blocks), in one
softmax. Trunks without branches lie side by side, those of about the same length in one block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention

from llmrec.ranker.packing import Batch
from llmrec.ranker.ragged import like_lengths

BLOCK_TOKENS = 1 << 14
SHORT = 512  # tokens of a trunk


@dataclass(frozen=True)
class Branches:
    """How n branch tokens of a request form N branches of at most L tokens.

    shape: N, L. token: int64[N * L], the token at each place, 0 where a branch is shorter, and place: int64[n], its
    inverse; both None if every branch has L tokens, for then the tokens lie in their places.
    hidden: bool[n, L], the places of its own branch that a token does not see; hidden_trunk: bool[n, P], or None if
    all see the whole trunk.
    """

    shape: tuple[int, int]
    token: torch.Tensor | None
    place: torch.Tensor | None
    hidden: torch.Tensor
    hidden_trunk: torch.Tensor | None

    def spread(self, tokens: torch.Tensor, dim: int) -> torch.Tensor:
        """[..., n, ...] -> [..., N, L, ...]; places that no token fills repeat token 0."""
        if self.token is not None:
            tokens = tokens.index_select(dim, self.token)
        return tokens.unflatten(dim, self.shape)

    def gather(self, blocks: torch.Tensor, dim: int) -> torch.Tensor:
        """[..., N, L, ...] -> [..., n, ...]."""
        tokens = blocks.flatten(dim, dim + 1)
        return tokens if self.place is None else tokens.index_select(dim, self.place)


@dataclass(frozen=True)
class Layout:
    """One request: its trunk is tokens start..middle, its branches middle..end."""

    start: int
    middle: int
    end: int
    causal: bool
    branches: Branches | None


@dataclass(frozen=True)
class Trunks:
    """N causal requests of n tokens in all, trunks alone and at most L long each, as one block.

    shape: N, L. token: int64[N * L], the token of the batch at each place, its first again beyond a trunk's end, which
    nothing sees; place: int64[n], where each token lies in the block.
    """

    shape: tuple[int, int]
    token: torch.Tensor
    place: torch.Tensor


@dataclass(frozen=True)
class Plan:
    """How a batch is attended: its requests one by one, then blocks of others. order: int64[T], which token of what
    this gives, one after another, is each token of the batch; None if it is their order already."""

    requests: tuple[Layout, ...]
    blocks: tuple[Trunks, ...]
    order: torch.Tensor | None


def layout(batch: Batch) -> Plan:
    """Worked out once per batch and used by every layer."""
    bounds = np.asarray(batch.bounds, np.int64).reshape(-1, 2)
    starts, sizes = bounds[:, 0], bounds[:, 1] - bounds[:, 0]
    in_trunk = np.append(0, np.cumsum((batch.branch == 0).cpu().numpy()))
    middles = starts + in_trunk[bounds[:, 1]] - in_trunk[starts]
    alone = (middles == bounds[:, 1]) & batch.causal
    groups = [rows for rows in like_lengths(np.where(alone, sizes, 0), BLOCK_TOKENS) if len(rows) > 1]
    grouped = np.concatenate([np.empty(0, np.int64), *groups])
    singly = np.setdiff1d(np.arange(len(bounds)), grouped)
    requests = []
    for start, middle, end in zip(*(a[singly].tolist() for a in (starts, middles, bounds[:, 1])), strict=True):
        branches = _branches(batch, middle, end, middle - start) if end > middle else None
        requests.append(Layout(start, middle, end, batch.causal, branches))
    if not groups:
        return Plan(tuple(requests), (), None)
    device = batch.branch.device
    given = [np.arange(r.start, r.end) for r in requests]
    blocks = []
    for rows in groups:
        length = int(sizes[rows].max())
        inside = np.arange(length) < sizes[rows, None]
        token = starts[rows, None] + np.where(inside, np.arange(length), 0)
        place = np.flatnonzero(inside)
        given.append(token.ravel()[place])
        blocks.append(Trunks((len(rows), length), *(torch.from_numpy(a).to(device) for a in (token.ravel(), place))))
    order = np.argsort(np.concatenate(given))
    return Plan(tuple(requests), tuple(blocks), torch.from_numpy(order).to(device))


def _branches(batch: Batch, middle: int, end: int, trunk_length: int) -> Branches:
    branch = batch.branch[middle:end] - 1
    attach = batch.attach[middle:end]
    offset = batch.position[middle:end] - attach - 1
    count, longest = int(branch.max()) + 1, int(offset.max()) + 1
    token = place = hidden_trunk = None
    if end - middle < count * longest:
        place = branch * longest + offset
        token = torch.zeros(count * longest, dtype=torch.int64, device=place.device)
        token[place] = torch.arange(len(place), device=place.device)
    last = offset if batch.causal else torch.bincount(branch, minlength=count)[branch] - 1
    hidden = torch.arange(longest, device=last.device)[None, :] > last[:, None]
    if int(attach.min()) < trunk_length - 1:
        hidden_trunk = torch.arange(trunk_length, device=attach.device)[None, :] > attach[:, None]
    return Branches((count, longest), token, place, hidden, hidden_trunk)


# Its loop depends on the batch; a compiled layer calls it as it is.
@torch.compiler.disable
def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packed: Plan,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attention within each request of a packed batch.

    query: [1, H, T, D]; key, value: [1, H_kv, T, D]. Returns [1, T, H, D].
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Scaled before it is rounded, so that the softmax needs no pass in float32 of its own.
    query, key = (query * scale).to(value.dtype), key.to(value.dtype)
    parts = []
    for request in packed.requests:
        trunk, own = slice(request.start, request.middle), slice(request.middle, request.end)
        q, k, v = query[:, :, trunk], key[:, :, trunk], value[:, :, trunk]
        found = _within_trunks(q, k, v, request.causal, dropout)
        parts.append(found[0].transpose(0, 1))
        if request.branches is not None:
            q_own, k_own, v_own = query[0, :, own], key[0, :, own], value[0, :, own]
            found = _branch_attention(q_own, k_own, v_own, k[0], v[0], request.branches, dropout)
            parts.append(found.transpose(0, 1))
    for block in packed.blocks:
        q, k, v = (
            t[0].index_select(1, block.token).unflatten(1, block.shape).transpose(0, 1) for t in (query, key, value)
        )
        found = _within_trunks(q, k, v, True, dropout)
        parts.append(found.transpose(1, 2).flatten(0, 1).index_select(0, block.place))
    together = torch.cat(parts)
    return (together if packed.order is None else together.index_select(0, packed.order))[None], None


def _within_trunks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, dropout: float
) -> torch.Tensor:
    """query: [n, H, P, D], scaled; key, value: [n, H_kv, P, D]. Returns [n, H, P, D]."""
    given, grouped = query.dtype, query.shape[1] != key.shape[1]
    if query.requires_grad and given == torch.bfloat16 and query.device.type == "cpu" and query.shape[2] < SHORT:
        # The backward pass is many small products; in bfloat16 torch takes longer to set each up than to compute it.
        query, key, value = (t.float() for t in (query, key, value))
    return scaled_dot_product_attention(
        query, key, value, is_causal=causal, dropout_p=dropout, scale=1.0, enable_gqa=grouped
    ).to(given)


def _branch_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    trunk_key: torch.Tensor,
    trunk_value: torch.Tensor,
    branches: Branches,
    dropout: float,
) -> torch.Tensor:
    """query: [H, n, D], scaled; key, value: [H_kv, n, D]; trunk_*: [H_kv, P, D]. Returns [H, n, D]."""
    heads, n, size = query.shape
    kv_heads, p = trunk_key.shape[:2]
    q = query.reshape(kv_heads, heads // kv_heads, n, size)
    lowest = torch.finfo(query.dtype).min
    single = branches.shape[1] == 1  # branches of one token, which is all that it sees of its branch
    to_trunk = (q.flatten(1, 2) @ trunk_key.transpose(-1, -2)).view(*q.shape[:3], p)
    if single:  # element by element: a matrix product of one row and one column costs more than it computes
        to_own = (q * key[:, None]).sum(-1, keepdim=True)
    else:
        k_own, v_own = (branches.spread(t, 1)[:, None] for t in (key, value))
        to_own = branches.gather(branches.spread(q, 2) @ k_own.transpose(-1, -2), 2)
        to_own = to_own.masked_fill(branches.hidden, lowest)
    if branches.hidden_trunk is not None:
        to_trunk = to_trunk.masked_fill(branches.hidden_trunk, lowest)
    weights = drop(torch.cat([to_trunk, to_own], dim=-1).softmax(-1), dropout)
    from_trunk = (weights[..., :p].flatten(1, 2) @ trunk_value).view(*q.shape)
    if single:
        from_own = weights[..., p:] * value[:, None]
    else:
        from_own = branches.gather(branches.spread(weights[..., p:], 2) @ v_own, 2)
    return (from_trunk + from_own).view(heads, n, size)
