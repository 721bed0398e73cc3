"""A published run as plain Parquet, read back by other readers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from staging import publish, rows
from typer.testing import CliRunner

from llmrec import cli, schema, storage
from llmrec.errors import UserError
from llmrec.tables import buckets, export, rankings

COLUMNS = ["user_id", "rank", "item_id", "score", "run_id"]


@pytest.fixture
def table(tmp_path: Path) -> str:
    return str(tmp_path / "rankings")


@pytest.fixture
def target(tmp_path: Path) -> str:
    return str(tmp_path / "out" / "export")


def exported(table: str, target: str, run_id: str | None = None, overwrite: bool = False) -> export.Exported:
    return export.export(rankings.snapshot(table, run_id), target, overwrite)


def in_rows(found: pa.Table) -> list[tuple]:
    return sorted(zip(*(found[c].to_pylist() for c in COLUMNS), strict=True))


def seen_by_readers(target: str) -> list[list[tuple]]:
    """What DuckDB and polars read: the files that the manifest names, and the folder as Hive partitions."""
    made = json.loads(Path(target, "_manifest.json").read_text())
    files = [f"{target}/{f['path']}" for f in made["files"]]
    listed = ", ".join(COLUMNS)
    named = duckdb.sql(f"SELECT {listed} FROM read_parquet({files}, hive_partitioning = true)")
    folder = duckdb.sql(f"SELECT {listed} FROM read_parquet('{target}/{made['folder']}/*/*.parquet')")
    hive = pl.read_parquet(f"{target}/{made['folder']}", hive_partitioning=True)
    plain = pl.read_parquet(files)
    return [sorted(found.fetchall()) for found in (named, folder)] + [
        sorted(found.select(COLUMNS).rows()) for found in (hive, plain)
    ]


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_other_readers_see_the_rows_of_the_run(table: str, target: str, kind: pa.DataType) -> None:
    users = list(range(30)) if kind == pa.int64() else [f"zoë'{i}" for i in range(30)]
    publish(table, "r1", users, kind)
    done = exported(table, target)
    assert (done.run_id, done.files, done.rows, done.new) == ("r1", 4, 90, True)
    wanted = in_rows(rows("r1", users, kind))
    assert seen_by_readers(target) == [wanted] * 4
    # A user lies in the bucket that the partition says, and every file has the columns and types of the table.
    found = pl.read_parquet(target + "/r1-v0", hive_partitioning=True)
    assert found["bucket"].to_list() == buckets.bucket_of(found.to_arrow()["user_id"], 4).tolist()
    for file in Path(target).rglob("*.parquet"):
        assert pq.read_schema(file).equals(schema.rankings(kind, pa.int64()))
        assert in_rows(pq.read_table(file, partitioning=None)) == [
            tuple(row[c] for c in COLUMNS) for row in pq.read_table(file, partitioning=None).to_pylist()
        ]


def test_the_manifest_says_what_is_there(table: str, target: str) -> None:
    publish(table, "r1", range(30), count=7)
    publish(table, "r2", [1], count=7)
    done = exported(table, target, "r1")
    made = export.manifest(target)
    assert (made["run_id"], made["version"], made["table"], made["buckets"], made["rows"]) == ("r1", 0, table, 7, 90)
    on_disk = {str(f.relative_to(target)): f.read_bytes() for f in Path(target).rglob("*.parquet")}
    assert {f["path"] for f in made["files"]} == set(on_disk)
    for file in made["files"]:
        data = on_disk[file["path"]]
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert file["rows"] == pq.read_metadata(f"{target}/{file['path']}").num_rows
    assert done.bytes == sum(map(len, on_disk.values())) and done.files == len(on_disk)


def test_the_manifest_comes_last_and_a_cut_off_export_is_taken_up(
    table: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(table, "r1", range(30))
    with monkeypatch.context() as patched:
        patched.setattr(export, "_write", cut_off_at(2))
        with pytest.raises(KeyboardInterrupt):
            exported(table, target)
    assert any(Path(target).rglob("*.parquet")) and not Path(target, "_manifest.json").exists()
    assert exported(table, target).new
    assert seen_by_readers(target) == [in_rows(rows("r1", range(30)))] * 4


def cut_off_at(bucket: int) -> Any:
    write = export._write

    def interrupted(*arguments: Any) -> Any:
        if arguments[-1] == bucket:
            raise KeyboardInterrupt
        return write(*arguments)

    return interrupted


def test_an_export_of_another_run_is_replaced_only_if_asked(
    table: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {run_id: in_rows(rows(run_id, users)) for run_id, users in (("r1", range(30)), ("r2", range(9, 40)))}
    publish(table, "r1", range(30))
    assert exported(table, target).new
    before = Path(target, "_manifest.json").read_bytes()
    assert not exported(table, target).new
    publish(table, "r2", range(9, 40))
    with pytest.raises(UserError, match="holds the export r1-v0; replace it by r2-v1 with --overwrite"):
        exported(table, target)
    with monkeypatch.context() as patched:
        patched.setattr(export, "_write", cut_off_at(2))
        with pytest.raises(KeyboardInterrupt):
            exported(table, target, overwrite=True)
    # Half of the next run lies there: whoever reads now reads the run before, whole.
    assert Path(target, "_manifest.json").read_bytes() == before
    assert seen_by_readers(target) == [wanted["r1"]] * 4
    assert exported(table, target, overwrite=True).new
    assert seen_by_readers(target) == [wanted["r2"]] * 4
    # A reader who read the manifest just before the swap finds all of its files.
    assert read_by(target, before) == wanted["r1"]


def read_by(target: str, manifest: bytes) -> list[tuple]:
    files = [f"{target}/{f['path']}" for f in json.loads(manifest)["files"]]
    return sorted(pl.read_parquet(files).select(COLUMNS).rows())


def test_two_exports_are_kept_and_the_third_deletes_the_first(table: str, target: str) -> None:
    def folders() -> set[str]:
        return {p.name for p in Path(target).iterdir() if p.is_dir() and any(p.rglob("*.parquet"))}

    for run_id, left in (("r1", {"r1-v0"}), ("r2", {"r1-v0", "r2-v1"}), ("r3", {"r2-v1", "r3-v2"})):
        publish(table, run_id, range(9))
        exported(table, target, overwrite=True)
        assert folders() == left
    exported(table, target, "r2", overwrite=True)  # back to the one before
    assert folders() == {"r2-v1", "r3-v2"} and export.manifest(target)["previous"] == "r3-v2"
    publish(table, "r2", range(20, 30))  # published again: another version, another folder
    exported(table, target, overwrite=True)
    assert folders() == {"r2-v1", "r2-v3"}
    assert seen_by_readers(target) == [in_rows(rows("r2", range(20, 30)))] * 4


def test_an_export_that_lost_a_file_is_mended(table: str, target: str) -> None:
    publish(table, "r1", range(30))
    exported(table, target)
    Path(target, "r1-v0", "bucket=00001", "part.parquet").unlink()
    assert exported(table, target).new
    assert seen_by_readers(target) == [in_rows(rows("r1", range(30)))] * 4


def test_files_of_someone_else_are_left_alone(table: str, target: str) -> None:
    publish(table, "r1", [1])
    storage.write_bytes(target + "/notes.txt", b"mine")
    with pytest.raises(UserError, match=r"holds files that are no export \(notes.txt\); choose another target"):
        exported(table, target, overwrite=True)
    assert [p.name for p in Path(target).iterdir()] == ["notes.txt"]
    storage.delete(target + "/notes.txt")
    storage.write_bytes(target + "/_manifest.json", b"[1]")
    with pytest.raises(UserError, match="not the manifest of an export"):
        exported(table, target, overwrite=True)
    for inside in (table, table + "/export"):
        with pytest.raises(UserError, match="lies in the table that is exported"):
            exported(table, inside, overwrite=True)


def test_a_run_without_rows(table: str, target: str) -> None:
    publish(table, "r1", [1])
    publish(table, "r2", [])
    assert (exported(table, target).files, export.manifest(target)["files"]) == (0, [])


def test_export_to_the_object_store(store: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))
    root, target = "s3://llmrec-test/export", "s3://llmrec-test/exported"
    publish(root + "/rankings", "r1", range(30))
    publish(root + "/rankings", "r2", range(9))

    def called(*arguments: str) -> Any:
        return CliRunner().invoke(cli.app, ["export", target, "--root", root, "--json", *arguments])

    assert json.loads(called("--run", "r1").stdout)["rows"] == 90
    refused = called()
    assert isinstance(refused.exception, UserError) and "r1-v0" in str(refused.exception)
    for _ in range(2):
        assert json.loads(called("--overwrite").stdout)["run_id"] == "r2"
    options = {"aws_endpoint_url": store.endpoint, "aws_allow_http": "true"}
    made = json.loads(storage.read_bytes(target + "/_manifest.json"))
    files = [f"{target}/{f['path']}" for f in made["files"]]
    for source in (files, f"{target}/{made['folder']}/"):
        found = pl.read_parquet(source, storage_options=options, hive_partitioning=not isinstance(source, list))
        assert sorted(found.select(COLUMNS).rows()) == in_rows(rows("r2", range(9)))
    publish(root + "/rankings", "r3", [1])
    assert json.loads(called("--overwrite").stdout)["run_id"] == "r3"
    assert {uri.split("/")[4] for uri, _ in storage.list_files(target)} == {"_manifest.json", "r2-v1", "r3-v2"}
