"""What the curves of rerank make of their buckets' figures; no Ray."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llmrec import config
from llmrec.engine import diversity, evaluate_items, fairness

POINTS = [("none", 0.0), ("mmr", 0.5)]
WANTED = config.Evaluate(bootstrap=200)


def bucket(ndcg: list[list[float]], apart: list[float], compared: list[int]) -> dict[str, Any]:
    return {"ndcg": np.asarray(ndcg).ravel(), "apart": apart, "compared": compared}


def test_unlikeness_is_the_mean_over_the_lists_of_all_buckets() -> None:
    rows = [bucket([[0.5, 1.0], [0.0, 1.0]], [1.0, 1.5], [2, 2]), bucket([[0.0], [0.5]], [0.5, 0.5], [1, 1])]
    covered = np.asarray([[True, False], [True, True]])
    users, (plain, changed) = diversity.together(rows, POINTS, covered, WANTED)
    assert (users, plain.unlikeness, changed.unlikeness) == (3, 0.5, pytest.approx(2 / 3))
    assert (plain.ndcg, plain.change, plain.coverage, changed.coverage) == (0.5, (0, 0), 0.5, 1.0)


def test_where_no_list_has_two_items_there_is_no_unlikeness() -> None:
    rows = [bucket([[1.0], [0.5]], [0.0, 0.0], [0, 0])]
    users, found = diversity.together(rows, POINTS, np.ones((2, 4), bool), WANTED)
    assert (users, [of.unlikeness for of in found]) == (1, [None, None])
    json.dumps([asdict(of) for of in found], allow_nan=False)


def test_nobody_with_held_out_events_gives_no_points() -> None:
    assert diversity.together([bucket([[], []], [0, 0], [0, 0])], POINTS, np.ones((2, 4), bool), WANTED) == (0, [])


def test_users_are_grouped_as_an_evaluation_groups_them() -> None:
    ages = pa.array([20, 35, None, 61, 44, 70, 18, 33], pa.int64())
    texts = ages.cast(pa.string()).to_pylist()
    for edges in ({}, {"users.age": (30.0, 50.0)}):
        wanted = config.Evaluate(segments=("users.age",), edges=edges)
        found = fairness.grouped("age", [texts[:5], [], texts[5:]], ages.type, wanted)
        same = evaluate_items.of_attribute("age", pa.chunked_array([ages]), wanted)
        assert found.names == same.names and (found.members != same.members).nnz == 0
    assert found.names == ("below 30", "30 to below 50", "50 and above", "(missing)")
    countries = ["x", None, "y", "x"]
    assert fairness.grouped("country", [countries], pa.string(), wanted).names == ("x", "y", "(missing)")
