from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from llmrec.ranker.ragged import Ragged
from llmrec.recall.candidates import Candidates
from llmrec.recall.scores import Dense, Grouped, Listed, Same, Scores, Sparse, Vectors

N = 6
VALUES = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0])
SCORES = st.lists(st.lists(VALUES, min_size=N, max_size=N), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(SCORES, st.integers(0, 8), st.data())
def test_every_form_recalls_the_same_and_knows_its_scores(
    scores: list[list[float]], count: int, data: st.DataObject
) -> None:
    seen = [data.draw(st.lists(st.integers(0, N - 1), max_size=4)) for _ in scores]
    asked = [data.draw(st.lists(st.integers(0, N - 1), max_size=5)) for _ in scores]
    matrix = np.asarray(scores, np.float32)
    for past in (Ragged.of(seen), None):
        without = [set() if past is None else set(one) for one in seen]
        best = [
            sorted((i for i in range(N) if row[i] > 0 and i not in one), key=lambda i, row=row: (-row[i], i))[:count]
            for row, one in zip(scores, without, strict=True)
        ]
        both = Vectors(np.eye(len(matrix), dtype=np.float32), matrix.T.copy(), 0.0)
        for form in (Sparse(sparse.csr_matrix(matrix)), both):
            assert lists(form, past, count) == best
            unknown = ~matrix.any(axis=0) & (form is both)  # a vector of zeros
            wanted = [np.nan if unknown[i] else row[i] for row, one in zip(scores, asked, strict=True) for i in one]
            np.testing.assert_array_equal(form.at(Ragged.of(asked)), np.asarray(wanted, np.float32))


@settings(max_examples=100, deadline=None)
@given(SCORES, st.integers(0, 8), st.sets(st.integers(0, N + 3), min_size=N, max_size=N), st.data())
def test_dense_scores_are_of_few_items_and_may_be_negative(
    scores: list[list[float]], count: int, some: set[int], data: st.DataObject
) -> None:
    rows = sorted(some)
    seen = [data.draw(st.lists(st.integers(0, N + 3), max_size=4)) for _ in scores]
    form = Dense(np.asarray(scores, np.float32), np.asarray(rows), N + 4)
    of = [dict(zip(rows, row, strict=True)) for row in scores]
    best = [
        sorted((i for i in rows if i not in past), key=lambda i, row=row: (-row[i], i))[:count]
        for row, past in zip(of, seen, strict=True)
    ]
    assert lists(form, Ragged.of(seen), count) == best
    asked = Ragged.of([list(range(N + 4))] * len(scores))
    wanted = [row.get(i, np.nan) for row in of for i in range(N + 4)]
    np.testing.assert_array_equal(form.at(asked), np.asarray(wanted, np.float32))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=N, max_size=N), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(0, N - 1), max_size=4)), max_size=6),
    st.integers(0, 8), st.sampled_from([0.5, 10.0]),
)  # fmt: skip
def test_a_groups_shares_are_drawn_to_those_of_all(
    counts: list[list[int]], users: list[tuple[int, list[int]]], count: int, prior: float
) -> None:
    had = np.asarray([*counts, [0] * N], np.float32)
    sizes = np.asarray([*(max(row) + 1.0 for row in counts), 0])
    share = had.sum(0) / (sizes.sum() + 2)
    share[0] += had[:, 1:].sum() == 0  # so that something is there
    group = np.asarray([g % len(had) for g, _ in users], np.int64)
    seen = [past for _, past in users]
    wanted = np.asarray([(had[g] + prior * share) / (sizes[g] + prior) for g in group], np.float32).reshape(-1, N)
    form = Grouped(sparse.csr_matrix(had), sizes, share, prior, group)
    for past in (Ragged.of(seen), None):
        best = [
            sorted(
                (i for i in range(N) if row[i] > 0 and (past is None or i not in one)),
                key=lambda i, row=row: (-row[i], i),
            )[:count]
            for row, one in zip(wanted, seen, strict=True)
        ]
        assert lists(form, past, count) == best
    assert form.at(Ragged.of(seen)).tolist() == [row[i] for row, one in zip(wanted, seen, strict=True) for i in one]


def test_what_is_never_recalled_has_no_score() -> None:
    found = Dense(np.asarray([[1, -np.inf, 2]], np.float32), np.arange(3), 3)
    assert lists(found, None, 3) == [[2, 0]]
    np.testing.assert_array_equal(found.at(Ragged.of([[1, 0]])), [np.nan, 1])


def test_the_same_for_all() -> None:
    found = Same(np.asarray([3, 0, 5, 1], np.float32), 2)
    assert lists(found, Ragged.of([[2], []]), 2) == [[0, 3], [2, 0]]
    assert found.at(Ragged.of([[1], [2, 0]])).tolist() == [0, 5, 3]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, N - 1), unique=True, max_size=N), min_size=3, max_size=3), st.data())
def test_what_was_listed_is_known_and_nothing_else(listed: list[list[int]], data: st.DataObject) -> None:
    asked = [data.draw(st.lists(st.integers(0, N - 1), max_size=5)) for _ in listed]
    known = {(u, i): float(u * N + i) for u, one in enumerate(listed) for i in one}
    items = Ragged.of(listed)
    values = np.asarray(list(known.values()), np.float32)
    found = Listed(Candidates(items, values, np.zeros(len(values), np.int8)), N)
    wanted = [known.get((u, i), np.nan) for u, one in enumerate(asked) for i in one]
    np.testing.assert_array_equal(found.at(Ragged.of(asked)), np.asarray(wanted, np.float32))
    assert found.top(None, 3).items is items


def lists(found: Scores, seen: Ragged | None, count: int) -> list[list[int]]:
    best = found.top(seen, count)
    return [best.items[u].tolist() for u in range(len(best.items))]
