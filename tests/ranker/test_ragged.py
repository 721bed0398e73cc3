from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.ranker.ragged import Ragged, like_lengths, padded

SEQUENCES = st.lists(st.lists(st.integers(1, 99), max_size=12), min_size=1, max_size=30)


@settings(max_examples=300, deadline=None)
@given(SEQUENCES, st.integers(1, 40))
def test_like_lengths_gives_every_sequence_once_in_rectangles_half_full(lists: list[list[int]], cells: int) -> None:
    ragged = Ragged.of(lists)
    parts = list(like_lengths(ragged.lengths, cells))
    assert sorted(np.concatenate([[], *parts]).tolist()) == [i for i, one in enumerate(lists) if one]
    for rows in parts:
        longest = ragged.lengths[rows].max()
        assert (np.diff(rows) > 0).all()
        assert 2 * ragged.lengths[rows].min() >= longest
        assert len(rows) == 1 or len(rows) * longest <= cells


@settings(max_examples=300, deadline=None)
@given(SEQUENCES, st.data())
def test_padded_is_a_plain_loop(lists: list[list[int]], data: st.DataObject) -> None:
    ragged = Ragged.of(lists)
    rows = np.asarray(data.draw(st.lists(st.integers(0, len(lists) - 1), min_size=1, max_size=8)))
    width = max(len(lists[row]) for row in rows)
    wanted = [[*lists[row], *[-1] * (width - len(lists[row]))] for row in rows]
    found = padded(ragged.values, ragged.offsets, rows, -1)
    assert found.shape == (len(rows), width) and found.dtype == np.int32
    assert found.tolist() == wanted


def test_sequences_of_one_length_are_not_copied() -> None:
    ragged = Ragged.of(np.arange(12).reshape(4, 3))
    found = padded(ragged.values, ragged.offsets, np.asarray([1, 2, 3]), 0)
    assert found.tolist() == [[3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert np.shares_memory(found, ragged.values)
