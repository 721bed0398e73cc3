from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.errors import UserError
from llmrec.ranker.ragged import Ragged
from llmrec.recall.popularity import group_counts, group_keys, grouped, recent

N, DAY = 5, 86_400
EVENTS = st.lists(st.tuples(st.integers(0, N - 1), st.integers(0, 9)), max_size=7)


@settings(max_examples=150, deadline=None)
@given(st.lists(EVENTS, min_size=1, max_size=6), st.sampled_from([None, 2.0, 0.5]), st.sampled_from([None, 3.0, 0.1]))
def test_recent_weighs_a_users_newest_event_of_an_item(
    log: list[list[tuple[int, int]]], half_life: float | None, window: float | None
) -> None:
    log = [sorted(one, key=lambda event: event[1]) for one in log]
    wanted = np.zeros(N)
    for one in log:
        for item, day in dict(one).items():  # the later event of an item comes last
            age = 9 - day
            if window is None or age <= window:
                wanted[item] += 1.0 if half_life is None else 0.5 ** (age / half_life)
    parts = [
        recent(
            Ragged.of([[i for i, _ in one] for one in part]),
            np.asarray([day * DAY for one in part for _, day in one], np.int64), 9 * DAY, half_life, window, N,
        )
        for part in (log[:2], log[2:])
    ]  # fmt: skip
    np.testing.assert_allclose(parts[0] + parts[1], wanted)


USERS = st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.sampled_from([1, 2, None]), EVENTS), max_size=8)


@settings(max_examples=150, deadline=None)
@given(USERS, st.integers(0, 8))
def test_groups_count_their_users_over_any_parts(
    users: list[tuple[str | None, int | None, list[tuple[int, int]]]], cut: int
) -> None:
    jobs, ages = (pa.array([user[k] for user in users], kind) for k, kind in enumerate((pa.string(), pa.int64())))
    table = pa.table({"job": jobs, "age": ages})
    keys = group_keys(table, ("job", "age"), "users")
    histories = [[i for i, _ in events] for _, _, events in users]
    had = np.zeros(N)
    for one in histories:
        for item in set(one):
            had[item] += 1
    active = sum(bool(one) for one in histories)
    parts = [
        group_counts(keys[a:b], Ragged.of(histories[a:b]), N)
        for a, b in ((0, min(cut, len(users))), (min(cut, len(users)), len(users)))
    ]
    found = grouped(parts, had, active).scores(keys, prior=2.0)
    asked = Ragged.of([list(range(N))] * len(users))
    scores = found.at(asked).reshape(-1, N)
    share = had / max(active, 1)
    for (job, age, _), row in zip(users, scores, strict=True):
        mine = [
            set(one) for (j, a, _), one in zip(users, histories, strict=True)
            if None not in (job, age) and (j, a) == (job, age) and one
        ]  # fmt: skip
        counts = np.asarray([sum(item in one for one in mine) for item in range(N)])
        np.testing.assert_allclose(row, (counts + 2 * share) / (len(mine) + 2), rtol=1e-6)


def test_a_stranger_gets_what_all_users_had() -> None:
    keys = pa.array(["1 a", "1 a"])
    found = grouped([group_counts(keys, Ragged.of([[0], [0, 1]]), N)], np.asarray([2.0, 1, 0, 0, 0]), 2)
    scores = found.scores(pa.array(["1 z", None], pa.string()), 5.0)
    best = scores.top(Ragged.of([[], [0]]), 3)
    assert best.items[0].tolist() == [0, 1] and best.items[1].tolist() == [1]
    assert best.scores.tolist() == [1.0, 0.5, 0.5]


def test_keys_are_one_to_one_with_values() -> None:
    table = pa.table({"x": ["a b", "a", "a b", None], "y": ["c", "b c", "c", "c"], "z": [1.0, 1.0, np.nan, 1.0]})
    two = group_keys(table, ("x", "y"), "users")
    assert two[0] != two[1] and two[0] == two[2] and not two[3].is_valid
    assert group_keys(table, ("z",), "users").is_valid().to_pylist() == [True, True, False, True]


def test_wrong_columns_are_named() -> None:
    table = pa.table({"user_id": [1], "tags": [["a"]]})
    with pytest.raises(UserError, match=r"recall\.segment\.columns names 'job', but users has: user_id, tags"):
        group_keys(table, ("job",), "users")
    with pytest.raises(UserError, match="column 'tags' has type list"):
        group_keys(table, ("tags",), "users")
