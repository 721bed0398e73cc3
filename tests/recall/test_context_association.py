from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.ranker.ragged import Ragged
from llmrec.recall import context
from llmrec.recall.context import InContext

N = 5
EVENT = st.tuples(st.integers(0, N - 1), st.sampled_from([None, "home", "work", "bar"]), st.sampled_from([None, "0"]))
USERS = st.lists(st.lists(EVENT, max_size=6), min_size=1, max_size=7)
NAMES = ("place", "hour")
Users = list[list[tuple[int, Any, Any]]]


def counted(users: Users) -> Any:
    flat = [event for user in users for event in user]
    told = {name: pa.array([event[1 + i] for event in flat], pa.string()) for i, name in enumerate(NAMES)}
    return context.counted(Ragged.of([[event[0] for event in user] for user in users]), told)


def naive(users: Users, column: int, prior: float) -> dict[tuple[Any, int], float]:
    """Loops over users, each counted once for an item and a value."""
    had = {(u, item, told[column]) for u, user in enumerate(users) for item, *told in user if told[column] is not None}
    found = {}
    for value in {v for *_, v in had}:
        share = sum(v == value for *_, v in had) / len(had)
        for item in range(N):
            of_item = sum(i == item for _, i, _ in had)
            both = sum(i == item and v == value for _, i, v in had)
            found[value, item] = math.log((both + prior * share) / (of_item + prior) / share)
    return found


@settings(max_examples=100, deadline=None)
@given(USERS, USERS, st.sampled_from([0.5, 10.0]))
def test_scores_are_those_of_loops_over_users(users: Users, asked: Users, prior: float) -> None:
    wanted = [naive(users, column, prior) for column in (0, 1)]
    learned = context.learn(counted(users), N, prior)
    assert set(learned) == {name for name, of in zip(NAMES, wanted, strict=True) if of}
    told = [user[0][1:] if user else (None, None) for user in asked]
    table = pa.table({name: pa.array([t[i] for t in told], pa.string()) for i, name in enumerate(NAMES)})
    items = Ragged.of([[event[0] for event in user] for user in asked])
    popularity = np.asarray([len({u for u, user in enumerate(users) for e in user if e[0] == i}) for i in range(N)])
    source = InContext(
        list(learned.values()), context.rows_of(table, learned, table.num_rows), popularity.astype(np.float32)
    )
    at, best = source.at(items), source.top(items, 3)
    for u, user in enumerate(asked):
        known = [(of, told[u][i]) for i, of in enumerate(wanted) if (told[u][i], 0) in of]
        scores = [sum(of[value, item] for of, value in known) for item in range(N)]
        mine = slice(items.offsets[u], items.offsets[u + 1])
        expected = [scores[event[0]] if known else math.nan for event in user]
        np.testing.assert_allclose(at[mine], expected, atol=1e-5)
        likely = {
            i: math.log(popularity[i]) + scores[i]
            for i in range(N)
            if popularity[i] and i not in {event[0] for event in user}
        }
        chosen = best.items[u].tolist()
        assert len(chosen) == min(3, len(likely))
        np.testing.assert_allclose(
            best.scores[best.items.offsets[u] : best.items.offsets[u + 1]],
            sorted(likely.values(), reverse=True)[:3],
            atol=1e-5,
        )
        np.testing.assert_allclose(sorted((likely[i] for i in chosen), reverse=True), [likely[i] for i in chosen])


@settings(max_examples=50, deadline=None)
@given(USERS, st.integers(0, 7))
def test_counts_add_up_over_users(users: Users, at: int) -> None:
    assert context.added([counted(users[:at]), counted(users[at:])]).equals(counted(users))


def test_an_item_of_few_users_gets_little() -> None:
    """One user in a bar does not make an item of bars; a hundred do, and an item that nobody had is of none."""
    users: Users = [[(0, "bar", None)]] + [[(1, "bar", None)]] * 100 + [[(2, "home", None)]] * 100
    learned = context.learn(counted(users), N, 10.0)
    table = pa.table({"place": ["bar", "home", "sea", None]})
    source = InContext(list(learned.values()), context.rows_of(table, learned, table.num_rows), np.ones(N, np.float32))
    at = source.at(Ragged.of([[0, 1, 2, 3]] * 4)).reshape(4, 4)
    assert 0 < at[0, 0] < 0.1 < at[0, 1] and at[0, 2] < -1
    assert at[0, 1] == pytest.approx(math.log((100 + 10 * 101 / 201) / 110 / (101 / 201)), abs=1e-5)
    assert at[0, 3] == at[1, 3] == 0
    assert np.isnan(at[2:]).all(), "of a place that nobody was in, and of none, nothing is known"
