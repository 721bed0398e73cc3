from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from llmrec.evaluation import bootstrap, segments
from llmrec.evaluation.segments import Grouping


def groups_of(grouping: Grouping) -> dict[str, list[int]]:
    return {name: rows.tolist() for name, rows in zip(grouping.names, segments.inside(grouping), strict=True)}


def test_counts_in_fixed_bins_of_which_some_may_be_empty() -> None:
    found = segments.by_counts("history_length", np.asarray([0, 1, 4, 5, 19, 100, 5000, 0]))
    assert groups_of(found) == {"0": [0, 7], "1-4": [1, 2], "5-19": [3, 4], "20-99": [], "100+": [5, 6]}


def test_numbers_in_bins() -> None:
    values = np.asarray([3, 1, np.nan, 2, 4, 8, 7, 6, 5])
    assert groups_of(segments.by_numbers("users.age", values, 4)) == {
        "1 to 2": [1, 3], "3 to 4": [0, 4], "5 to 6": [7, 8], "7 to 8": [5, 6], "(missing)": [2],
    }  # fmt: skip
    assert groups_of(segments.by_numbers("users.age", values, 4, (2, 10))) == {
        "below 2": [1], "2 to below 10": [0, 3, 4, 5, 6, 7, 8], "10 and above": [], "(missing)": [2],
    }  # fmt: skip
    assert groups_of(segments.by_numbers("users.age", np.asarray([1.0, 1, 1, 9]), 4)) == {"1": [0, 1, 2], "9": [3]}
    assert groups_of(segments.by_numbers("users.age", np.full(2, np.nan), 4)) == {"(missing)": [0, 1]}
    many = np.random.default_rng(0).normal(size=1000)
    sizes = [len(rows) for rows in groups_of(segments.by_numbers("users.age", many, 5)).values()]
    assert sizes == [200] * 5


def test_texts_largest_groups_first_the_rest_as_one() -> None:
    texts = pa.array(["b", "a", "c", None, "b", "a", "d", "b"])
    assert groups_of(segments.by_texts("users.job", texts, 2)) == {
        "b": [0, 4, 7], "a": [1, 5], "(other)": [2, 6], "(missing)": [3],
    }  # fmt: skip
    assert groups_of(segments.by_texts("users.job", pa.array(["x", "y"]), 2)) == {"x": [0], "y": [1]}
    assert groups_of(segments.by_texts("users.job", pa.nulls(2), 3)) == {"(missing)": [0, 1]}


def test_items_with_several_texts_are_in_several_groups_and_shared_out_among_them() -> None:
    # Item 0 has a and b; item 1 nothing; item 2 c and d, which are both rare; item 3 a, twice; item 4 b.
    flat, lengths = pa.array(["a", "b", "c", "d", "a", "a", "b"]), np.asarray([2, 0, 2, 2, 1])
    found = segments.by_texts("items.genres", flat, 2, lengths)
    assert groups_of(found) == {"a": [0, 3], "b": [0, 4], "(other)": [2], "(missing)": [1]}
    assert found.shares().toarray().tolist() == [
        [0.5, 0.5, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0],
    ]  # fmt: skip


def test_thirds_of_items_by_popularity() -> None:
    found = groups_of(segments.by_popularity("popularity", np.asarray([9, 0, 5, 0, 7, 1])))
    assert found == {"least popular third": [1, 3], "middle third": [2, 5], "most popular third": [0, 4]}


def test_groups_of_users_add_up_and_are_resampled_within() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((2, 3, 60))
    grouping = segments.by_counts("history_length", rng.integers(0, 30, 60))
    found = segments.measure(grouping, "user", ["ours", "theirs"], ["x", "y", "z"], values, 200, 7)
    assert [group.name for group in found.groups] == ["0", "1-4", "5-19", "20-99", "100+"]
    assert sum(group.users for group in found.groups) == 60
    empty = found.groups[-1]
    assert (empty.users, empty.rows) == (0, [])
    for r in range(2):
        for m, label in enumerate("xyz"):
            total = sum(group.users * group.rows[r].values[label] for group in found.groups if group.users)
            assert total / 60 == pytest.approx(values[r, m].mean())
    group, rows = found.groups[2], segments.inside(grouping)[2]
    assert group.rows[1].interval["z"] == pytest.approx(bootstrap.interval(values[1, 2, rows], 200, [7, 2]))


def test_users_as_often_as_their_true_items_are_in_groups() -> None:
    items = segments.by_texts("items.genres", pa.array(["a", "b", "b"]), 5)
    pairs = items.of_pairs(np.asarray([1, 0, 1]))
    found = segments.measure(pairs, "item", ["ours"], ["x"], np.asarray([[[1.0, 0.0, 3.0]]]), 10, 0)
    assert [(g.name, g.users, g.rows[0].values["x"]) for g in found.groups] == [("b", 1, 0.0), ("a", 2, 2.0)]


def test_an_empty_text_is_missing() -> None:
    grouping = segments.by_texts("by", pa.array(["x", "", None, "x"]), 5)
    assert grouping.names == ["x", "(missing)"] or grouping.names == ("x", "(missing)")
