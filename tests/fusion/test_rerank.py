"""Lists chosen for diversity and within quotas, against naive loops over the papers' formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.fusion import rerank
from llmrec.fusion.diversity import LEAST, Alike, Categories, Vectors, unlikeness
from llmrec.fusion.rerank import Quota, Rerank, choose
from llmrec.ranker.ragged import Ragged, offsets_of
from llmrec.tables.requests import listed

N_ITEMS, TOP_K = 40, 6
METHODS = ("mmr", "dpp")
TRADES = (0.1, 0.35, 0.5, 0.8, 1.0)


def catalogue(seed: int = 0, most: int = 3) -> tuple[Vectors, Categories]:
    """Items of which some have no vector, and some no values."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((N_ITEMS, 12)) + 0.7
    vectors[rng.random(N_ITEMS) < 0.1] = 0
    values = [np.unique(rng.integers(0, 8, rng.integers(0, most + 1))) for _ in range(N_ITEMS)]
    return Vectors(vectors.astype(np.float32)), Categories(Ragged.of(values))


def likenesses(alike: Alike) -> np.ndarray:
    """float64[n_items, n_items], pair by pair."""
    found = np.eye(N_ITEMS)
    for i in range(N_ITEMS):
        for j in range(N_ITEMS):
            if i == j:
                continue
            if isinstance(alike, Vectors):
                a, b = alike.of[i].astype(float), alike.of[j].astype(float)
                size = np.sqrt((a**2).sum() * (b**2).sum())
                found[i, j] = (a * b).sum() / size if size else 0.0
            else:
                assert isinstance(alike, Categories)
                a, b = set(alike.of[i].tolist()), set(alike.of[j].tolist())
                found[i, j] = len(a & b) / len(a | b) if a | b else 0.0
    return found


def users_of(seed: int, users: int = 30) -> tuple[np.ndarray, Ragged]:
    """Candidates of lists of many lengths, none of them empty, in no order, some scores equal."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, N_ITEMS, users)
    items = [rng.permutation(N_ITEMS)[:length] for length in lengths]
    scores = np.round(rng.standard_normal(lengths.sum()), 1).astype(np.float32)
    return scores, Ragged.of(items)


def ranked(scores: np.ndarray, items: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """A user's best, and how relevant they are."""
    order = sorted(range(len(items)), key=lambda i: (-scores[i], items[i]))[:window]
    best = scores[order].astype(float)
    return items[order], (best - best[-1]) / (best[0] - best[-1]) if best[0] > best[-1] else np.zeros(len(best))


def added(method: str, like: np.ndarray, chosen: list[int], item: int) -> float:
    if not chosen:
        return 0.0
    if method == "mmr":
        return -max(like[item, other] for other in chosen)
    before = np.linalg.slogdet(like[np.ix_(chosen, chosen)])[1]
    after = np.linalg.slogdet(like[np.ix_([*chosen, item], [*chosen, item])])[1]
    return float(after - before)


def naive(scores: np.ndarray, items: np.ndarray, how: Rerank, like: np.ndarray | None, top_k: int = TOP_K) -> list[int]:
    """One user's list by loops: step by step, over all candidates left, over all items chosen."""
    window, worth = ranked(scores, items, how.window)
    chosen: list[int] = []
    while len(chosen) < top_k:
        best = None
        for item, relevance in zip(window.tolist(), worth.tolist(), strict=True):
            full = any(
                sum(value in quota.of[other] for other in chosen) >= quota.most
                for quota in how.quotas
                for value in quota.of[item]
            )
            if item in chosen or full:
                continue
            value = relevance
            if how.method is not None and how.trade > 0:
                assert like is not None
                value = (1 - how.trade) * relevance + how.trade * added(how.method, like, chosen, item)
            if best is None or value > best[0] + 1e-9:
                best = (value, item)
        if best is None:
            break
        chosen.append(best[1])
    return chosen


def lists_of(scores: np.ndarray, lists: Ragged, how: Rerank | None, top_k: int = TOP_K) -> list[list[int]]:
    best, lengths = listed(scores, lists, top_k, how)
    found = Ragged(lists.values[best], offsets_of(lengths))
    return [found[i].tolist() for i in range(len(lists))]


