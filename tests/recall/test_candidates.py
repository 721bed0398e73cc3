from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from llmrec.ranker.ragged import Ragged
from llmrec.recall.candidates import Candidates, merge, most_popular, top

N = 6
SCORES = st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=N, max_size=N), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(SCORES, st.integers(0, 8), st.data())
def test_top_leaves_out_seen_and_zero_and_breaks_ties_by_row(
    scores: list[list[float]], count: int, data: st.DataObject
) -> None:
    seen = [data.draw(st.lists(st.integers(0, N - 1), max_size=4)) for _ in scores]
    for past in (seen, [[] for _ in scores]):
        found = top(sparse.csr_matrix(np.asarray(scores, np.float32)), Ragged.of(past) if past is seen else None, count)
        wanted = [
            sorted((i for i in range(N) if row[i] > 0 and i not in one), key=lambda i, row=row: (-row[i], i))[:count]
            for row, one in zip(scores, past, strict=True)
        ]
        assert [found.items[u].tolist() for u in range(len(scores))] == wanted
        assert found.scores.tolist() == [row[i] for row, one in zip(scores, wanted, strict=True) for i in one]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=N, max_size=N), st.integers(0, 8), st.data())
def test_most_popular_is_top_of_the_same_scores_for_all(
    popularity: list[float], count: int, data: st.DataObject
) -> None:
    seen = data.draw(st.lists(st.lists(st.integers(0, N - 1), max_size=4), max_size=5))
    for past in (Ragged.of(seen), None):
        found = most_popular(np.asarray(popularity, np.float32), len(seen), past, count)
        everyone = np.tile(np.asarray(popularity, np.float32), (len(seen), 1))
        wanted = top(sparse.csr_matrix(everyone), past, count)
        assert found.items.values.tolist() == wanted.items.values.tolist()
        assert found.items.offsets.tolist() == wanted.items.offsets.tolist()
        assert found.scores.tolist() == wanted.scores.tolist()


def source(lists: list[list[int]], first: float) -> Candidates:
    total = sum(map(len, lists))
    return Candidates(Ragged.of(lists), np.arange(first, first + total, dtype=np.float32), np.zeros(total, np.int8))


LISTS = st.lists(st.lists(st.integers(0, N - 1), unique=True, max_size=N), min_size=3, max_size=3)


@settings(max_examples=150, deadline=None)
@given(st.lists(LISTS, min_size=1, max_size=3), st.integers(1, 7))
def test_merge_fills_from_the_sources_in_order(lists: list[list[list[int]]], count: int) -> None:
    sources = [source(of, 100.0 * s) for s, of in enumerate(lists)]
    found = merge(sources, count, N)
    start = 0
    for user in range(3):
        wanted: dict[int, tuple[float, int]] = {}
        for s, of in enumerate(lists):
            before = sum(map(len, of[:user]))
            for place, item in enumerate(of[user]):
                if item not in wanted and len(wanted) < count:
                    wanted[item] = (100.0 * s + before + place, s)
        assert found.items[user].tolist() == list(wanted)
        end = start + len(wanted)
        assert list(zip(found.scores[start:end].tolist(), found.source[start:end].tolist(), strict=True)) == list(
            wanted.values()
        )
        start = end
    assert start == len(found.scores) == len(found.source)


@settings(max_examples=150, deadline=None)
@given(st.lists(LISTS, min_size=1, max_size=3), st.integers(1, 7), st.data())
def test_quotas_come_first(lists: list[list[list[int]]], count: int, data: st.DataObject) -> None:
    quotas = [data.draw(st.integers(0, 3)) for _ in lists]
    found = merge([source(of, 100.0 * s) for s, of in enumerate(lists)], count, N, quotas)
    start = 0
    for user in range(3):
        wanted: dict[int, int] = {}
        for s, of in enumerate(lists):
            new = [item for item in of[user] if item not in wanted][: quotas[s]]
            wanted |= dict.fromkeys(new, s)
        for s, of in enumerate(lists):
            wanted |= {item: s for item in of[user] if item not in wanted}
        kept = list(wanted.items())[:count]
        assert found.items[user].tolist() == [item for item, _ in kept]
        assert found.source[start : start + len(kept)].tolist() == [s for _, s in kept]
        start += len(kept)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.integers(0, N - 1), max_size=N), max_size=6), st.data())
def test_take_is_a_choice_of_users(lists: list[list[int]], data: st.DataObject) -> None:
    rng = np.random.default_rng(0)
    ends = np.cumsum([0, *map(len, lists)])
    scores = rng.random(int(ends[-1])).astype(np.float32)
    origin = rng.integers(0, 3, int(ends[-1])).astype(np.int8)
    users = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=8)) if lists else []
    found = Candidates(Ragged.of(lists), scores, origin).take(np.asarray(users, np.int64))
    assert [found.items[i].tolist() for i in range(len(found.items))] == [lists[u] for u in users]
    assert found.scores.tolist() == [s for u in users for s in scores[ends[u] : ends[u + 1]].tolist()]
    assert found.source.tolist() == [s for u in users for s in origin[ends[u] : ends[u + 1]].tolist()]
    assert (found.items.values.dtype, found.scores.dtype, found.source.dtype) == (np.int32, np.float32, np.int8)
