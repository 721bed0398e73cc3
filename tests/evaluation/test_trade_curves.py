"""What the curves of rerank make of their buckets' figures; no Ray."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from llmrec import config
from llmrec.engine import diversity, evaluate_items, fairness
from llmrec.engine.kept_lists import KeptLists
from llmrec.tables import buckets

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


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_lists_are_chosen_for_the_share_of_users_that_is_looked_at(tmp_path: Path, share: float) -> None:
    parts, truth = (str(tmp_path / f"{name}.parquet") for name in ("parts", "truth"))
    scores = pa.array([[0.0, 1.0]] * 40, pa.list_(pa.float32()))
    buckets.write_parquet(pa.table({"user_id": range(40), "item_ids": [[0, 1]] * 40, "scores": scores}), parts)
    buckets.write_parquet(pa.table({"user_id": range(0, 40, 2), "item_ids": [[1]] * 20}), truth)
    kept = KeptLists({"parts": parts, "truth": truth, "share": share}, pa.array([0, 1, 2]))
    some = [u for u in range(40) if xxhash.xxh64_intdigest(str(u).encode()) / 2.0**64 < share]
    assert kept.users == [str(u) for u in some] and list(kept.truth) == [str(u) for u in some if u % 2 == 0]
    assert kept.named(kept.chosen(None, 1)) == {str(u): ["1"] for u in some} and (len(some) < 40) == (share < 1)