def by_loops(scores: np.ndarray, lists: Ragged, how: Rerank) -> list[list[int]]:
    like = None if how.alike is None else likenesses(how.alike)
    each = [scores[a:b] for a, b in zip(lists.offsets[:-1], lists.offsets[1:], strict=True)]
    return [naive(of, lists[i], how, like) for i, of in enumerate(each)]


@pytest.mark.parametrize("trade", TRADES)
@pytest.mark.parametrize("by", ["vectors", "categories"])
def test_maximal_marginal_relevance_is_the_papers_loop(trade: float, by: str) -> None:
    scores, lists = users_of(1)
    how = Rerank(20, "mmr", trade, catalogue()[by == "categories"])
    assert lists_of(scores, lists, how) == by_loops(scores, lists, how)


@pytest.mark.parametrize("trade", TRADES)
def test_a_determinantal_point_process_enlarges_the_determinant_as_slogdet_tells(trade: float) -> None:
    scores, lists = users_of(2)
    how = Rerank(20, "dpp", trade, catalogue()[0])
    assert lists_of(scores, lists, how) == by_loops(scores, lists, how)


def test_a_determinant_of_categories_does_too() -> None:
    """Items of equal values, whose determinant is 0, come last there; here all have values of their own."""
    scores, lists = users_of(3)
    values = [[i, 100 + i % 7, 200 + i % 3] for i in range(N_ITEMS)]
    how = Rerank(20, "dpp", 0.6, Categories(Ragged.of(values)))
    assert lists_of(scores, lists, how) == by_loops(scores, lists, how)


def test_what_those_chosen_say_all_about_is_chosen_last_by_relevance() -> None:
    """Four directions alone: after four items none adds volume, and the list still fills."""
    vectors = np.zeros((N_ITEMS, 4), np.float32)
    vectors[np.arange(N_ITEMS), np.arange(N_ITEMS) % 4] = np.arange(1, N_ITEMS + 1)
    lists, scores = Ragged.of([np.arange(12)]), -np.arange(12, dtype=np.float32)
    # 0 to 3 are a basis, as good as any and the most relevant one.
    assert lists_of(scores, lists, Rerank(12, "dpp", 1.0, Vectors(vectors))) == [[0, 1, 2, 3, 4, 5]]
    twins = Vectors(vectors[np.arange(N_ITEMS) // 8 % 4])
    assert lists_of(scores, lists, Rerank(12, "dpp", 0.5, twins)) == [[0, 8, 1, 2, 3, 4]]
    assert LEAST < 1e-3


@pytest.mark.parametrize("method", [*METHODS, None])
def test_no_trade_is_the_order_of_the_scores(method: str | None) -> None:
    scores, lists = users_of(4)
    plain = lists_of(scores, lists, None)
    assert lists_of(scores, lists, Rerank(20, method, 0.0, catalogue()[0])) == plain
    tiny = scores * np.float32(1e-30)
    assert lists_of(tiny, lists, Rerank(20, method, 0.0, catalogue()[0])) == plain


@pytest.mark.parametrize("method", METHODS)
def test_a_better_score_never_costs_an_item_its_place(method: str) -> None:
    """Relevance goes up with the score: raised to the best of its list, an item is chosen first."""
    scores, lists = users_of(5)
    how = Rerank(20, method, 0.9, catalogue()[0])
    for user, found in enumerate(lists_of(scores, lists, how)):
        raised = scores.copy()
        where = lists.offsets[user] + lists[user].tolist().index(found[-1])
        raised[where] = scores.max() + 1
        assert lists_of(raised, lists, how)[user][0] == found[-1]


@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize("most", [1, 2])
def test_quotas_are_those_of_a_plain_loop(method: str | None, most: int) -> None:
    scores, lists = users_of(6)
    vectors, genres = catalogue()
    brands = Ragged.of([[i % 11] for i in range(N_ITEMS)])
    how = Rerank(25, method, 0.4, vectors, (Quota(genres.of, most), Quota(brands, 1)))
    found = lists_of(scores, lists, how)
    assert found == by_loops(scores, lists, how)
    lengths = np.minimum(lists.lengths, TOP_K)
    assert any(len(of) < length for of, length in zip(found, lengths, strict=True)), "no list is short"
    assert all(found)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), method=st.sampled_from([None, *METHODS]), trade=st.sampled_from([0.0, *TRADES]),
    window=st.integers(1, 45), top_k=st.integers(1, 12), most=st.integers(1, 3), categories=st.booleans(),
)  # fmt: skip
def test_lists_hold_to_their_rules_whatever_comes(
    seed: int, method: str | None, trade: float, window: int, top_k: int, most: int, categories: bool
) -> None:
    scores, lists = users_of(seed, users=8)
    both, rng = catalogue(seed % 7), np.random.default_rng(seed)
    how = Rerank(window, method, trade, both[categories], (Quota(both[1].of, most),))
    found = lists_of(scores, lists, how, top_k)
    for i, chosen in enumerate(found):
        of_user = scores[lists.offsets[i] : lists.offsets[i + 1]]
        best = ranked(of_user, lists[i], window)[0].tolist()
        assert len(set(chosen)) == len(chosen) <= top_k and set(chosen) <= set(best) and chosen
        counts = np.bincount(np.concatenate([both[1].of[item] for item in chosen]), minlength=1)
        assert counts.max() <= most
    # The candidates in another order, and each user by himself.
    order = np.concatenate([a + rng.permutation(b - a) for a, b in zip(lists.offsets, lists.offsets[1:], strict=False)])
    assert lists_of(scores[order], Ragged(lists.values[order], lists.offsets), how, top_k) == found
    for i, chosen in enumerate(found):
        of_user = scores[lists.offsets[i] : lists.offsets[i + 1]]
        assert lists_of(of_user, Ragged.of([lists[i]]), how, top_k) == [chosen]


