"""Which items require which, as the knowledge graph tells it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llmrec import schema
from llmrec.engine.prerequisites import required_by
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.ranker.graph import required
from llmrec.tables import buckets

EDGES = [("a", "needs", "b"), ("a", "needs", "c"), ("a", "needs", "b"), ("c", "needs", "c"), ("c", "needs", "b"),
         ("b", "teaches", "a"), ("a", "needs", "gone"), ("gone", "needs", "a")]  # fmt: skip


def edges(rows: list[tuple[Any, str, str]], item: pa.DataType) -> pa.Table:
    columns = [list(column) for column in zip(*rows, strict=True)]
    return pa.table([*columns, [1.0] * len(rows)], schema=schema.edges(item))


def test_tails_that_are_items_are_required_once() -> None:
    found = required(edges(EDGES, pa.string()), "needs", pa.array(["a", "b", "c"]))
    assert [found[row].tolist() for row in range(3)] == [[1, 2], [], [1]]


def test_whole_numbers_are_compared_as_texts() -> None:
    rows = [(12, "needs", "7"), (7, "needs", "x")]
    found = required(edges(rows, pa.int64()), "needs", pa.array([7, 12]))
    assert [found[row].tolist() for row in range(2)] == [[], [0]]


def test_what_is_refused(tmp_path: Path) -> None:
    layout, ids = Layout(str(tmp_path)), pa.array(["a", "b", "c"])

    def asked(relation: str) -> Any:
        return required_by(relation, layout, ids)

    assert asked("") is None
    with pytest.raises(UserError, match=r"score\.requires: .*edges.* is not there; set data\.edges"):
        asked("needs")
    buckets.write_parquet(edges(EDGES, pa.string()), layout.edges)
    assert asked("needs")[0].tolist() == [1, 2]
    with pytest.raises(UserError, match=r"score\.requires = need: no such relation in .* \(it has: needs, teaches\)"):
        asked("need")
    buckets.write_parquet(edges([("a", "needs", "statistics")], pa.string()), layout.edges)
    with pytest.raises(UserError, match=r"no tail of these edges .* is the id of another item"):
        asked("needs")
