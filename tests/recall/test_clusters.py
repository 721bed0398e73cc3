"""Search in some clusters alone, against every product and against faiss's own exact search."""

from __future__ import annotations

import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

from llmrec import config
from llmrec.errors import UserError
from llmrec.ranker.ragged import Ragged
from llmrec.recall import clusters, search
from llmrec.recall.candidates import Candidates
from llmrec.recall.clusters import Clusters
from llmrec.recall.scores import Vectors

N, USERS, TOPICS = 3000, 60, 25


@pytest.fixture(scope="module")
def vectors() -> tuple[np.ndarray, np.ndarray]:
    """Items about some topics, and users who like one each; item 7 and user 3 are unknown."""
    rng = np.random.default_rng(5)
    topics = rng.standard_normal((TOPICS, 16))
    items = topics[rng.integers(TOPICS, size=N)] + 0.4 * rng.standard_normal((N, 16))
    users = topics[rng.integers(TOPICS, size=USERS)] + 0.4 * rng.standard_normal((USERS, 16))
    items[7], users[3] = 0, 0
    return users.astype(np.float32), items.astype(np.float32)


def made(items: np.ndarray, folder: Path, **settings: int) -> Clusters:
    wanted = config.Search(method="clusters", **settings)
    clusters.build(items, wanted, folder / "index")
    return clusters.opened(folder / "index", len(items), wanted)


def lists(found: Candidates) -> list[list[int]]:
    return [found.items[user].tolist() for user in range(len(found.items))]


@pytest.mark.parametrize("users_at_once", [7, 1024])
def test_all_clusters_hold_what_exact_search_finds(
    vectors: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, users_at_once: int
) -> None:
    monkeypatch.setattr(clusters, "USERS_AT_ONCE", users_at_once)
    users, items = vectors
    rng = np.random.default_rng(6)
    seen = Ragged.of([np.argsort(-(items @ user))[: rng.integers(0, 40)].tolist() for user in users])
    whole = made(items, tmp_path, clusters=20, probes=1000)
    assert whole.index.nlist == 20 and whole.index.ntotal == N - 1
    for past, least in ((seen, -np.inf), (None, -np.inf), (seen, 15.0), (None, 1e9)):
        exact, found = search.nearest(users, items, past, 50, least), whole.nearest(users, past, 50, least)
        assert lists(found) == lists(exact)
        np.testing.assert_allclose(found.scores, exact.scores, rtol=1e-5)
        assert (found.items.values.dtype, found.scores.dtype) == (np.int32, np.float32)
        assert found.items.lengths[3] == 0 and 7 not in found.items.values
        assert clusters.shared(exact, found, N) == len(exact.scores)


def test_some_clusters_hold_most_of_them_at_their_true_scores(
    vectors: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    users, items = vectors
    exact = faiss.IndexFlatIP(16)
    exact.add(items)
    _, best = exact.search(users, 20)
    known = np.flatnonzero(users.any(axis=1))
    share = {}
    for probes in (1, 5):
        found = made(items, tmp_path, clusters=TOPICS, probes=probes).nearest(users, None, 20)
        share[probes] = np.mean([len({*best[user]} & {*found.items[user]}) / 20 for user in known])
        mine = np.repeat(np.arange(USERS), found.items.lengths)
        products = (users[mine].astype(np.float64) * items[found.items.values]).sum(axis=1)
        np.testing.assert_allclose(found.scores, products, rtol=1e-5)
        told = Vectors(users, items, clusters=made(items, tmp_path, clusters=TOPICS, probes=probes))
        assert told.checked(None, 20, USERS) == (20 * len(known), round(20 * len(known) * share[probes]))
        best_of_few, hit = told.checked(None, 20, 10)
        assert best_of_few == 20 * 9 and 0 < hit <= best_of_few
    assert 0.3 < share[1] < share[5] and share[5] > 0.95


def test_few_items_few_users_and_none(tmp_path: Path) -> None:
    one = np.asarray([[0, 0], [1, 0], [2, 0]], np.float32)
    found = made(one, tmp_path).nearest(np.asarray([[1, 1], [0, 0]], np.float32), None, 5)
    assert lists(found) == [[2, 1], []] and found.scores.tolist() == [2, 1]
    assert lists(made(one, tmp_path).nearest(one[:0], None, 5)) == []
    assert lists(made(one, tmp_path).nearest(one[1:2], Ragged.of([[1, 2]]), 5)) == [[]]
    assert lists(made(np.zeros((3, 2), np.float32), tmp_path).nearest(one, None, 5)) == [[], [], []]
    assert made(one, tmp_path).index.nlist == 2  # no more than there are items


def test_a_missing_library_and_a_setting_that_does_nothing_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"search\.method = clusters is for a merge that names text, query, als or"):
        config.Recall(search=config.Search(method="clusters"))
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"needs faiss; install llmrec\[faiss\]"):
        clusters.faiss()
