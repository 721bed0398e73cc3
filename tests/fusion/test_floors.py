"""Floors of a group's share in every beginning of a list, against a plain loop and against what they promise."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from test_rerank import N_ITEMS, TOP_K, catalogue, lists_of, ranked, users_of

from llmrec.fusion import rules
from llmrec.fusion.rerank import Floor, Quota, Rerank
from llmrec.ranker.ragged import Ragged

RARE, COMMON = (np.asarray([i % every == 0 for i in range(N_ITEMS)]) for every in (7, 3))


def naive(scores: np.ndarray, items: np.ndarray, how: Rerank) -> list[int]:
    """DetGreedy of one user: a floor that is due takes the place, else the best is next."""
    left, chosen = ranked(scores, items, how.window)[0].tolist(), list[int]()
    while left and len(chosen) < TOP_K:
        due = {
            item for floor in how.floors for item in left
            if floor.items[item]
            and sum(bool(floor.items[i]) for i in chosen) < int(floor.share * (len(chosen) + 1) + 1e-9)
        }  # fmt: skip
        chosen.append(next(item for item in left if not due or item in due))
        left.remove(chosen[-1])
    return chosen


@pytest.mark.parametrize("shares", [(0.2,), (0.5,), (1.0,), (0.3, 0.4), (0.0,)])
def test_lists_are_those_of_a_plain_loop(shares: tuple[float, ...]) -> None:
    scores, lists = users_of(1)
    how = Rerank(25, floors=tuple(Floor(of, share) for of, share in zip((RARE, COMMON), shares, strict=False)))
    each = [scores[a:b] for a, b in zip(lists.offsets[:-1], lists.offsets[1:], strict=True)]
    assert lists_of(scores, lists, how) == [naive(of, lists[i], how) for i, of in enumerate(each)]


@pytest.mark.parametrize("method", [None, "mmr", "dpp"])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_every_beginning_has_its_share_as_far_as_there_are_such_items(method: str | None, share: float) -> None:
    scores, lists = users_of(2, users=60)
    how = Rerank(30, method, 0.5, catalogue()[0], floors=(Floor(COMMON, share),))
    plain = Rerank(30, method, 0.5, catalogue()[0])
    short = 0
    for user, found in enumerate(lists_of(scores, lists, how)):
        of_user = scores[lists.offsets[user] : lists.offsets[user + 1]]
        there = int(COMMON[ranked(of_user, lists[user], 30)[0]].sum())
        for k in range(1, len(found) + 1):
            assert COMMON[found[:k]].sum() >= min(int(share * k + 1e-9), there)
        short += there < int(share * TOP_K)
    assert short, "no list wants for such items"
    assert lists_of(scores, lists, how) != lists_of(scores, lists, plain)


def test_a_quota_goes_before_a_floor() -> None:
    scores, lists = users_of(3)
    one = Quota(Ragged.of([[0] if of else [] for of in COMMON]), 1)
    for found in lists_of(scores, lists, Rerank(30, quotas=(one,), floors=(Floor(COMMON, 1.0),))):
        assert COMMON[found].sum() <= 1


def test_items_that_have_a_value() -> None:
    column = pa.array([["a", "b"], [], None, ["b"], [None, "a"]], pa.list_(pa.string()))
    assert rules.having(column, "a").tolist() == [True, False, False, False, True]
