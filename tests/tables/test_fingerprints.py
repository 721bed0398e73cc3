"""A user's fingerprint changes with whatever his ranking depends on, and with nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llmrec.ranker.ragged import Ragged
from llmrec.tables import fingerprints, subsets
from llmrec.tables.requests import Work

IDS = pa.array([10, 20, 30, 40])
EVENT = Ragged.of([[1, 2], [3], [4, 5, 6], [7]])


def work(**changes: object) -> Work:
    made = Work(
        users=pa.array([1, 2]),
        histories=Ragged.of([[0, 1, 2], [1]]),
        candidates=Ragged.of([[2, 3], [0]]),
        recall_scores=np.asarray([0.5, np.nan, 1.0], np.float32),
        sources=pa.array(["a", "", "b"]),
        counts={"to_score": 3, "quarantined": 0},
        quarantine=pa.table({}),
        openings=pa.array(["young", None]),
    )
    return replace(made, **changes)


def of(made: Work, event: Ragged = EVENT, history: int = 2, **vectors: np.ndarray) -> list[int]:
    items = fingerprints.of_items(IDS, event, event, **vectors)
    return fingerprints.of_users(made, items, history).tolist()


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"histories": Ragged.of([[3, 1, 2], [1]])}, [False, False]),  # older than the prompt reaches
        ({"histories": Ragged.of([[0, 2, 1], [1]])}, [True, False]),
        ({"histories": Ragged.of([[0, 1, 2], []])}, [False, True]),
        ({"candidates": Ragged.of([[3, 2], [0]])}, [True, False]),
        ({"candidates": Ragged.of([[2, 3], [1]])}, [False, True]),
        ({"recall_scores": np.asarray([0.5, np.nan, 1.5], np.float32)}, [False, True]),
        ({"sources": pa.array(["a", "", "b"]).dictionary_encode()}, [False, False]),
        ({"sources": pa.array(["a", "b", "b"])}, [True, False]),
        ({"openings": pa.array(["old", None])}, [True, False]),
        ({"openings": pa.array(["young", ""])}, [False, True]),
        ({"openings": None}, [True, False]),
        ({"users": pa.array([2, 1])}, [False, False]),
    ],
)
def test_of_users(changes: dict[str, object], changed: list[bool]) -> None:
    before, after = of(work()), of(work(**changes))
    assert [a != b for a, b in zip(after, before, strict=True)] == changed


def test_an_items_text_counts_and_its_row_does_not() -> None:
    before = of(work())
    longer = Ragged.of([[1, 2], [3], [4, 5], [7]])
    assert [a != b for a, b in zip(of(work(), longer), before, strict=True)] == [True, False]
    # One more item moves all rows, and nobody's ranking.
    ids, event = pa.array([5, 10, 20, 30, 40]), Ragged.of([[8], [1, 2], [3], [4, 5, 6], [7]])
    moved = work(histories=Ragged.of([[1, 2, 3], [2]]), candidates=Ragged.of([[3, 4], [1]]))
    items = fingerprints.of_items(ids, event, event)
    assert fingerprints.of_users(moved, items, 2).tolist() == before


def test_an_items_vector_counts_instead_of_its_token() -> None:
    vectors, bias = np.eye(4, dtype=np.float32), np.zeros(4, np.float32)
    before = of(work(), vectors=[vectors, bias])
    assert of(work(), Ragged.of([[100], [101], [102], [103]]), vectors=[vectors, bias]) == before
    vectors[0, 1] = 1e-7
    assert [a != b for a, b in zip(of(work(), vectors=[vectors, bias]), before, strict=True)] == [False, True]


def test_what_rules_know_of_candidates_counts() -> None:
    def marked(
        bonus: tuple[float, ...] = (0, 1, 2, 3), kinds: tuple[Any, ...] = (["a"], None, ["b", "c"], []), first: int = 1
    ) -> list[int]:
        vectors = np.eye(4, dtype=np.float32)
        vectors[0, 0] = first
        columns = [pa.array(kinds, pa.list_(pa.string()))]
        marks = fingerprints.of_rules(4, np.asarray(bonus, np.float32), columns, vectors)
        return fingerprints.with_rules(np.asarray(of(work()), np.uint64), work(), marks).tolist()

    def changed(**what: Any) -> list[bool]:
        return [a != b for a, b in zip(marked(**what), marked(), strict=True)]

    # The first user has the items 2 and 3 as candidates, the second has 0, and 1 is nobody's.
    assert changed(bonus=(0, 9, 2, 3), kinds=(["a"], ["x"], ["b", "c"], [])) == [False, False]
    assert changed(bonus=(0, 1, 2, 3.5)) == changed(kinds=(["a"], None, ["bc"], [])) == [True, False]
    assert changed(first=2) == changed(kinds=(["b"], None, ["b", "c"], [])) == [False, True]
    assert fingerprints.of_rules(4, None, [], None) is None
    assert fingerprints.with_rules(np.asarray([1, 2], np.uint64), work(), None).tolist() == [1, 2]


def test_unchanged_is_by_user() -> None:
    before = fingerprints.table(pa.array([2, 1, 7]), np.asarray([5, 6, 8], np.uint64))
    found = fingerprints.unchanged(pa.array([1, 2, 3]), np.asarray([6, 4, 8], np.uint64), before)
    assert found.tolist() == [True, False, False]
    assert not fingerprints.unchanged(pa.array([1]), np.asarray([6], np.uint64), before.slice(0, 0)).any()


def test_some_of_the_users_keep_what_is_theirs() -> None:
    parts = {"text": np.asarray([1, 2, 3], np.float32)}
    left = subsets.only(work(contexts=pa.table({"place": ["home", "work"]}), parts=parts), np.asarray([1]))
    assert left.users.to_pylist() == [2] and left.openings.to_pylist() == [None]
    assert left.contexts.to_pydict() == {"place": ["work"]}
    assert left.histories[0].tolist() == [1] and left.candidates[0].tolist() == [0]
    assert left.recall_scores.tolist() == [1.0] and left.parts["text"].tolist() == [3.0]
    assert left.sources.to_pylist() == ["b"]


def test_users_set_aside_leave_a_row_for_each_candidate() -> None:
    left = subsets.set_aside(work(), {0: ("scoring_killed", "why")}, IDS, "file")
    assert left.users.to_pylist() == [2] and left.candidates.values.tolist() == [0]
    assert left.counts == {"to_score": 1, "quarantined": 2}
    assert left.quarantine.to_pylist() == [
        {"key": "1", "reason_code": "scoring_killed", "detail": f"item={i}: why", "source_file": "file"}
        for i in (30, 40)
    ]
