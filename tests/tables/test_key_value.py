"""One row a user: as Parquet and JSON lines, read back by DuckDB and polars."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from staging import publish, rows
from typer.testing import CliRunner

from llmrec import cli
from llmrec.errors import UserError
from llmrec.schema import PROBABILITY
from llmrec.tables import export, key_value, rankings

LISTS = {"zoë'1": [3, 1, 2], 'say "hi"': [7], "b\\c": [9, 8]}


@pytest.fixture
def table(tmp_path: Path) -> str:
    return str(tmp_path / "rankings")


@pytest.fixture
def target(tmp_path: Path) -> str:
    return str(tmp_path / "out")


def exported(table: str, target: str, form: Any, overwrite: bool = False) -> export.Exported:
    return export.export(rankings.snapshot(table), target, overwrite, form)


def with_probability(found: pa.Table) -> pa.Table:
    at = found.schema.get_field_index(PROBABILITY)
    values = np.linspace(0.9, 0.1, found.num_rows).astype(np.float32)
    return found.set_column(at, found.schema.field(at), pa.array(values))


def wanted_lists() -> dict[str, list[tuple[int, float]]]:
    return {u: [(item, float(np.float32(1 / r))) for r, item in enumerate(of, 1)] for u, of in LISTS.items()}


def test_lists_of_a_run_as_parquet(table: str, target: str) -> None:
    publish(table, "r1", LISTS, pa.string())
    done = exported(table, target, "lists")
    assert (done.form, done.rows, done.new) == ("lists", 3, True)
    made = export.manifest(target)
    assert (made["form"], made["folder"], made["rows"]) == ("lists", "r1-v0-lists", 3)
    files = [f"{target}/{f['path']}" for f in made["files"]]
    polars = {row["user_id"]: row["items"] for row in pl.read_parquet(files).to_dicts()}
    found = duckdb.sql(f"SELECT user_id, items FROM read_parquet({files})").fetchall()
    for read in (polars, dict(found)):
        assert {u: [(i["item_id"], i["score"]) for i in items] for u, items in read.items()} == wanted_lists()
        assert {i["probability"] for items in read.values() for i in items} == {None}
    assert not exported(table, target, "lists").new


def test_lists_of_a_run_as_json_lines(table: str, target: str) -> None:
    publish(table, "r1", LISTS, pa.string())
    assert exported(table, target, "json_lines").rows == 3
    files = [f"{target}/{f['path']}" for f in export.manifest(target)["files"]]
    lines = [json.loads(line) for file in files for line in Path(file).read_text().splitlines()]
    found = {of["user_id"]: [(i["item_id"], i["score"]) for i in of["items"]] for of in lines}
    assert found == {u: [(i, pytest.approx(s, rel=1e-7)) for i, s in of] for u, of in wanted_lists().items()}
    assert {tuple(i) for of in lines for i in of["items"]} == {("item_id", "score")}  # no probability is known
    again = duckdb.sql(f"SELECT user_id, len(items) FROM read_json({files})").fetchall()
    assert dict(again) == {u: len(of) for u, of in LISTS.items()}


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_values_are_the_lines_without_the_user(kind: pa.DataType) -> None:
    users = [3, 1, 20] if kind == pa.int64() else list(LISTS)
    found = with_probability(rows("r1", {u: [5, 6] for u in users}, kind)).select(key_value.COLUMNS)
    ids, values = key_value.json_values(found)
    lines = [json.loads(line) for line in key_value.json_lines(found).decode().splitlines()]
    assert lines == [{"user_id": u, **json.loads(value)} for u, value in zip(ids, values, strict=True)]
    assert ids == users and all(" " not in value for value in values)
    told = [i["probability"] for line in lines for i in line["items"]]
    assert told == pytest.approx(found[PROBABILITY].to_pylist(), rel=1e-7)


def test_no_rows_are_no_lists() -> None:
    nothing = rows("r1", []).select(key_value.COLUMNS)
    assert key_value.lists(nothing).num_rows == 0 and key_value.json_lines(nothing) == b""
    assert key_value.json_values(nothing) == ([], [])


def test_another_form_replaces_only_if_asked(table: str, target: str) -> None:
    publish(table, "r1", range(9))
    exported(table, target, "rows")
    with pytest.raises(UserError, match="holds the export r1-v0; replace it by r1-v0-lists with --overwrite"):
        exported(table, target, "lists")
    exported(table, target, "lists", overwrite=True)
    assert export.manifest(target)["previous"] == "r1-v0"
    exported(table, target, "json_lines", overwrite=True)
    folders = {p.name for p in Path(target).iterdir() if p.is_dir() and any(p.rglob("part.*"))}
    assert folders == {"r1-v0-lists", "r1-v0-json_lines"}


def test_the_command(tmp_path: Path, table: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))

    def called(*arguments: str) -> Any:
        return CliRunner().invoke(cli.app, ["export", "--root", str(tmp_path), "--json", *arguments])

    missing = called(target)
    assert isinstance(missing.exception, UserError) and "no rankings are published there" in str(missing.exception)
    publish(table, "r1", range(9))
    assert json.loads(called(target, "--as", "lists").stdout)["rows"] == 9
    for arguments, part in (
        ((), "export.target is not set; give a local path"),
        ((target, "--as", "list"), "export.form = 'list': input should be 'rows', 'lists', 'json_lines' or 'redis'"),
        (("--as", "redis", target), "a target is for files"),
    ):
        refused = called(*arguments)
        assert isinstance(refused.exception, UserError) and part in str(refused.exception)
