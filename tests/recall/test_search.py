"""Search by blocks against one matrix of all scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.ranker.ragged import Ragged
from llmrec.recall import search
from llmrec.recall.candidates import top_dense

SIZES = st.sampled_from([1, 2, 3, 7, 1000])
WHOLE = st.integers(-2, 2)


def all_at_once(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    scores = users @ items.T
    scores[~users.any(axis=1)] = -np.inf
    scores[:, ~items.any(axis=1)] = -np.inf
    return np.asarray(scores, np.float32)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(WHOLE, WHOLE), max_size=6), st.lists(st.tuples(WHOLE, WHOLE), min_size=1, max_size=40),
    st.integers(0, 45), st.sampled_from([-np.inf, -1.0, 0.0, 2.0]), SIZES, SIZES, st.data(),
)  # fmt: skip
def test_blocks_find_what_one_matrix_does_ties_included(
    drawn: list[tuple[int, int]], catalogue: list[tuple[int, int]], count: int, least: float, users_at_once: int,
    items_at_once: int, data: st.DataObject,
) -> None:  # fmt: skip
    """Whole numbers: every score is exact, most of them tie, and some vectors are 0."""
    users, items = np.asarray(drawn, np.float32).reshape(-1, 2), np.asarray(catalogue, np.float32)
    past = [data.draw(st.lists(st.integers(0, len(items) - 1), max_size=10)) for _ in drawn]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "USERS_AT_ONCE", users_at_once)
        patch.setattr(search, "ITEMS_AT_ONCE", items_at_once)
        for seen in (Ragged.of(past), None):
            found = search.nearest(users, items, seen, count, least)
            wanted = top_dense(all_at_once(users, items), seen, count, least)
            assert found.items.offsets.tolist() == wanted.items.offsets.tolist()
            assert found.items.values.tolist() == wanted.items.values.tolist()
            assert found.scores.tolist() == wanted.scores.tolist()
            assert (found.items.values.dtype, found.scores.dtype) == (np.int32, np.float32)
        scores = np.where(np.isneginf(all_at_once(users, items)), np.nan, all_at_once(users, items))
        asked = Ragged.of([list(range(len(items)))] * len(users))
        np.testing.assert_array_equal(search.products(users, items, asked), scores.ravel())


def test_a_mapped_catalogue_is_read_by_blocks_and_no_matrix_of_all_scores_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peak memory of a search stays that of its blocks: 40 users by 200,000 items would be 32 MB."""
    import tracemalloc

    monkeypatch.setattr(search, "ITEMS_AT_ONCE", 4096)
    rng = np.random.default_rng(0)
    mapped = np.lib.format.open_memmap(tmp_path / "items.npy", "w+", np.float32, (200_000, 8))
    mapped[:] = rng.standard_normal(mapped.shape)
    users = rng.standard_normal((40, 8)).astype(np.float32)
    tracemalloc.start()
    found = search.nearest(users, np.load(tmp_path / "items.npy", mmap_mode="r"), None, 10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6
    order = np.argsort(-(users.astype(np.float64) @ mapped.T.astype(np.float64)), axis=1, kind="stable")[:, :10]
    assert found.items.values.reshape(40, 10).tolist() == order.tolist()
