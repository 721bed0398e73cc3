from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make_ranker, requests

from llmrec.ranker.packing import Request, compared, pack, plan, split, trunk_only, visible, whole
from llmrec.ranker.ragged import Ragged, offsets_of, within

WORDS = st.integers(0, 261)


def empty() -> np.ndarray:
    return np.empty(0, np.int32)


@settings(max_examples=60, deadline=None)
@given(st.lists(requests(WORDS), min_size=1, max_size=4))
def test_visible_is_the_mask_rule_written_out(batch: list[Request]) -> None:
    packed = pack(batch)
    tokens = []
    for r, request in enumerate(batch):
        tokens += [(r, 0, p, len(request.trunk) - 1) for p in range(len(request.trunk))]
        for b in range(len(request.branches)):
            at = int(request.attach[b])
            tokens += [(r, b + 1, at + 1 + i, at) for i in range(len(request.branches[b]))]
    found = visible(packed)
    for q, (request, branch, position, attach) in enumerate(tokens):
        for k, (k_request, k_branch, k_position, _) in enumerate(tokens):
            in_trunk = k_branch == 0 and k_position <= min(position, attach)
            wanted = request == k_request and (in_trunk or (branch == k_branch and k <= q))
            assert bool(found[q, k]) == wanted, (q, k)


def test_pack_by_hand() -> None:
    one = Request(np.asarray([10, 11, 12], np.int32), Ragged.of([[20, 21], [30]]), np.asarray([0, 2]), np.asarray([1]))
    two = Request.to_score(np.asarray([13], np.int32), Ragged.of([[40]]))
    batch = pack([one, two])
    assert batch.token.tolist() == [10, 11, 12, 20, 21, 30, 13, 40]
    assert batch.position.tolist() == [0, 1, 2, 1, 2, 3, 0, 1]
    assert batch.request.tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert batch.branch.tolist() == [0, 0, 0, 1, 1, 2, 0, 1]
    assert batch.attach.tolist() == [2, 2, 2, 0, 0, 2, 0, 0]
    assert batch.read.tolist() == [1, 4, 5, 7]
    assert batch.bounds == ((0, 6), (6, 8))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.lists(st.integers(0, 9), max_size=5)), min_size=1, max_size=4), st.data()
)
@pytest.mark.parametrize("per_item", [1, 2, 3])
def test_an_item_is_compared_with_the_last_token_before_it(
    per_item: int, users: list[tuple[int, list[int]]], data: st.DataObject
) -> None:
    """Every token of every request is another number, so that what is compared can be told by it."""
    made, wanted, number = [], [], 0
    for prefix, history in users:
        length = prefix + len(history) * per_item
        trunk = np.arange(number, number + length, dtype=np.int32)
        decisions = [e for e in range(len(history)) if data.draw(st.booleans())]
        attach = data.draw(st.lists(st.integers(0, length - 1), max_size=4))
        branches = [[10_000 + j for j in range(per_item)]] * len(attach)
        ends = [prefix + (e + 1) * per_item - 1 for e in decisions]
        made.append(Request(trunk, Ragged.of(branches), np.asarray(attach, np.int32), np.asarray(ends, np.int32)))
        before = [int(trunk[: prefix + e * per_item][-1]) for e in decisions]
        wanted += before + [int(trunk[: at + 1][-1]) for at in attach]
        number += length
    batch = pack(made)
    assert batch.token[compared(batch, per_item)].tolist() == wanted


def test_pack_refuses_an_empty_trunk_and_an_empty_branch() -> None:
    with pytest.raises(ValueError, match="trunk of at least one token"):
        pack([Request.to_score(empty(), Ragged.of([[1]]))])
    with pytest.raises(ValueError, match="branch needs at least one token"):
        pack([Request.to_score(np.asarray([1], np.int32), Ragged.of([[1], []]))])


@settings(max_examples=100, deadline=None)
@given(requests(WORDS), st.integers(1, 40))
def test_split_keeps_every_branch_once_in_order_within_the_budget(request: Request, budget: int) -> None:
    pieces = split(request, budget)
    branches = [(p.branches[i].tolist(), int(p.attach[i])) for p in pieces for i in range(len(p.branches))]
    assert branches == [(request.branches[i].tolist(), int(request.attach[i])) for i in range(len(request.branches))]
    for piece in pieces:
        assert piece.trunk.tolist() == request.trunk.tolist()
        assert piece.tokens <= budget or len(piece.branches) <= 1
    if len(request.branches):
        assert all(len(p.branches) for p in pieces)
    for left, right in pairwise(pieces):
        assert left.tokens + len(right.branches[0]) > budget, "a piece was closed although the next branch fitted"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=25), st.integers(1, 40))
def test_plan_takes_every_request_once_within_the_budget(tokens: list[int], budget: int) -> None:
    batches = plan(tokens, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(tokens)))
    for batch in batches:
        assert sum(tokens[i] for i in batch) <= budget or len(batch) == 1
    sizes = [tokens[i] for batch in batches for i in batch]
    assert sizes == sorted(sizes, reverse=True)
    for left, right in pairwise(batches):
        assert sum(tokens[i] for i in left) + tokens[right[0]] > budget
    assert plan(np.asarray(tokens, np.int64), budget) == batches


def test_plan_keeps_the_order_of_equal_sizes() -> None:
    assert plan([5, 5, 5, 7], 10) == [[3], [0, 1], [2]]


def test_trunk_only_reads_the_last_trunk_token() -> None:
    request = Request.to_score(np.asarray([7, 8, 9], np.int32), Ragged.of([[1], [2, 3]]))
    bare = trunk_only(request)
    assert (bare.trunk.tolist(), len(bare.branches), bare.tokens) == ([7, 8, 9], 0, 3)
    assert pack([request, bare]).read[-1:].tolist() == [8]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(-5, 5), max_size=4), max_size=8), st.data())
def test_ragged_take_equals_a_list_of_lists(lists: list[list[int]], data: st.DataObject) -> None:
    ragged = Ragged.of(lists)
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=8)) if lists else []
    taken = ragged.take(np.asarray(rows, np.int64))
    assert [taken[i].tolist() for i in range(len(taken))] == [lists[r] for r in rows]
    assert [ragged[i].tolist() for i in range(len(ragged))] == lists
    assert ragged.lengths.tolist() == [len(one) for one in lists]
    assert within(ragged.lengths).tolist() == [i for one in lists for i in range(len(one))]
    assert offsets_of(ragged.lengths)[-1] == len(ragged.values)


def test_a_batch_filled_to_a_multiple_says_the_same(tiny: Callable[[str], str]) -> None:
    """Its last request is read nowhere and sees nobody else."""
    made = [
        Request.to_score(np.asarray([1, 2, 3], np.int32), Ragged.of([[4], [5, 6]])),
        Request.to_score(np.asarray([7, 8], np.int32), Ragged.of([[9]])),
    ]
    plain, filled = pack(made), pack(made, multiple=64)
    assert len(filled.token) == 64 and len(filled.bounds) == 3
    assert torch.equal(filled.read, plain.read)
    assert filled.position.max() == plain.position.max()
    assert not visible(filled)[: len(plain.token), len(plain.token) :].any()
    ranker = make_ranker(tiny("llama"), "text", "linear").eval()
    torch.testing.assert_close(ranker.states(filled), ranker.states(plain))


def test_whole_repeats_the_first_row() -> None:
    rows = torch.arange(10).view(5, 2)
    assert torch.equal(whole(rows, 4), rows[[0, 1, 2, 3, 4, 0, 0, 0]])
    assert whole(rows, 5) is rows and len(whole(rows[:0], 4)) == 0
