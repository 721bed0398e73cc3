"""Against plain loops over one list at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse, special
from scipy.spatial.distance import pdist

from llmrec.evaluation import beyond
from llmrec.fusion import rules
from llmrec.fusion.diversity import Categories, Vectors, unlikeness
from llmrec.ranker.ragged import Ragged

N, USERS, CUTOFFS = 12, 40, (1, 3, 5)


@pytest.fixture
def lists() -> Ragged:
    """Some empty, some shorter than a cut-off, some with an item that the catalogue lacks."""
    rng = np.random.default_rng(0)
    made = [rng.permutation(N)[: rng.integers(0, 7)] for _ in range(USERS)]
    made[3] = np.asarray([2, -1, 4])
    return Ragged.of(made)


def had() -> np.ndarray:
    return np.asarray([0, 0, 1, 1, 2, 3, 5, 8, 13, 13, 20, 25])


def unit(rows: int, d: int = 5) -> np.ndarray:
    vectors = np.random.default_rng(1).normal(size=(rows, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_facts_of_items() -> None:
    facts = beyond.item_facts(np.asarray([0, 1, 4, 4, 8]), 8)
    assert facts[:, 0].tolist() == [3, 3, 1, 1, 0]
    assert facts[:, 1] == pytest.approx([1 / 5, 2 / 5, 3.5 / 5, 3.5 / 5, 1])
    assert facts[:, 2].tolist() == [0, 1 / 8, 1 / 2, 1 / 2, 1]


def naive_diversity(items: list[int], vectors: np.ndarray, present: np.ndarray) -> float:
    apart = [1 - float(vectors[a] @ vectors[b]) for a, b in itertools.combinations([i for i in items if present[i]], 2)]
    return float(np.mean(apart)) if apart else np.nan


def test_novelty_is_scipys_self_information() -> None:
    share = np.maximum(had(), 1) / 50
    np.testing.assert_allclose(beyond.item_facts(had(), 50)[:, 0], special.entr(share) / share / np.log(2))


def test_diversity_is_scipys_mean_distance_and_that_of_llmrec_diversity(lists: Ragged) -> None:
    """Items without a vector are left out of both; so the two figures of one run agree."""
    vectors, present = unit(N), np.arange(N) % 5 > 0
    vectors[~present] = 0
    known = Ragged.of([[i for i in lists[u].tolist() if i >= 0] for u in range(USERS)])
    told = [[i for i in items if present[i]] for items in (known[u].tolist() for u in range(USERS))]
    wanted = [pdist(vectors[items].astype(float), "cosine").mean() if len(items) > 1 else np.nan for items in told]
    assert any(len(of) < len(known[u]) for u, of in enumerate(told)) and np.isnan(wanted).any()
    np.testing.assert_allclose(beyond.diversity(known, vectors, present), wanted, atol=1e-6)
    np.testing.assert_allclose(unlikeness(known, Vectors(vectors), 1 << 20), wanted, atol=1e-6)


def test_diversity_by_one_value_each_is_that_of_llmrec_diversity(lists: Ragged) -> None:
    """Of several values, evaluate takes their cosine and llmrec diversity the share that both have."""
    brands = [[["x"], [], ["y"]][i % 3] for i in range(N)]
    known = Ragged.of([[i for i in lists[u].tolist() if i >= 0] for u in range(USERS)])
    column = pa.array(brands, pa.list_(pa.string()))
    categories = beyond.unit_categories([column])
    found = beyond.diversity(known, categories, np.diff(categories.indptr) > 0)
    np.testing.assert_allclose(unlikeness(known, Categories(rules.coded([column])), 1 << 20), found, atol=1e-6)
    several = pa.array([brand * 2 + ["z"] * (i % 2) for i, brand in enumerate(brands)], pa.list_(pa.string()))
    coded = Categories(rules.coded([several]))
    flags = np.asarray([[value in of for value in "xyz"] for of in several.to_pylist()])
    some = [[i for i in known[u].tolist() if flags[i].any()] for u in range(USERS)]
    wanted = [pdist(flags[items], "jaccard").mean() if len(items) > 1 else np.nan for items in some]
    np.testing.assert_allclose(unlikeness(known, coded, 1 << 20), wanted, atol=1e-6)


def test_diversity_by_vectors_and_by_categories(lists: Ragged) -> None:
    vectors, present = unit(N), np.arange(N) % 5 > 0
    vectors[~present] = 0
    genres = [["a"], ["a", "b"], [], ["b", "b", "c"], None, ["c"], ["a", "b", "c"], ["d"], ["a"], ["b"], ["c"], ["d"]]
    brands = [["x"], None, [], ["y"], ["x"], ["x"], None, ["a"], ["x"], ["y"], [None], ["y"]]
    columns = [pa.array(of, pa.list_(pa.string())) for of in (genres, brands)]
    categories = beyond.unit_categories(columns)
    tags = [{("g", v) for v in g or ()} | {("b", v) for v in b or () if v} for g, b in zip(genres, brands, strict=True)]
    alike = np.asarray([[len(x & y) / max(1, np.sqrt(len(x) * len(y))) for y in tags] for x in tags])
    np.testing.assert_allclose((categories @ categories.T).toarray(), alike, atol=1e-6)
    for of, there in ((vectors, present), (categories, np.diff(categories.indptr) > 0)):
        dense = of.toarray() if sparse.issparse(of) else of
        wanted = [naive_diversity([i for i in lists[u].tolist() if i >= 0], dense, there) for u in range(USERS)]
        np.testing.assert_allclose(beyond.diversity(lists, of, there), wanted, atol=1e-6)


def naive_gini(counts: np.ndarray) -> float:
    return float(np.abs(counts[:, None] - counts[None]).mean() / (2 * counts.mean()))


def test_figures_of_parts_added_up_are_those_of_all_users(lists: Ragged) -> None:
    rng = np.random.default_rng(4)
    facts, vectors, present = beyond.item_facts(had(), 50), unit(N), np.ones(N, bool)
    history = np.where(rng.random(USERS) < 0.2, np.nan, rng.random(USERS))
    subsets = np.stack([np.ones(USERS, bool), rng.random(USERS) < 0.5])
    apart = np.stack([beyond.diversity(beyond.first(lists, k), vectors, present) for k in CUTOFFS])
    exposed, summed = 0, 0
    for users in (np.arange(25), np.arange(25, USERS)):
        part = lists.take(users)
        exposed = exposed + beyond.exposure(part, CUTOFFS, N, subsets[:, users])
        summed = summed + beyond.sums(part, CUTOFFS, facts, history[users], apart[:, users], subsets[:, users])
    assert sparse.issparse(exposed)
    for s, subset in enumerate(subsets):
        found = beyond.figures(exposed[s * 3 : s * 3 + 3], summed[s], CUTOFFS)
        for k in CUTOFFS:
            chosen = {u: [i for i in lists[u].tolist()[:k] if i >= 0] for u in np.flatnonzero(subset)}
            counts = np.bincount([i for items in chosen.values() for i in items], minlength=N)
            some = {u: items for u, items in chosen.items() if items}
            both = {u: items for u, items in some.items() if np.isfinite(history[u])}
            of_lists = np.mean([facts[items, 2].mean() for items in both.values()])
            of_histories = np.mean([history[u] for u in both])
            diverse = [naive_diversity(items, vectors, present) for items in some.values() if len(items) > 1]
            wanted = {
                "coverage": (counts > 0).mean(),
                "gini": naive_gini(counts),
                "novelty": np.mean([facts[items, 0].mean() for items in some.values()]),
                "diversity": np.mean(diverse) if diverse else None,
                "popularity_percentile": np.mean([facts[items, 1].mean() for items in some.values()]),
                "popularity_lift": (of_lists - of_histories) / of_histories,
            }
            assert set(wanted) == set(beyond.FIGURES)
            for name, value in wanted.items():
                assert found[f"{name}@{k}"] == pytest.approx(value, abs=1e-6), (name, k)


def test_a_ranking_of_nobody_says_nothing() -> None:
    nobody = Ragged.of([[], []])
    subsets = np.ones((1, 2), bool)
    exposed = beyond.exposure(nobody, (2,), N, subsets)
    missing = np.full((1, 2), np.nan)
    summed = beyond.sums(nobody, (2,), beyond.item_facts(had(), 9), missing[0], missing, subsets)
    found = beyond.figures(exposed, summed[0], (2,))
    assert found.pop("coverage@2") == 0 and set(found.values()) == {None}


def test_an_empty_text_is_no_value() -> None:
    found = beyond.unit_categories([pa.array([[""], [""], ["a", "", "b"], None])])
    assert np.diff(found.indptr).tolist() == [0, 0, 2, 0]
