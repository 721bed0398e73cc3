"""The benchmark of recall: its tables are what they say, its searches agree, and it sees where they do not."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.recall import __main__ as benchmark
from benchmarks.recall import job, tables
from benchmarks.recall.search import APPROXIMATE, ENGINES, PEER, agreement, found_of
from llmrec.layout import Layout
from llmrec.tables import buckets

SHAPE = tables.Shape(items=3000, users=400, events=6, zipf=1.0, users_per_bucket=150)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return tables.write(tmp_path_factory.mktemp("recall") / "tables", SHAPE)


def test_tables_hold_what_was_asked_for(layout: Layout) -> None:
    histories = buckets.read_parquet(layout.histories)
    assert sorted(histories["user_id"].to_pylist()) == list(range(400))
    lists = histories["item_ids"].to_pylist()
    assert all(len(set(one)) == len(one) for one in lists)
    assert 5 < np.mean([len(one) for one in lists]) < 7  # a few drawn twice
    had = np.bincount(np.searchsorted(buckets.catalogue_ids(layout.items).to_numpy(), np.concatenate(lists)))
    assert np.sort(had)[::-1][:10].sum() > 0.2 * had.sum()  # 2.9 of 8.6: 1 / rank, summed over 10 and over 3000
    for bucket, uri in buckets.bucket_files(layout.histories).items():
        users = buckets.read_parquet(uri, ["user_id"])["user_id"]
        assert set(buckets.bucket_of(users, SHAPE.buckets).tolist()) == {bucket}


def test_searches_agree_in_processes_of_their_own(tmp_path: Path) -> None:
    asked = argparse.Namespace(items=5000, search_users=20, top=10, threads=1, timeout=120, rounds=1, out=tmp_path)
    not_run: dict[str, str] = {}
    rows = benchmark._searches(asked, tmp_path, 16, lambda line: None, not_run)
    assert not not_run and {row["engine"] for row in rows} == set(ENGINES)
    exact = [row for row in rows if row["engine"] != APPROXIMATE]
    assert all(row["equal"] and row["same_rows"] > 0.99 for row in exact)
    (clusters,) = (row for row in rows if row["engine"] == APPROXIMATE)
    assert clusters["equal"] is None and 0.2 < clusters["same_rows"] <= 1
    assert {row["over_peer"] for row in rows if row["engine"] == PEER} == {1.0}


def test_agreement_sees_what_differs() -> None:
    rows, scores = np.asarray([[4, 2, 9, 1]]), np.asarray([[4.0, 3.0, 3.0, 1.0]])

    def equal(other: list[int], of: list[float]) -> Any:
        return agreement((rows, scores), (np.asarray([other]), np.asarray([of])))["equal"]

    assert equal([4, 2, 9, 1], [4, 3, 3, 1])
    assert equal([4, 9, 2, 7], [4, 3, 3, 1])  # ties, and the last place with whoever is tied behind it
    assert not equal([2, 4, 9, 1], [4, 3, 3, 1])
    assert not equal([4, 2, 9, 1], [4, 3, 3, 1.1])


def test_what_an_approximate_search_found_is_counted_wherever_it_stands() -> None:
    scores = np.zeros((2, 3))
    exact, other = np.asarray([[4, 2, 9], [1, 2, 3]]), np.asarray([[9, 4, 7], [3, -1, -1]])
    assert found_of((exact, scores), (other, scores)) == {"equal": None, "same_rows": 0.5}


def test_the_job_tells_what_it_took(cluster: Any, layout: Layout) -> None:
    found = job.measured(job.settings(layout.root, 20), layout)
    assert (found["users"], found["short_lists"]) == (400, 0)
    assert found["learn_seconds"] + found["candidates_seconds"] <= found["seconds"] + 0.1
    assert found["peak_mb"] > 100
