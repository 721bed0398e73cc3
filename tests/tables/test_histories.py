from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.ranker.ragged import Ragged
from llmrec.tables.histories import as_lists, flatten, item_rows, keep

LISTS = st.lists(st.none() | st.lists(st.none() | st.integers(0, 6), max_size=4), max_size=8)


def column(lists: list[list[int | None] | None], cut: int) -> pa.ChunkedArray:
    whole = pa.array([[9], *lists, [9]], pa.list_(pa.int64()))
    cut = min(cut, len(lists))
    return pa.chunked_array([whole.slice(1, cut), whole.slice(1 + cut, len(lists) - cut)], pa.list_(pa.int64()))


@settings(max_examples=100, deadline=None)
@given(LISTS, st.integers(0, 8))
def test_item_rows_of_sliced_and_chunked_lists(lists: list[list[int | None] | None], cut: int) -> None:
    catalogue = pa.array([1, 2, 4, 6])
    wanted = [[{1: 0, 2: 1, 4: 2, 6: 3}.get(v, -1) for v in one or []] for one in lists]
    found = item_rows(column(lists, cut), catalogue)
    assert [found[i].tolist() for i in range(len(found))] == wanted


@settings(max_examples=100, deadline=None)
@given(LISTS, st.integers(0, 8))
def test_as_lists_undoes_flatten(lists: list[list[int | None] | None], cut: int) -> None:
    values, offsets = flatten(column(lists, cut))
    assert as_lists(values, offsets).to_pylist() == [one or [] for one in lists]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=4), max_size=8))
def test_keep_filters_each_sequence(lists: list[list[tuple[int, bool]]]) -> None:
    ragged = Ragged.of([[v for v, _ in one] for one in lists])
    mask = np.asarray([m for one in lists for _, m in one], bool)
    found = keep(ragged, mask)
    assert [found[i].tolist() for i in range(len(found))] == [[v for v, m in one if m] for one in lists]