def test_a_block_holds_as_much_as_is_allowed_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, lists = users_of(7)
    vectors, genres = catalogue()
    for method in METHODS:
        how = Rerank(20, method, 0.5, vectors, (Quota(genres.of, 2),))
        together = lists_of(scores, lists, how)
        with monkeypatch.context() as patched:
            patched.setattr(rerank, "CELLS", 1)
            assert lists_of(scores, lists, how) == together


def test_nobody_and_empty_lists() -> None:
    how = Rerank(5, "mmr", 0.5, catalogue()[0])
    for lists in (Ragged.of([]), Ragged.of([[], []])):
        places, lengths = choose(np.empty(0, np.float32), lists, how, 3)
        assert len(places) == 0 and lengths.tolist() == [0] * len(lists)


@pytest.mark.parametrize("by", ["vectors", "categories"])
def test_unlikeness_is_the_mean_over_pairs(by: str) -> None:
    alike = catalogue()[by == "categories"]
    some = users_of(8)[1]
    told = alike.of.any(axis=1) if isinstance(alike, Vectors) else alike.of.lengths > 0
    assert 0 < told.sum() < N_ITEMS
    like, lists = likenesses(alike), Ragged.of([[3], [], *(some[i] for i in range(len(some)))])
    wanted = []
    for items in (lists[i].tolist() for i in range(len(lists))):
        items = [item for item in items if told[item]]
        pairs = [1 - like[a, b] for n, a in enumerate(items) for b in items[:n]]
        wanted.append(np.mean(pairs) if pairs else np.nan)
    for cells in (1, 1 << 20):
        np.testing.assert_allclose(unlikeness(lists, alike, cells), wanted, atol=1e-6)


def test_more_trade_brings_less_likeness() -> None:
    scores, lists = users_of(9, users=200)
    for method, alike in (("mmr", catalogue()[0]), ("dpp", catalogue()[0]), ("mmr", catalogue()[1])):
        how = Rerank(30, method, 0.0, alike)
        apart = []
        for trade in (0.0, 0.3, 0.9):
            best, lengths = listed(scores, lists, TOP_K, replace(how, trade=trade))
            apart.append(np.nanmean(unlikeness(Ragged(lists.values[best], offsets_of(lengths)), alike, 1 << 20)))
        assert apart[0] < apart[1] < apart[2]
