"""Exact search against a sort of all scores, written out in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import HIDDEN, Plain, bind_items, make_ranker, naive_item_vectors

from llmrec.ranker import retrieval
from llmrec.ranker.item_encoder import ItemVectors
from llmrec.ranker.model import Ranker
from llmrec.ranker.packing import Request
from llmrec.ranker.prompts import scoring_request
from llmrec.ranker.ragged import Ragged
from llmrec.ranker.retrieval import asking, nearest, retrieve_head, user_vectors, with_bias

Tiny = Callable[[str], str]
SIZES = st.sampled_from([1, 2, 3, 7, 1000])


def wanted(
    users: torch.Tensor, items: ItemVectors, seen: list[list[int]] | None, top: int
) -> tuple[np.ndarray, np.ndarray]:
    mean = items.vectors.double().numpy().mean(1)
    scores = (
        users.double().numpy() @ (mean / np.linalg.norm(mean, axis=1, keepdims=True)).T + items.bias.double().numpy()
    )
    for user, rows in enumerate(seen or []):
        scores[user, rows] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return order, np.take_along_axis(scores, order, 1)


def in_blocks(users: int, items: int) -> pytest.MonkeyPatch:
    patch = pytest.MonkeyPatch()
    patch.setattr(retrieval, "USERS_AT_ONCE", users)
    patch.setattr(retrieval, "ITEMS_AT_ONCE", items)
    return patch


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5), st.integers(1, 15), st.integers(1, 2), st.integers(1, 20), SIZES, SIZES, st.data())
def test_nearest_is_a_sort_of_all_scores(
    n_users: int, n_items: int, k: int, top: int, users_at_once: int, items_at_once: int, data: st.DataObject
) -> None:
    drawn = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    users = torch.randn(n_users, 4, generator=drawn)
    items = ItemVectors(torch.randn(n_items, k, 4, generator=drawn), torch.randn(n_items, generator=drawn))
    past = data.draw(st.none() | st.lists(st.lists(st.integers(0, n_items - 1)), min_size=n_users, max_size=n_users))
    with in_blocks(users_at_once, items_at_once).context():
        rows, scores = nearest(users, items, None if past is None else Ragged.of(past), top)
    right_rows, right_scores = wanted(users, items, past, top)
    assert rows.dtype == np.int64 and scores.dtype == np.float32
    assert rows.shape == scores.shape == (n_users, min(top, n_items))
    assert rows.tolist() == right_rows.tolist()
    np.testing.assert_allclose(scores, right_scores, rtol=1e-4, atol=1e-5)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.integers(-1, 1), min_size=2, max_size=2), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40),
    st.integers(1, 45), SIZES, SIZES, st.data(),
)  # fmt: skip
def test_ties_go_to_the_smaller_row(
    users: list[list[int]], drawn: list[tuple[int, int]], top: int, users_at_once: int, items_at_once: int,
    data: st.DataObject,
) -> None:  # fmt: skip
    """Vectors along an axis and whole numbers: every score is exact, and most of them tie."""
    vectors = torch.tensor([[[3.0, 0.0] if axis else [0.0, 2.0]] for axis, _ in drawn])
    items = ItemVectors(vectors, torch.tensor([float(bias) for _, bias in drawn]))
    past = [data.draw(st.lists(st.integers(0, len(drawn) - 1), max_size=10)) for _ in users]
    asked = torch.tensor(users, dtype=torch.float32)
    with in_blocks(users_at_once, items_at_once).context():
        rows, scores = nearest(asked, items, Ragged.of(past), top)
    right_rows, right_scores = wanted(asked, items, past, top)
    assert rows.tolist() == right_rows.tolist() and scores.tolist() == right_scores.tolist()


def test_many_items_that_tie_are_cut_by_row() -> None:
    items = ItemVectors(torch.ones(5000, 1, 1), torch.zeros(5000))
    rows, _ = nearest(torch.ones(2, 1), items, None, 100)
    assert rows.tolist() == [list(range(100))] * 2


def test_a_list_is_as_long_as_the_catalogue_at_most_and_ends_with_what_is_no_choice() -> None:
    items = ItemVectors(torch.ones(3, 1, 1), torch.tensor([0.0, 2.0, 1.0]))
    rows, scores = nearest(torch.ones(2, 1), items, Ragged.of([[1], []]), 10)
    assert rows.tolist() == [[2, 0, 1], [1, 2, 0]]
    assert scores.tolist() == [[2, 1, -np.inf], [3, 2, 1]]


def token_ranker(tiny: Tiny, head: str, per_item: int) -> tuple[Ranker, Plain, list[Request]]:
    ranker = make_ranker(tiny("llama"), "token", head, per_item=per_item)
    catalogue, features = bind_items(ranker, 9, np.arange(9) != 3)
    histories = [[0, 3, 5], [], [8], [1, 1, 2, 7, 6, 4, 0]]
    asked = [
        scoring_request(np.asarray([0, 70], np.int32), catalogue, np.asarray(h, np.int64), np.asarray([2, 4]))
        for h in histories
    ]
    plain = Plain.load(tiny("llama"))
    with torch.no_grad():
        return ranker, Plain(plain.model, plain.vocabulary, naive_item_vectors(ranker.items, features)), asked


@pytest.mark.parametrize("per_item", [1, 2])
@pytest.mark.parametrize("head", ["retrieve", "rank"])
def test_user_vectors_are_the_plain_states_whatever_the_budget(tiny: Tiny, head: str, per_item: int) -> None:
    ranker, plain, asked = token_ranker(tiny, head, per_item)
    retrieve = retrieve_head(ranker)
    with torch.no_grad():
        states = [retrieve.weight @ plain.states(r.trunk)[-1] for r in asked]
        naive = torch.stack([retrieve.log_scale.exp().squeeze() * s / s.norm() for s in states])
    for budget in (1, 8, 20, 1000):
        told: list[int] = []
        found = user_vectors(ranker, asked, budget, told.append)
        assert found.shape == (4, HIDDEN) and found.dtype == torch.float32
        torch.testing.assert_close(found, naive, rtol=1e-4, atol=1e-4)
        assert sum(told) == 4
        assert len(told) == {1: 4, 1000: 1}.get(budget, len(told))
    assert user_vectors(ranker, [], 100).shape == (0, HIDDEN)


@pytest.mark.parametrize("per_item", [1, 2])
def test_retrieval_finds_what_scoring_every_item_would(tiny: Tiny, per_item: int) -> None:
    ranker, plain, asked = token_ranker(tiny, "retrieve", per_item)
    rows, scores = nearest(user_vectors(ranker, asked, 30), ranker.items.frozen(), None, 9)
    for request, found, score in zip(asked, rows, scores, strict=True):
        with torch.no_grad():
            user = plain.states(request.trunk)[-1]
            all_scores = np.asarray([float(plain.items.retrieve(ranker.head, user, row)) for row in range(9)])
        assert found.tolist() == np.argsort(-all_scores).tolist()
        np.testing.assert_allclose(score, np.sort(all_scores)[::-1], rtol=1e-4, atol=1e-4)
        products = with_bias(ranker.items.frozen()) @ asking(user_vectors(ranker, [request], 30))[0]
        np.testing.assert_allclose(products, all_scores, rtol=1e-4, atol=1e-4)


def test_which_rankers_retrieve(tiny: Tiny) -> None:
    retrieve, rank = (make_ranker(tiny("llama"), "token", head) for head in ("retrieve", "rank"))
    assert retrieve_head(retrieve) is retrieve.head and retrieve_head(rank) is rank.head.retrieve
    assert retrieve_head(make_ranker(tiny("llama"), "text", "linear")) is None
