"""Ranking requests as flat, padding-free batches of trunks with branches.

One user is a *trunk* (instruction, context, history); each candidate is a *branch*. A branch sees the trunk up to
its attachment point and itself, never another branch, and its positions go on from the attachment point, so its
score is the one it would have had alone. The mask rule over a packed batch is

    query q sees key k  iff  request(q) == request(k) and
        ( k is trunk and position(k) <= min(position(q), attach(q))
          or branch(q) == branch(k) and k is not after q )

for a causal model. In a bidirectional one (an encoder) the order does not count: a trunk sees its whole trunk, and a
branch its whole self.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llmrec.ranker.ragged import Ragged, within

WHOLE = 64


@dataclass(frozen=True)
class Request:
    """One user with candidates.

    trunk: int32[P], P >= 1 token ids; int64 where contexts are added to some (see `contexts`), as in branches.
    branches: N token sequences, each of length >= 1; a branch is read at its last token.
    attach: int32[N], the trunk position of the last trunk token that the branch sees (P - 1 when it sees it all).
    trunk_read: int32[M], trunk positions that are read too (training reads the history's own items there).
    """

    trunk: np.ndarray
    branches: Ragged
    attach: np.ndarray
    trunk_read: np.ndarray

    @staticmethod
    def to_score(trunk: np.ndarray, branches: Ragged) -> Request:
        """A request whose branches all see the whole trunk."""
        return Request(trunk, branches, np.full(len(branches), len(trunk) - 1, np.int32), np.empty(0, np.int32))

    @property
    def tokens(self) -> int:
        return len(self.trunk) + len(self.branches.values)

    @property
    def reads(self) -> int:
        """How many rows a batch reads of it."""
        return len(self.trunk_read) + len(self.branches)

    @property
    def positions(self) -> int:
        """How many positions it takes: those of its trunk, or up to the end of the branch that reaches farthest."""
        ends = self.attach + 1 + self.branches.lengths
        return max(len(self.trunk), int(ends.max(initial=0)))


@dataclass(frozen=True)
class Batch:
    """R requests packed into T token positions, B of which are read.

    token, position, request, branch, attach: int64[T]; branch is 0 in a trunk and counts from 1 within a request;
    attach is the trunk's end for the trunk itself.
    read: int64[B], indices into T: for each request its trunk reads, then its branches, in their order.
    bounds: the T-range of each request, pairs (start, end).
    causal: whether a token sees only what is before it.
    """

    token: torch.Tensor
    position: torch.Tensor
    request: torch.Tensor
    branch: torch.Tensor
    attach: torch.Tensor
    read: torch.Tensor
    bounds: tuple[tuple[int, int], ...]
    causal: bool

    def to(self, device: torch.device | str) -> Batch:
        return Batch(
            token=self.token.to(device),
            position=self.position.to(device),
            request=self.request.to(device),
            branch=self.branch.to(device),
            attach=self.attach.to(device),
            read=self.read.to(device),
            bounds=self.bounds,
            causal=self.causal,
        )


def pack(requests: Sequence[Request], causal: bool = True, multiple: int = 1) -> Batch:
    """Pack requests one after another, each as its trunk followed by its branches.

    multiple: T is made one of it by a last request of which nothing is read; see `whole`.
    """
    token, position, branch, attach, read = [], [], [], [], []
    bounds, start = [], 0
    for r in requests:
        p, lengths = len(r.trunk), r.branches.lengths
        if p == 0:
            raise ValueError("a request needs a trunk of at least one token")
        if len(lengths) and lengths.min() == 0:
            raise ValueError("a branch needs at least one token")
        if not causal and (r.attach < p - 1).any():
            raise ValueError("in a bidirectional model every branch hangs at the trunk's end")
        token += [r.trunk, r.branches.values]
        position += [np.arange(p), np.repeat(r.attach + 1, lengths) + within(lengths)]
        branch += [np.zeros(p, np.int64), np.repeat(np.arange(1, len(lengths) + 1), lengths)]
        attach += [np.full(p, p - 1), np.repeat(r.attach, lengths)]
        read += [start + r.trunk_read, start + p + r.branches.offsets[1:] - 1]
        bounds.append((start, start + r.tokens))
        start += r.tokens
    if missing := -start % multiple:
        token.append(np.full(missing, requests[0].trunk[0]))
        nothing = np.zeros(missing, np.int64)
        position.append(nothing)  # all at the first one, since an encoder has few
        branch.append(nothing)
        attach.append(nothing)
        bounds.append((start, start + missing))
    sizes = [end - begin for begin, end in bounds]
    return Batch(
        token=_tensor(token),
        position=_tensor(position),
        request=torch.from_numpy(np.repeat(np.arange(len(bounds)), sizes)),
        branch=_tensor(branch),
        attach=_tensor(attach),
        read=_tensor(read),
        bounds=tuple(bounds),
        causal=causal,
    )


def whole(rows: torch.Tensor, multiple: int = WHOLE) -> torch.Tensor:
    """[n, ...] -> [m, ...], m the next multiple: the first row again and again behind the others.

    On a CPU every new number of rows makes oneDNN compile and keep a new matrix product, which costs training more than
    half of its time and gigabytes of memory.
    """
    missing = -len(rows) % multiple
    return torch.cat([rows, rows[:1].expand(missing, *rows.shape[1:])]) if missing and len(rows) else rows


def compared(batch: Batch, per_item: int) -> torch.Tensor:
    """int64[B], indices into T: for each item read, the last token before it of what it sees.

    For a branch of no more than its item, of `per_item` tokens, that is where it hangs, else the token before the item.
    Of branches that hang at the same place and go on with the same token, it is the first one's.
    """
    read = batch.read
    starts = torch.tensor([start for start, _ in batch.bounds], device=read.device)[batch.request[read]]
    in_trunk = batch.branch[read] == 0
    found = torch.where(in_trunk, read - per_item, starts + batch.attach[read])
    further = ~in_trunk & (batch.position[read] - batch.attach[read] > per_item)
    if not further.any():
        return found
    own = (read - per_item)[further]
    same = torch.stack([batch.request[own], batch.attach[own], batch.token[own]], dim=1).unique(
        dim=0, return_inverse=True
    )[1]
    first = torch.full((len(own),), len(batch.token), device=own.device).scatter_reduce(0, same, own, "amin")
    found[further] = first[same]
    return found


def visible(batch: Batch) -> torch.Tensor:
    """The mask rule over a batch as bool[T, T], rows queries, columns keys."""
    position, branch, request = batch.position, batch.branch, batch.request
    reach = torch.minimum(position, batch.attach) if batch.causal else batch.attach
    in_trunk = (branch == 0)[None, :] & (position[None, :] <= reach[:, None])
    in_branch = branch[:, None] == branch[None, :]
    if batch.causal:
        in_branch = in_branch.tril()
    return (request[:, None] == request[None, :]) & (in_trunk | in_branch)


def trunk_only(request: Request) -> Request:
    """The request without its branches, read at the trunk's last token: all that a retrieve head needs of a user."""
    none = np.empty(0, np.int32)
    last = np.asarray([len(request.trunk) - 1], np.int32)
    return Request(request.trunk, request.branches.take(none.astype(np.int64)), none, last)


def pairs(request: Request) -> list[Request]:
    """N requests without branches, one for each branch: what it sees of the trunk and itself as one plain sequence.

    Each is read at its last token. What an encoder that was not trained on branches needs.
    """
    none = np.empty(0, np.int32)
    no_branches = request.branches.take(none.astype(np.int64))
    found = []
    for i, attach in enumerate(request.attach):
        sequence = np.concatenate([request.trunk[: attach + 1], request.branches[i]])
        found.append(Request(sequence, no_branches, none, np.asarray([len(sequence) - 1], np.int32)))
    return found


def first_branches(request: Request, count: int) -> Request:
    """The request with at most its first `count` branches."""
    rows = np.arange(min(count, len(request.branches)))
    return Request(request.trunk, request.branches.take(rows), request.attach[rows], request.trunk_read)


def split(request: Request, budget: int) -> list[Request]:
    """Cut a request's branches into pieces that fit `budget` tokens, trunk included; scores concatenate in order.

    A piece holds at least one branch, so a single branch longer than the budget gets a batch of its own.
    Only for requests without trunk reads.
    """
    if request.tokens <= budget or len(request.branches) <= 1:
        return [request]
    assert len(request.trunk_read) == 0
    room = max(budget - len(request.trunk), 1)
    pieces, first = [], 0
    ends = request.branches.offsets
    while first < len(request.branches):
        last = int(np.searchsorted(ends, ends[first] + room, side="right")) - 1
        last = max(last, first + 1)
        rows = np.arange(first, last)
        pieces.append(Request(request.trunk, request.branches.take(rows), request.attach[rows], request.trunk_read))
        first = last
    return pieces


def plan(tokens: Sequence[int] | np.ndarray, budget: int) -> list[list[int]]:
    """Group requests of these sizes into batches of at most `budget` tokens, longest first.

    Returns lists of indices; a request larger than the budget is alone in its batch. Deterministic: equal sizes keep
    their order.
    """
    order = np.argsort(-np.asarray(tokens), kind="stable")
    batches: list[list[int]] = []
    used = budget + 1
    for i in order:
        if used + tokens[i] > budget:
            batches.append([])
            used = 0
        batches[-1].append(int(i))
        used += int(tokens[i])
    return batches


def _tensor(parts: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
