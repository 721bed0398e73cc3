from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec import schema
from llmrec.config import Data
from llmrec.data.split import Boundaries, Split, split_events, with_new_users

EVENTS = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6)), max_size=25)


def events(rows: list[tuple[Any, Any, int]]) -> pl.DataFrame:
    return pl.DataFrame(
        [(*row, place) for place, row in enumerate(rows)],
        schema={"user_id": pl.Int64, "item_id": pl.Int64, "timestamp": pl.Int64, "row": pl.Int64},
        orient="row",
    ).with_columns(pl.lit(None, pl.String).alias("reason_code"))


def split(rows: list, boundaries: Boundaries | None = None, **data: Any) -> Split:
    return split_events(events(rows), Data(**data), boundaries, pa.int64(), pa.int64())


def histories(found: Split) -> dict[int, tuple[list[int], list[int], int]]:
    table = found.histories
    assert table.schema == schema.histories(pa.int64(), pa.int64())
    columns = (table[c].to_pylist() for c in ("user_id", "item_ids", "timestamps", "train_length"))
    return {user: (items, times, length) for user, items, times, length in zip(*columns, strict=True)}


def targets(found: Split) -> dict[int, list[int]]:
    assert found.targets.schema == schema.targets(pa.int64(), pa.int64())
    return dict(zip(found.targets["user_id"].to_pylist(), found.targets["item_ids"].to_pylist(), strict=True))


def test_leave_one_out_tests_the_last_event_and_validates_the_one_before() -> None:
    found = split([(2, 10, 9), (1, 12, 3), (1, 11, 2), (1, 10, 1), (2, 11, 7), (2, 12, 8), (1, 13, 4)])
    assert histories(found) == {1: ([10, 11, 12], [1, 2, 3], 2), 2: ([11, 12], [7, 8], 1)}
    assert targets(found) == {1: [13], 2: [10]}
    assert found.set_aside.is_empty()


def test_ties_in_time_keep_the_order_of_the_input() -> None:
    rows = [(1, 14, 5), (1, 11, 5), (1, 13, 5), (1, 12, 5)]
    assert histories(split(rows))[1][0] == [14, 11, 13]
    assert targets(split(rows)) == {1: [12]}
    shuffled = events(rows)[[2, 0, 3, 1]]
    again = split_events(shuffled, Data(), None, pa.int64(), pa.int64())
    assert targets(again) == {1: [12]}


def test_split_by_time() -> None:
    rows = [
        (1, 10, 1),
        (1, 11, 5),
        (1, 12, 8),
        (1, 13, 9),
        (2, 10, 8),
        (2, 11, 8),
        (2, 12, 9),
        (3, 10, 1),
        (3, 11, 2),
        (3, 12, 3),
    ]
    found = split(rows, Boundaries(validation=5, test=8), split="time")
    assert histories(found) == {1: ([10, 11], [1, 5], 1), 2: ([], [], 0), 3: ([10, 11, 12], [1, 2, 3], 3)}
    assert targets(found) == {1: [12, 13], 2: [10, 11, 12]}


def test_no_split_trains_on_everything() -> None:
    found = split([(1, 10, 1), (1, 11, 2), (1, 12, 3)], split="none")
    assert histories(found) == {1: ([10, 11, 12], [1, 2, 3], 3)}
    assert targets(found) == {}


def test_copies_and_short_users_are_set_aside() -> None:
    rows = [(1, 10, 1), (1, 10, 1), (1, 10, 2), (1, 11, 3), (2, 10, 1), (2, 11, 2), (2, 11, 2)]
    found = split(rows, min_user_events=3)
    assert histories(found) == {1: ([10, 10], [1, 2], 1)}
    assert targets(found) == {1: [11]}
    aside = found.set_aside.select("user_id", "item_id", "row", "reason_code").rows()
    assert sorted(aside) == [
        (1, 10, 1, "duplicate_event"),
        (2, 10, 4, "too_few_events"),
        (2, 11, 5, "too_few_events"),
        (2, 11, 6, "duplicate_event"),
    ]


def test_one_event_is_enough() -> None:
    found = split([(1, 10, 1)])
    assert histories(found) == {1: ([], [], 0)} and targets(found) == {1: [10]}


@settings(max_examples=80, deadline=None)
@given(EVENTS, st.sampled_from(["leave_one_out", "time", "none"]), st.integers(2, 4))
def test_every_event_ends_in_one_place(rows: list, kind: str, fewest: int) -> None:
    found = split(rows, Boundaries(3, 5), split=kind, min_user_events=fewest)
    kept, held_out = histories(found), targets(found)
    in_tables = sum(len(items) for items, _, _ in kept.values()) + sum(map(len, held_out.values()))
    assert in_tables + len(found.set_aside) == len(rows)
    clean: dict[int, list] = {}
    for user, item, time in sorted(dict.fromkeys(rows), key=lambda r: (r[0], r[2])):
        clean.setdefault(user, []).append((item, time))
    for user, past in clean.items():
        if len(past) < fewest:
            assert user not in kept and user not in held_out
            continue
        items, times, length = kept[user]
        assert items + held_out.get(user, []) == [i for i, _ in past]
        assert times == [t for _, t in past][: len(times)]
        assert length == {"none": len(past), "leave_one_out": max(len(past) - 2, 0)}.get(
            kind, sum(t < 3 for t in times)
        )


def test_new_users_have_an_empty_history_in_their_place() -> None:
    found = split([(2, 10, 9), (2, 11, 7), (2, 12, 8), (5, 10, 1), (5, 11, 2), (5, 12, 3)])
    every = with_new_users(found.histories, pa.array([9, 2, 1]))
    assert every["user_id"].to_pylist() == [1, 2, 5, 9]
    assert histories(Split(every, found.targets, found.set_aside)) == histories(found) | {
        user: ([], [], 0) for user in (1, 9)
    }
    for none in (pa.array([], pa.int64()), pa.array([5, 2])):
        assert with_new_users(found.histories, none) is found.histories


def test_new_users_are_asked_about_nothing_yet() -> None:
    kept = events([(1, 10, 1), (1, 11, 2), (1, 12, 3)]).with_columns(context_place=pl.Series(["a", "b", "c"]))
    made = split_events(kept, Data(context=("place",)), None, pa.int64(), pa.int64())
    every = with_new_users(made.histories, pa.array([4])).to_pylist()
    assert every[1] == {"user_id": 4, "item_ids": [], "timestamps": [], "train_length": 0, "context_place": [],
                        "now_place": None}  # fmt: skip
