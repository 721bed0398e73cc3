from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.tables import catalogue

LEAST, MOST = -(2**63), 2**63 - 1
NUMBERS = st.integers(-5, 25) | st.integers(LEAST, LEAST + 3) | st.integers(MOST - 3, MOST)


@settings(max_examples=400, deadline=None)
@given(
    st.sets(st.integers(-5, 25)) | st.sets(NUMBERS) | st.sets(st.integers(MOST - 9, MOST)) | st.just(set()),
    st.lists(st.none() | NUMBERS, max_size=12),
    st.sampled_from(["number", "text", "dictionary of numbers", "dictionary of texts"]),
)
def test_rows_of_is_a_lookup(known: set[int], asked: list[int | None], kind: str) -> None:
    text = "text" in kind
    names = sorted((str(k) for k in known), key=str.encode) if text else sorted(known)
    place = {name: i for i, name in enumerate(names)}
    ids = pa.array([str(a) if text and a is not None else a for a in asked], pa.string() if text else pa.int64())
    wanted = [place.get(a, -1) for a in ids.to_pylist()]
    found = catalogue.rows_of(ids.dictionary_encode() if "dictionary" in kind else ids, pa.array(names, ids.type))
    assert found.dtype.name == "int32" and found.tolist() == wanted


def test_a_slice_is_asked_for_its_own_ids() -> None:
    ids = pa.array([7, None, 2, 9, 3]).slice(1, 3)
    assert catalogue.rows_of(ids, pa.array([2, 9])).tolist() == [-1, 0, 1]


@pytest.mark.parametrize("gap", [1, 3, 10**9])
def test_ids_next_to_each_other_or_far_apart(gap: int) -> None:
    known = pa.array([i * gap for i in range(1000)])
    asked = pa.array([(i * 7 % 1100 - 50) * gap for i in range(3000)])
    place = {value: i for i, value in enumerate(known.to_pylist())}
    assert catalogue.rows_of(asked, known).tolist() == [place.get(a, -1) for a in asked.to_pylist()]
