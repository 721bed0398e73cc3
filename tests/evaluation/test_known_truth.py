"""Shares of lists that are right, against counting by hand in loops."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from llmrec.evaluation import known_truth

USERS = pl.Series("user_id", ["a", "b", "c", "d"])
PLACES = 3


def pairs(of: dict[str, str]) -> pl.DataFrame:
    rows = [(user, item) for user, items in of.items() for item in items]
    return pl.DataFrame(rows, schema={"user_id": pl.String, "item_id": pl.String}, orient="row")


def lists(of: dict[str, str]) -> pl.DataFrame:
    return pairs(of).with_columns(rank=pl.int_range(1, pl.len() + 1).over("user_id"))


POOL = {"a": "pqrst", "b": "pq", "c": "pqrs"}  # d has nothing left
RIGHT = {"a": "prst", "b": "q", "c": ""}


def test_places_count_and_empty_ones_are_wrong() -> None:
    shown = lists({"a": "pqrs", "b": "q", "c": "pq"})
    # a: p and r of the first three, s comes too late; b: q, and two empty places.
    assert known_truth.share_right(shown, pairs(RIGHT), USERS, PLACES) == 3 / 12
    assert known_truth.share_right(shown, pairs(RIGHT), USERS.filter(USERS == "b"), PLACES) == 1 / 3
    assert known_truth.best_share(pairs(RIGHT), USERS, PLACES) == (3 + 1) / 12
    nobody = USERS.clear()
    of_nobody = known_truth.share_right(shown, pairs(RIGHT), nobody, PLACES)
    assert math.isnan(of_nobody) and math.isnan(known_truth.best_share(pairs(RIGHT), nobody, PLACES))


def test_chance_is_the_mean_of_lists_drawn_at_random() -> None:
    expected = known_truth.share_at_random(pairs(POOL), pairs(RIGHT), USERS, PLACES)
    rng, hits = np.random.default_rng(0), 0
    for _ in range(4000):
        for user, pool in POOL.items():
            drawn = rng.permutation(list(pool))[:PLACES]
            hits += sum(item in RIGHT[user] for item in drawn)
    assert expected == pytest.approx(hits / 4000 / 12, rel=0.03)


def test_popular_lists_are_of_the_pool_alone() -> None:
    log = pairs({"x": "sq", "y": "sq", "z": "st"})
    found = known_truth.popular_lists(pairs(POOL), log, PLACES)
    by_user = {user: "".join(items) for user, items in found.group_by("user_id").agg("item_id").iter_rows()}
    assert by_user == {"a": "sqt", "b": "qp", "c": "sqp"}
    assert found.sort("user_id", "rank")["rank"].to_list() == [1, 2, 3, 1, 2, 1, 2, 3]


def test_the_gain_of_one_true_item_falls_with_its_rank() -> None:
    lists = pl.DataFrame({"user_id": [1, 1, 1, 2, 2], "rank": [1, 2, 3, 1, 2], "item_id": [5, 6, 7, 5, 6]})
    truth = pl.DataFrame({"user_id": [1, 2, 3], "item_id": [6, 9, 5]})
    found = known_truth.gain_of_one(lists, truth, pl.Series([1, 2, 3]), 2)
    assert found == pytest.approx(1 / math.log2(3) / 3)
    assert known_truth.gain_of_one(lists, truth, pl.Series([1]), 1) == 0


def test_a_quota_leaves_out_what_a_full_group_has_and_closes_the_ranks() -> None:
    lists = pl.DataFrame({"user_id": [2, 1, 1, 1, 1], "rank": [1, 4, 1, 2, 3], "item_id": [8, 8, 5, 6, 7]})
    group = pl.DataFrame({"item_id": [5, 6, 7, 8], "of": ["a", "a", "a", "b"]})
    found = known_truth.within_quota(lists, group, 2, 3).sort("user_id", "rank")
    assert found.rows() == [(1, 1, 5), (1, 2, 6), (1, 3, 8), (2, 1, 8)]
    assert known_truth.within_quota(lists, group, 1, 1).sort("user_id").rows() == [(1, 1, 5), (2, 1, 8)]
