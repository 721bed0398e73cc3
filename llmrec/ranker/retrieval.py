"""The retrieve head as a recall source: each user's best items of the whole catalogue, exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from llmrec.ranker.heads import RankHead, RetrieveHead
from llmrec.ranker.item_encoder import ItemVectors
from llmrec.ranker.model import Ranker, batches
from llmrec.ranker.packing import Request, trunk_only
from llmrec.ranker.ragged import Ragged

USERS_AT_ONCE, ITEMS_AT_ONCE = 512, 1 << 15


def retrieve_head(ranker: Ranker) -> RetrieveHead | None:
    """The head that retrieves, if the ranker has one."""
    head = ranker.head
    return head.retrieve if isinstance(head, RankHead) else head if isinstance(head, RetrieveHead) else None


def user_vectors(
    ranker: Ranker, requests: Sequence[Request], batch_tokens: int, progress: Callable[[int], None] | None = None
) -> torch.Tensor:
    """float32[n, hidden]: of each request's trunk, what items are compared with. progress: as of `score_requests`, told
    of users."""
    head = retrieve_head(ranker)
    assert head is not None
    device = next(ranker.parameters()).device
    trunks = [trunk_only(request) for request in requests]
    found = torch.empty(len(trunks), ranker.backbone.config.hidden_size)
    ranker.eval()
    with torch.inference_mode():
        for group, batch in batches(ranker, trunks, batch_tokens):
            users = head.users(ranker.states(batch.to(device)))
            found[[piece.request for piece in group]] = users.float().cpu()
            if progress is not None:
                progress(len(group))
    return found


def with_bias(items: ItemVectors) -> np.ndarray:
    """float32[n, hidden + 1]: whose product with a user's vector of `asking` is the score of the retrieve head."""
    n = len(items.bias)
    found = np.empty((n, items.vectors.shape[-1] + 1), np.float32)
    for first in range(0, n, ITEMS_AT_ONCE):
        block = torch.arange(first, min(first + ITEMS_AT_ONCE, n), device=items.bias.device)
        found[first : first + len(block), :-1] = items.direction(block).cpu().numpy()
    found[:, -1] = items.bias.cpu().numpy()
    return found


def asking(users: torch.Tensor) -> np.ndarray:
    """float32[m, hidden + 1] of what `user_vectors` found."""
    return np.concatenate([users.numpy(), np.ones((len(users), 1), np.float32)], axis=1)


def nearest(users: torch.Tensor, items: ItemVectors, seen: Ragged | None, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Each user's best items by exact search, a blocked matrix product.

    users: float32[m, hidden] from `user_vectors`; seen: m users' rows that are no choice. Returns rows int64[m, t] and
    scores float32[m, t], t = min(top, n), best first, ties by row; what is no choice has score -inf.
    """
    n, device = len(items.bias), items.bias.device
    t = min(top, n)
    all_rows, all_scores = np.empty((len(users), t), np.int64), np.empty((len(users), t), np.float32)
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        for first in range(0, len(users), USERS_AT_ONCE):
            some = users[first : first + USERS_AT_ONCE].to(device)
            without = None if seen is None else seen.take(np.arange(first, first + len(some)))
            scores = torch.empty(len(some), 0, device=device)
            rows = torch.empty(len(some), 0, dtype=torch.int64, device=device)
            for start in range(0, n, ITEMS_AT_ONCE):
                block = torch.arange(start, min(start + ITEMS_AT_ONCE, n), device=device)
                found = torch.addmm(items.bias[block], some, items.direction(block).T)
                if without is not None:
                    _hide(found, without, start)
                floor = scores[:, t - 1 :] if scores.shape[1] == t else None
                score, place = _best_above(found, floor, min(t, len(block)))
                scores, rows = torch.cat([scores, score], 1), torch.cat([rows, place + start], 1)
                scores, order = scores.sort(dim=1, descending=True, stable=True)
                scores, rows = scores[:, :t], rows.gather(1, order[:, :t])
            here = slice(first, first + len(some))
            all_rows[here], all_scores[here] = rows.cpu().numpy(), scores.cpu().numpy()
    return all_rows, all_scores


def _best_above(scores: torch.Tensor, floor: torch.Tensor | None, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of scores [m, b] at least those above floor [m, 1] that are among the t best of a row, and their columns, ties by
    column: few once the floor is high, so that most blocks need no choice of t. None: no floor yet.

    Who scores what the floor is has a larger row than those who made it, and stays behind them.
    """
    if floor is None or bool(floor.isneginf().any()):
        return _best(scores, t)
    user, column = (scores > floor).nonzero(as_tuple=True)
    counts = torch.bincount(user, minlength=len(scores))
    widest = int(counts.max()) if len(user) else 0
    if widest > t:
        return _best(scores, t)
    place = torch.arange(len(user), device=user.device) - (counts.cumsum(0) - counts)[user]
    found = scores.new_full((len(scores), widest), float("-inf"))
    columns = torch.zeros(found.shape, dtype=torch.int64, device=user.device)
    found[user, place], columns[user, place] = scores[user, column], column
    return found, columns


def _best(scores: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The t best of each row of scores [m, b] and their columns, [m, t] each, best first, ties by column."""
    best, column = scores.topk(t, dim=1)
    torn = (scores >= best[:, -1:]).sum(1) > t  # topk takes any of those that share the last place
    if torn.any():
        ordered, place = scores[torn].sort(dim=1, descending=True, stable=True)
        best[torn], column[torn] = ordered[:, :t], place[:, :t]
    column, order = column.sort(dim=1)
    best, place = best.gather(1, order).sort(dim=1, descending=True, stable=True)
    return best, column.gather(1, place)


def _hide(scores: torch.Tensor, seen: Ragged, start: int) -> None:
    """Scores [m, b] of items start.. to -inf where a user has seen them, in place."""
    user = np.repeat(np.arange(len(seen)), seen.lengths)
    item = seen.values.astype(np.int64) - start
    here = (item >= 0) & (item < scores.shape[1])
    scores[torch.from_numpy(user[here]), torch.from_numpy(item[here])] = float("-inf")
