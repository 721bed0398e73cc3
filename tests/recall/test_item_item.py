from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.ranker.ragged import Ragged
from llmrec.recall import item_item
from llmrec.recall.candidates import top

N = 6
HISTORIES = st.lists(st.lists(st.integers(0, N - 1), max_size=7), min_size=1, max_size=8)


def dense_cooccurrence(histories: list[list[int]]) -> np.ndarray:
    counts = np.zeros((N, N))
    for history in histories:
        for i in set(history):
            for j in set(history):
                counts[i, j] += 1
    return counts


@settings(max_examples=100, deadline=None)
@given(HISTORIES)
def test_cooccurrence_counts_users_and_adds_up_over_parts(histories: list[list[int]]) -> None:
    wanted = dense_cooccurrence(histories)
    assert np.array_equal(item_item.cooccurrence(Ragged.of(histories), N).toarray(), wanted)
    parts = [item_item.cooccurrence(Ragged.of(part), N) for part in (histories[:3], histories[3:])]
    assert np.array_equal((parts[0] + parts[1]).toarray(), wanted)


@settings(max_examples=100, deadline=None)
@given(HISTORIES, st.integers(1, N))
def test_factors_are_those_of_the_scaled_matrix(histories: list[list[int]], dimensions: int) -> None:
    """Their products equal numpy's singular value decomposition cut to as many."""
    x = np.zeros((len(histories), N))
    for user, history in enumerate(histories):
        x[user, history] = 1
    users = x.sum(0)
    scaled = x / np.sqrt(np.maximum(x.sum(1, keepdims=True), 1)) / np.sqrt(np.maximum(users, 1))
    parts = [item_item.cooccurrence(Ragged.of(part), N, shared=True) for part in (histories[:3], histories[3:])]
    found = item_item.factors(parts[0] + parts[1], users, dimensions)
    d = max(0, min(dimensions, int((users > 0).sum()) - 1))
    assert found.shape == (N, d) and found.dtype == np.float32 and not found[users == 0].any()
    _, values, right = np.linalg.svd(scaled)
    values = np.concatenate([values, np.zeros(N)])
    if d and not np.isclose(values[d - 1], values[d]):  # else which of them are cut off is open
        wanted = (right[:d].T * values[:d] ** 2) @ right[:d]
        np.testing.assert_allclose(found @ found.T, wanted, atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(HISTORIES, st.integers(1, N), st.sampled_from([0.0, 1.0, 10.0]), st.sampled_from([1.0, 0.5]))
def test_neighbours_and_scores_equal_a_plain_computation(
    histories: list[list[int]], count: int, shrinkage: float, decay: float
) -> None:
    co = dense_cooccurrence(histories)
    wanted = np.zeros((N, N))
    for j in range(N):
        similarity = {
            i: co[i, j] / (np.sqrt(co[i, i] * co[j, j]) + shrinkage) for i in range(N) if i != j and co[i, j] > 0
        }
        for i in sorted(similarity, key=lambda i: (-np.float32(similarity[i]), i))[:count]:
            wanted[i, j] = similarity[i]
    found = item_item.neighbours(item_item.cooccurrence(Ragged.of(histories), N), count, shrinkage)
    np.testing.assert_allclose(found.toarray(), wanted, rtol=1e-5)

    scores = np.zeros((len(histories), N))
    for user, history in enumerate(histories):
        newest = {item: place for place, item in enumerate(history)}
        for item, place in newest.items():
            scores[user] += decay ** (len(history) - 1 - place) * wanted[item]
    scored = item_item.score(Ragged.of(histories), found, decay)
    np.testing.assert_allclose(scored.toarray(), scores, rtol=1e-4, atol=1e-6)


def test_a_checkerboard_recalls_its_own_colour() -> None:
    users, items = 12, 10
    histories = [[i for i in range(items) if (u + i) % 2 == 0 and i != u % items] for u in range(users)]
    ragged = Ragged.of(histories)
    similar = item_item.neighbours(item_item.cooccurrence(ragged, items), items, 0.0)
    found = top(item_item.score(ragged, similar, 1.0), ragged, items)
    for user in range(users):
        missing = [i for i in range(items) if (user + i) % 2 == 0 and i not in histories[user]]
        assert found.items[user].tolist() == missing


def test_the_newest_event_of_a_repeated_item_counts() -> None:
    found = item_item.interaction_matrix(Ragged.of([[1, 0, 1, 2]]), 3, decay=0.5).toarray()
    assert found.tolist() == [[0.25, 0.5, 1.0]]
