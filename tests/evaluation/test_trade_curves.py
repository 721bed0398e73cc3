"""What the curves of rerank make of their buckets' figures; no Ray."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from llmrec import config
from llmrec.engine import diversity

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
