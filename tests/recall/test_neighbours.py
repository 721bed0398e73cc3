from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from llmrec.ranker.ragged import Ragged
from llmrec.recall import item_item
from llmrec.recall.neighbours import best_of_rows, by_column, by_users, by_vectors, in_blocks, work_of

N = 7
HISTORIES = st.lists(st.lists(st.integers(0, N - 1), max_size=9), min_size=1, max_size=9)
ROWS = st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1e-40, 3.0]), min_size=N, max_size=N), max_size=6)


@settings(max_examples=150, deadline=None)
@given(ROWS, st.integers(1, N + 1))
def test_best_of_rows_are_the_first_of_a_sort(rows: list[list[float]], count: int) -> None:
    dense = np.asarray(rows, np.float32).reshape(-1, N)
    found = best_of_rows(sparse.csr_matrix(dense), count)
    wanted = np.zeros_like(dense)
    for i, row in enumerate(dense):
        best = np.argsort(-row, kind="stable")[:count]
        wanted[i, best] = row[best]
    assert found.dtype == np.float32 and np.array_equal(found.toarray(), wanted)


@settings(max_examples=150, deadline=None)
@given(HISTORIES, st.integers(1, N), st.sampled_from([0.0, 10.0]), st.integers(1, 60), st.integers(1, N))
def test_blocks_of_items_find_the_neighbours_that_all_counts_at_once_do(
    histories: list[list[int]], count: int, shrinkage: float, at_once: int, reach: int
) -> None:
    users = item_item.interaction_matrix(Ragged.of(histories), N)
    items = users.T.tocsr()
    work = work_of(items, users)
    had = np.diff(users.indptr)
    assert work.tolist() == [sum(had[u] for u in items.indices[a:b]) for a, b in zip(*ends(items), strict=True)]
    blocks = [by_users(items, users, rows, count, shrinkage) for rows in in_blocks(work, at_once)]
    whole = item_item.neighbours(item_item.cooccurrence(Ragged.of(histories), N), count, shrinkage)
    assert np.array_equal(by_column(blocks, N).toarray(), whole.toarray())
    # An item speaks for those `reach` that it is most similar to.
    fewer = np.zeros((N, N), np.float32)
    for i, row in enumerate(whole.toarray()):
        best = np.argsort(-row, kind="stable")[:reach]
        fewer[i, best] = row[best]
    assert np.array_equal(by_column(blocks, reach).toarray(), fewer)


def ends(matrix: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    return matrix.indptr[:-1], matrix.indptr[1:]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(1, 50))
def test_blocks_follow_one_another_and_are_as_large_as_asked(work: list[int], at_once: int) -> None:
    found = list(in_blocks(np.asarray(work), at_once))
    assert [i for rows in found for i in range(len(work))[rows]] == list(range(len(work)))
    assert all(sum(work[rows]) <= at_once + max(work[rows]) for rows in found)
    assert all(sum(work[a.start : b.stop]) > at_once // 2 for a, b in zip(found[::2], found[1::2], strict=False))


@settings(max_examples=100, deadline=None)
@given(HISTORIES, st.integers(1, 4))
def test_only_the_newest_different_items_of_a_history_count(histories: list[list[int]], newest: int) -> None:
    found, at = item_item.distinct(Ragged.of(histories), newest)
    start = 0
    for i, history in enumerate(histories):
        latest = {item: place for place, item in enumerate(history)}
        wanted = sorted(latest, key=latest.__getitem__)[-newest:]
        assert found[i].tolist() == wanted
        places = at[found.offsets[i] : found.offsets[i + 1]] - start
        assert places.tolist() == [latest[item] for item in wanted]
        start += len(history)


@settings(max_examples=100, deadline=None)
@given(ROWS, st.integers(1, N), st.integers(1, 40))
def test_neighbours_by_vectors_have_the_largest_products(rows: list[list[float]], count: int, at_once: int) -> None:
    vectors = sparse.csr_matrix(np.asarray(rows, np.float32).reshape(-1, N).round(10))
    n = vectors.shape[0]
    if not n:
        return
    work = work_of(vectors, vectors.T.tocsr())
    blocks = [by_vectors(vectors, vectors.T.tocsr(), some, count) for some in in_blocks(work, at_once)]
    products = vectors.toarray() @ vectors.toarray().T
    np.fill_diagonal(products, 0)
    wanted = np.zeros((n, n), np.float32)
    for j in range(n):
        best = np.argsort(-products[j], kind="stable")[:count]
        wanted[best, j] = products[j, best]
    np.testing.assert_allclose(by_column(blocks, n).toarray(), wanted, rtol=1e-6)
