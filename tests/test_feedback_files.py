"""Impressions as they come: no file alike, some of them empty, and days on which nobody took anything. No cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llmrec import config
from llmrec.engine import feedback
from llmrec.engine.feedback import FedBack
from llmrec.engine.prepare import _input_units
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.tables import buckets


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def each(
        units: Sequence[Mapping[str, Any]], function: Callable[..., pa.Table], arguments: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        for unit in units:
            yield from function(pa.Table.from_pylist([dict(unit)]), **arguments).to_pylist()

    monkeypatch.setattr(feedback, "each", each)


def rows(users: Sequence[Any], items: Sequence[Any], outcomes: Sequence[int | None]) -> pa.Table:
    n = len(users)
    columns = {"timestamp": [100 + i for i in range(n)], "position": list(range(1, n + 1))}
    return pa.table({
        "user_id": pa.array(users, None if users else pa.string()),
        "item_id": pa.array(items, None if items else pa.string()),
        **{name: pa.array(values, pa.int64()) for name, values in columns.items()},
        "outcome": pa.array(outcomes, pa.int64()),
    })  # fmt: skip


def settings(tmp_path: Path, files: Sequence[pa.Table], **sections: Any) -> config.Config:
    for number, file in enumerate(files):
        buckets.write_parquet(file, f"{tmp_path}/impressions/{number}.parquet")
    given = {"feedback": {"impressions": f"{tmp_path}/impressions"}, "root": f"{tmp_path}/root"}
    return config.build(given | sections)


def run(wanted: config.Config, said: list[str] | None = None) -> FedBack:
    say = (lambda line: None) if said is None else said.append
    return feedback.feedback(wanted.feedback, wanted.data, wanted.privacy, Layout.of(wanted), say)


@pytest.mark.parametrize("order", permutations(range(3)))
def test_a_file_without_usable_rows_goes_with_the_others_in_any_order(order: Sequence[int], tmp_path: Path) -> None:
    files = [
        rows([], [], []),
        rows(["u1"], ["i1"], [None]),
        rows(["u1", "u2", "u3"] * 4, ["i1", "i2", "i3"] * 4, [1, 0, 0] * 4),
    ]
    wanted = settings(tmp_path, [files[i] for i in order])
    done = run(wanted)
    assert (done.impressions, done.outcomes, done.set_aside) == (13, 4, {"null_outcome": 1})
    assert buckets.read_parquet(done.table)["item_id"].to_pylist() == ["i1"] * 4
    assert [(run.run_id, run.shown, run.taken) for run in done.runs] == [("(no run)", 12, 4)]


@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_files_that_disagree_on_the_type_of_ids_are_one_line(column: str, tmp_path: Path) -> None:
    texts = rows(["1", "2"], ["7", "8"], [1, 0])
    at = texts.column_names.index(column)
    numbers = texts.set_column(at, column, texts[column].cast(pa.int64()))
    wanted = settings(tmp_path, [texts, numbers])
    with pytest.raises(UserError) as caught:
        run(wanted)
    assert str(caught.value) == (
        f"{tmp_path}/impressions: files disagree on the type of ids in column '{column}' (int64 in "
        f"{tmp_path}/impressions/1.parquet, string in {tmp_path}/impressions/0.parquet)"
    )


@pytest.mark.parametrize("file", [rows(["u1", "u2"], ["i1", "i2"], [0, 0]), rows([], [], [])], ids=["none", "empty"])
@pytest.mark.parametrize("correction", ["inverse_propensity", "none"])
def test_where_nothing_was_taken_the_table_has_no_rows_and_prepare_reads_on(
    file: pa.Table, correction: str, tmp_path: Path
) -> None:
    wanted = settings(tmp_path, [file], feedback={"impressions": f"{tmp_path}/impressions", "correction": correction})
    said: list[str] = []
    done = run(wanted, said)
    assert (done.impressions, done.outcomes, done.effective, done.converged) == (file.num_rows, 0, 0.0, None)
    assert [line for line in said if "nothing was taken" in line] == [
        f"nothing was taken of {file.num_rows} usable impressions, so that no event comes of them; is "
        "feedback.outcome = 'outcome' the right column?"
    ]
    buckets.write_parquet(pa.table({"user_id": ["u1"], "item_id": ["i1"], "timestamp": [5]}), f"{tmp_path}/log.parquet")
    data = config.build({"data": {"interactions": f"{tmp_path}/log.parquet"}}).data
    units, user, item = _input_units(data, done.table, False)
    assert [unit["rows"] for unit in units] == [1] and user == item == pa.string()


def test_too_many_bad_rows_stop_it_though_nothing_was_taken(tmp_path: Path) -> None:
    wanted = settings(tmp_path, [rows(["u1", "u2"], ["i1", "i2"], [None, None])])
    with pytest.raises(UserError, match=r"of 2 impressions 2 are bad \(2 null_outcome\), more than"):
        run(wanted)
