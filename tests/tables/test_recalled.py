from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec import schema
from llmrec.ranker.ragged import Ragged
from llmrec.recall.candidates import Candidates
from llmrec.tables import buckets, recalled

IDS = {"integer": pa.array([10, 20, 30, 40, 50]), "text": pa.array(["a", "b", "c", "d", "e"])}
LISTS = st.lists(st.lists(st.integers(0, 4), unique=True, max_size=5), max_size=7)


def found(lists: list[list[int]], labels: int = 1) -> Candidates:
    rng = np.random.default_rng(0)
    total = sum(map(len, lists))
    return Candidates(
        Ragged.of(lists), rng.random(total).astype(np.float32), rng.integers(0, labels, total).astype(np.int8)
    )


@pytest.mark.parametrize("kind", IDS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LISTS, st.integers(0, 7))
def test_what_is_written_is_read_again(tmp_path: Path, kind: str, lists: list[list[int]], cut: int) -> None:
    """Whether the users come in one part or in two."""
    whole, ids = found(lists), IDS[kind]
    cut = min(cut, len(lists))
    parts = [whole.take(np.arange(0, cut)), whole.take(np.arange(cut, len(lists)))]
    users = pa.chunked_array(
        [pa.array(range(100, 100 + cut), pa.int64()), pa.array(range(100 + cut, 100 + len(lists)), pa.int64())]
    )
    file = str(tmp_path / "bucket.parquet")
    buckets.write_parquet(recalled.table(users, parts, ["retrieve"], ids), file)
    again = recalled.read(file, ids)
    assert [again.items[i].tolist() for i in range(len(again.items))] == lists
    assert again.scores.tolist() == whole.scores.tolist() and not again.source.any()
    assert (again.items.values.dtype, again.scores.dtype, again.source.dtype) == (np.int32, np.float32, np.int8)


def test_what_each_source_says_is_a_column_with_nulls_where_it_says_nothing(tmp_path: Path) -> None:
    made = [found([[4, 0], []]), found([[2]])]
    said = {"als": [np.asarray([0.5, np.nan], np.float32), np.asarray([1.5], np.float32)]}
    table = recalled.table(pa.chunked_array([pa.array([1, 2, 3])]), made, ["als"], IDS["text"], said)
    assert table["recall_score_als"].to_pylist() == [[0.5, None], [], [1.5]]
    assert table["item_ids"].to_pylist() == [["e", "a"], [], ["c"]]
    assert table["recall_score_als"].type == pa.list_(pa.float32())


def test_a_table_as_another_reader_sees_it(tmp_path: Path) -> None:
    made = Candidates(
        Ragged.of([[4, 0], [], [2]]), np.asarray([0.5, 0.25, 2.0], np.float32), np.asarray([1, 0, 1], np.int8)
    )
    users = pa.chunked_array([pa.array(["x", "y", "z"])])
    table = recalled.table(users, [made], ["item_item", "popularity"], IDS["integer"])
    assert table.schema.equals(schema.candidates(pa.string(), pa.int64()))
    file = tmp_path / "bucket.parquet"
    buckets.write_parquet(table, str(file))
    rows = duckdb.sql(f"select user_id, item_ids, recall_scores, sources from '{file}' order by user_id").fetchall()
    assert rows == [
        ("x", [50, 10], [0.5, 0.25], ["popularity", "item_item"]),
        ("y", [], [], []),
        ("z", [30], [2.0], ["popularity"]),
    ]


def test_a_bucket_without_users_is_a_table_too() -> None:
    users = pa.chunked_array([pa.array([], pa.int64())])
    for parts in ([], [found([])]):
        table = recalled.table(users, parts, ["retrieve"], IDS["text"])
        assert table.num_rows == 0 and table.schema.equals(schema.candidates(pa.int64(), pa.string()))
