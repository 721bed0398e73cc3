"""What of a user's trunk moves the scores of some items: these items scored after several variants of the trunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llmrec.ranker.heads import RetrieveHead
from llmrec.ranker.model import Ranker, candidate_rows, item_vectors, score_requests
from llmrec.ranker.packing import Request, pack, plan
from llmrec.ranker.ragged import Ragged, offsets_of


@dataclass(frozen=True)
class Variants:
    """A user's trunk as it is, and with something left out.

    trunks: token sequences as in `packing.Request`, the whole one first; candidates: of each trunk, the token sequences
    that are scored after it, none for no score.
    """

    trunks: Sequence[np.ndarray]
    candidates: Sequence[Ragged]


def score_variants(
    ranker: Ranker, users: Sequence[Variants], batch_tokens: int, progress: Callable[[int], None] | None = None
) -> list[list[np.ndarray]]:
    """float32[candidates] of each variant of each user, equal to what `score_requests` gives for it alone.

    All variants of all users go into the same passes, by token budget. Where a state at the trunk's end is all that is
    read of a user (the retrieve head), a variant costs only what comes after the first token that it does not share
    with the whole trunk: it is a branch there. Else a variant is a request, with the candidates as its branches.

    progress: told of candidates as they are scored.
    """
    if isinstance(ranker.head, RetrieveHead):
        return _by_states(ranker, users, batch_tokens, progress)
    pairs = [(u, v) for u, user in enumerate(users) for v in range(len(user.trunks)) if len(user.candidates[v])]
    asked = [Request.to_score(users[u].trunks[v], users[u].candidates[v]) for u, v in pairs]
    found = [[np.empty(0, np.float32) for _ in user.trunks] for user in users]
    for (u, v), scores in zip(pairs, score_requests(ranker, asked, batch_tokens, progress), strict=True):
        found[u][v] = scores.numpy()
    return found


def _by_states(
    ranker: Ranker, users: Sequence[Variants], batch_tokens: int, progress: Callable[[int], None] | None
) -> list[list[np.ndarray]]:
    requests: list[Request] = []
    places: list[tuple[int, int]] = []  # of each variant: its request, and which of that one's reads
    counts, wanted = [], [np.empty(0, np.int32)]
    for user in users:
        made, ends = joined(user.trunks)
        places += [(len(requests) + request, at) for request, at in ends]
        requests += made
        counts += [len(of) for of in user.candidates]
        wanted += [of.values for of in user.candidates]
    first = offsets_of(np.asarray([r.reads for r in requests], np.int64))
    device, head = next(ranker.parameters()).device, ranker.head
    assert isinstance(head, RetrieveHead)
    ranker.eval()
    with torch.inference_mode():
        states = torch.empty(0)
        for group in plan([r.tokens for r in requests], batch_tokens):
            read = ranker.states(pack([requests[i] for i in group], ranker.causal).to(device))
            if not len(states):
                states = read.new_empty(int(first[-1]), read.shape[1])
            where = np.concatenate([np.arange(first[i], first[i + 1]) for i in group])
            states[torch.from_numpy(where).to(device)] = read
            if progress is not None:
                progress(len(where))
        state = np.repeat([first[request] + at for request, at in places], counts)
        rows = candidate_rows(ranker, np.concatenate(wanted))
        flat = head.pairs(states[torch.from_numpy(state).to(device)], item_vectors(ranker), rows).float().cpu().numpy()
    parts = iter(np.split(flat, np.cumsum(counts)[:-1]))
    return [[next(parts) for _ in user.trunks] for user in users]


def joined(trunks: Sequence[np.ndarray]) -> tuple[list[Request], list[tuple[int, int]]]:
    """One request that reads the end of every trunk, and for each trunk its request and which of the reads it is.

    A trunk that the first one begins with is read in it, another is a branch where it parts from it; positions are
    those of the trunk alone. One that shares no token is a request of its own.
    """
    whole = trunks[0]
    none = Ragged(whole[:0], np.zeros(1, np.int64))
    ends, tails, attach = list[int](), list[np.ndarray](), list[int]()
    alone, ended, where = list[Request](), list[bool](), list[tuple[int, int]]()
    for trunk in trunks:
        length = min(len(whole), len(trunk))
        differ = np.flatnonzero(whole[:length] != trunk[:length])
        same = int(differ[0]) if len(differ) else length
        ended.append(same == len(trunk))
        if same == len(trunk):
            where.append((0, len(ends)))
            ends.append(same - 1)
        elif same:
            where.append((0, len(tails)))
            tails.append(trunk[same:])
            attach.append(same - 1)
        else:
            alone.append(Request(trunk, none, np.empty(0, np.int32), np.asarray([len(trunk) - 1], np.int32)))
            where.append((len(alone), 0))
    branches = none
    if tails:
        branches = Ragged(np.concatenate(tails), offsets_of(np.asarray([len(t) for t in tails], np.int64)))
    shared = Request(whole, branches, np.asarray(attach, np.int32), np.asarray(ends, np.int32))
    # A batch reads what ends in the trunk before the branches.
    return [shared, *alone], [
        (request, at if request or in_trunk else len(ends) + at)
        for (request, at), in_trunk in zip(where, ended, strict=True)
    ]
