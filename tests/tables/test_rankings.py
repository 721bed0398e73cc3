from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from staging import BUCKETS, commit, publish, rows, stage

from llmrec.errors import UserError
from llmrec.tables import buckets, rankings

COLUMNS = ["user_id", "rank", "item_id", "score"]


def triples(table: pa.Table) -> list[tuple]:
    return sorted(zip(*(table[c].to_pylist() for c in COLUMNS), strict=True))


def users_shown(table: str) -> set:
    return set(rankings.read(table)["user_id"].to_pylist())


@pytest.fixture
def table(tmp_path: Path) -> str:
    return str(tmp_path / "rankings")


def test_staged_files_are_unseen_until_published(table: str) -> None:
    stage(table, "r1", [1, 2])
    assert rankings.opened(table) is None
    with pytest.raises(UserError, match="no rankings are published there"):
        rankings.read(table)


def test_a_second_run_replaces_the_first_which_stays_readable(table: str) -> None:
    one = publish(table, "r1", [1, 2, 3])
    two = publish(table, "r2", [2, 3, 4, 5])
    assert (one.version, one.rows, one.new) == (0, 9, True)
    assert (two.version, two.rows, two.new) == (1, 12, True)
    assert users_shown(table) == {2, 3, 4, 5}
    assert set(rankings.read(table)["run_id"].to_pylist()) == {"r2"}
    old = DeltaTable(table, version=0).to_pyarrow_dataset().to_table()
    assert triples(old) == triples(rows("r1", [1, 2, 3], pa.int64()))
    found = rankings.opened(table)
    assert found is not None and rankings.shown(found) == {"run_id": "r2", "buckets": str(BUCKETS)}


def test_publishing_a_run_again_changes_nothing(table: str) -> None:
    publish(table, "r1", [1, 2])
    again = publish(table, "r1", [1, 2])
    assert (again.version, again.new) == (0, False)
    assert rankings.read(table).num_rows == 6
    assert len(DeltaTable(table).history()) == 1


def test_an_earlier_run_can_be_shown_again(table: str) -> None:
    publish(table, "r1", [1, 2])
    publish(table, "r2", [3])
    back = publish(table, "r1", [1, 2])
    assert (back.version, back.new) == (2, True)
    assert users_shown(table) == {1, 2}


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_other_readers_see_the_same_rows(table: str, kind: pa.DataType) -> None:
    users = [3, 1, 2, 14] if kind == pa.int64() else ["c", "a", "zoë", "b'c"]
    publish(table, "r1", users, kind)
    wanted = triples(rows("r1", users, kind))
    assert triples(rankings.read(table)) == wanted
    assert triples(pl.read_delta(table).to_arrow()) == wanted
    # polars takes the values of partitions from the files' paths, whatever Delta's log says.
    hashed = dict(zip(users, buckets.bucket_of(pa.array(users, kind), BUCKETS).tolist(), strict=True))
    assert dict(pl.read_delta(table).select("user_id", "bucket").iter_rows()) == hashed
    of_one = pl.scan_delta(table).filter(pl.col("bucket") == hashed[users[0]]).collect()
    assert set(of_one["user_id"]) == {user for user in users if hashed[user] == hashed[users[0]]}
    dataset = DeltaTable(table).to_pyarrow_dataset()
    assert triples(dataset.to_table()) == wanted
    assert sorted(duckdb.sql(f"SELECT {', '.join(COLUMNS)} FROM dataset").fetchall()) == wanted
    direct = [pa.parquet.read_table(uri, partitioning=None) for uri in DeltaTable(table).file_uris()]
    assert triples(pa.concat_tables(direct)) == wanted


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_one_users_rows_by_rank(table: str, kind: pa.DataType) -> None:
    users = list(range(30)) if kind == pa.int64() else [f"u{i}" for i in range(30)]
    publish(table, "r1", users, kind)
    for user in users[:5]:
        assert triples(rankings.read(table, user)) == triples(rows("r1", [user], kind))
        assert rankings.read(table, str(user))["rank"].to_pylist() == [1, 2, 3]
    assert rankings.read(table, 999 if kind == pa.int64() else "nobody").num_rows == 0


def test_one_bucket(table: str) -> None:
    publish(table, "r1", list(range(30)))
    parts = [rankings.read_bucket(table, b) for b in range(BUCKETS)]
    for bucket, part in enumerate(parts):
        assert set(buckets.bucket_of(part["user_id"], BUCKETS).tolist()) == {bucket}
    assert sum(p.num_rows for p in parts) == 90


@pytest.mark.parametrize("user", ["abc", "1.5", str(2**70)])
def test_an_id_of_another_type_is_named(table: str, user: int | str) -> None:
    publish(table, "r1", [1])
    with pytest.raises(UserError, match=f"user '{user}': ids in .* are int64"):
        rankings.read(table, user)


def test_an_integer_beyond_int64_is_named(table: str) -> None:
    publish(table, "r1", [1])
    with pytest.raises(UserError, match=r"ids in .* are int64"):
        rankings.read(table, 2**70)


def test_a_run_without_rows_shows_nothing(table: str) -> None:
    publish(table, "r1", [1])
    publish(table, "r2", [])
    assert rankings.read(table).num_rows == 0


def stale_handle(monkeypatch: pytest.MonkeyPatch, handle: DeltaTable | None) -> None:
    real, calls = rankings.opened, iter([handle])
    monkeypatch.setattr(rankings, "opened", lambda table, version=None: next(calls, None) or real(table, version))


def test_a_publisher_that_was_overtaken_is_refused(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(table, "r1", [1])
    handle = rankings.opened(table)
    publish(table, "r2", [2])
    late = stage(table, "r3", [3])
    stale_handle(monkeypatch, handle)
    with pytest.raises(
        UserError, match=r"another job changed the table while run r3 .* publish the run again"
    ) as caught:
        commit(table, "r3", late)
    assert "\n" not in str(caught.value)
    assert users_shown(table) == {2}
    assert commit(table, "r3", late).new
    assert users_shown(table) == {3}


def test_two_first_publishers_cannot_both_win(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(table, "r1", [1])
    late = stage(table, "r2", [2])
    monkeypatch.setattr(rankings, "opened", lambda table, version=None: None)
    with pytest.raises(UserError, match="another job changed the table while run r2"):
        commit(table, "r2", late)
    monkeypatch.undo()
    assert users_shown(table) == {1}


def test_a_table_of_someone_else_is_not_overwritten(table: str) -> None:
    pl.DataFrame({"user_id": [1]}).write_delta(table)
    with pytest.raises(UserError, match="was not made by llmrec"):
        publish(table, "r1", [1])
    assert pl.read_delta(table).to_dict(as_series=False) == {"user_id": [1]}


def test_an_earlier_run_is_read_by_its_id(table: str) -> None:
    users = {"r1": range(0, 20), "r2": range(10, 30), "r3": range(5)}
    for run_id, ids in users.items():
        publish(table, run_id, ids, count=3 if run_id == "r1" else BUCKETS)
    for run_id, ids in users.items():
        assert triples(rankings.read(table, run_id=run_id)) == triples(rows(run_id, ids))
    # One user's rows are looked up by the number of buckets of that run.
    for user in range(20):
        assert triples(rankings.read(table, user, run_id="r1")) == triples(rows("r1", [user]))
    assert rankings.read(table, 25, run_id="r1").num_rows == 0
    run = rankings.snapshot(table, "r1")
    assert (run.version, run.buckets) == (0, 3)
    parts = [rankings.rows(run, [b]) for b in range(3)]
    assert triples(pa.concat_tables(parts)) == triples(rows("r1", users["r1"]))


def test_a_run_that_never_was_published_is_named(table: str) -> None:
    publish(table, "r1", [1])
    stage(table, "r2", [1])
    with pytest.raises(UserError, match="run 'r2' was never published there; it shows run r1"):
        rankings.read(table, run_id="r2")


@pytest.mark.parametrize("lost", ["runs/r1", rankings.staged_path("r1", 1)])
def test_a_run_whose_files_are_gone_is_named(table: str, lost: str) -> None:
    publish(table, "r1", range(20))
    publish(table, "r2", range(20))
    opened = rankings.snapshot(table, "r1")
    gone = Path(table, lost)
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    for read in (
        lambda: rankings.read(table, run_id="r1"),
        lambda: rankings.read(table, 1, run_id="r1"),
        lambda: rankings.rows(opened),  # they went while someone was reading
    ):
        with pytest.raises(UserError, match="files of run 'r1' are gone") as caught:
            read()
        assert "\n" not in str(caught.value)
    assert users_shown(table) == set(range(20))
    assert [(r.run_id, r.files_there) for r in rankings.runs(table)] == [("r2", True), ("r1", False)]


def test_published_runs_newest_first(table: str) -> None:
    publish(table, "r1", [1, 2])
    publish(table, "r2", range(9), count=7)
    publish(table, "r3", [])
    publish(table, "r1", [1, 2])
    stage(table, "r4", [1])
    found = [(r.run_id, r.version, r.rows, r.buckets, r.files_there, r.shown) for r in rankings.runs(table)]
    assert found == [
        ("r1", 3, 6, BUCKETS, True, True), ("r3", 2, 0, BUCKETS, True, False), ("r2", 1, 27, 7, True, False),
    ]  # fmt: skip
    times = {h["version"]: h["timestamp"] for h in DeltaTable(table).history()}
    assert [round(r.time.timestamp() * 1000) for r in rankings.runs(table)] == [times[3], times[2], times[1]]


def test_versions_are_right_when_someone_publishes_meanwhile(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(table, "r1", [1])
    handle = rankings.opened(table)
    publish(table, "r2", [2])
    stale_handle(monkeypatch, handle)
    assert {r.run_id: r.version for r in rankings.runs(table)} == {"r2": 1, "r1": 0}
    stale_handle(monkeypatch, handle)
    run = rankings.snapshot(table)
    assert (run.run_id, run.version) == ("r2", 1)
    assert set(rankings.rows(run)["user_id"].to_pylist()) == {2}


def long_ago(folder: Path) -> None:
    for file in folder.rglob("*"):
        os.utime(file, (1e9, 1e9))


def test_a_vacuum_leaves_staged_files_alone_and_the_run_can_be_published(table: str) -> None:
    """Delta's own vacuum with its default retention. Only a full one deletes files that no commit named, and only those
    older than the retention."""
    publish(table, "r1", [1, 2])
    publish(table, "r2", [3])
    old, young = stage(table, "r3", range(20)), stage(table, "r4", range(20))
    long_ago(Path(table, "runs", "r3"))
    DeltaTable(table).vacuum(dry_run=False)
    assert triples(rankings.read(table, run_id="r1")) == triples(rows("r1", [1, 2]))
    assert commit(table, "r3", old).new and users_shown(table) == set(range(20))
    DeltaTable(table).vacuum(dry_run=False, full=True)
    assert commit(table, "r4", young).new and users_shown(table) == set(range(20))


def test_a_table_that_was_vacuumed_is_still_ours(table: str) -> None:
    """A vacuum that deleted something commits that it did."""
    publish(table, "r1", range(8))
    publish(table, "r2", range(8))
    stage(table, "stray", [1])
    long_ago(Path(table, "runs", "stray"))
    DeltaTable(table).vacuum(dry_run=False, full=True)
    assert [h["operation"] for h in DeltaTable(table).history(2)] == ["VACUUM END", "VACUUM START"]
    found = rankings.opened(table)
    assert found is not None and rankings.shown(found)["run_id"] == "r2"
    assert triples(rankings.read(table, 3)) == triples(rows("r2", [3]))
    assert [(r.run_id, r.version, r.shown) for r in rankings.runs(table)] == [("r2", 1, True), ("r1", 0, False)]
    assert commit(table, "r2", stage(table, "r2", range(8))).version == 1
    third = publish(table, "r3", [1])
    assert (third.version, third.new) == (4, True)


def at_the_same_time(
    publishers: list[Callable[[], rankings.Published]], monkeypatch: pytest.MonkeyPatch
) -> list[rankings.Published | str]:
    """Run publishers in threads, none of which commits before all have looked at the table; an error as its text."""
    everyone, seen, real = threading.Barrier(len(publishers)), threading.local(), rankings.opened

    def opened(table: str, version: int | None = None) -> DeltaTable | None:
        found = real(table, version)
        if not getattr(seen, "yes", False):
            seen.yes = True
            everyone.wait(timeout=60)
        return found

    def result(publisher: Callable[[], rankings.Published]) -> rankings.Published | str:
        try:
            return publisher()
        except UserError as error:
            return str(error)

    monkeypatch.setattr(rankings, "opened", opened)
    with ThreadPoolExecutor(len(publishers)) as pool:
        found = list(pool.map(result, publishers))
    monkeypatch.undo()
    return found


@pytest.mark.parametrize("published_before", [0, 1])
def test_of_two_runs_published_at_once_one_wins(
    published_before: int, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = f"s3://llmrec-test/two-runs-{published_before}/rankings"
    for i in range(published_before):
        publish(table, f"before{i}", [9])
    files = {run_id: stage(table, run_id, [i, i + 1]) for i, run_id in enumerate(("x", "y"))}
    found = at_the_same_time([lambda r=r: commit(table, r, files[r]) for r in files], monkeypatch)
    errors = [f for f in found if isinstance(f, str)]
    (winner,) = (f for f in found if isinstance(f, rankings.Published))
    (loser,) = {"x", "y"} - {winner.run_id}
    assert (winner.version, winner.new) == (published_before, True)
    assert len(errors) == 1 and "\n" not in errors[0]
    assert f"another job changed the table while run {loser} was being published" in errors[0]
    assert triples(rankings.read(table)) == triples(rows(winner.run_id, [0, 1] if winner.run_id == "x" else [1, 2]))
    assert len(DeltaTable(table, storage_options={"AWS_ALLOW_HTTP": "true"}).history()) == published_before + 1
    assert commit(table, loser, files[loser]).new


@pytest.mark.parametrize("published_before", [0, 1])
def test_one_run_published_twice_at_once_is_one_commit(
    published_before: int, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = f"s3://llmrec-test/one-run-{published_before}/rankings"
    for i in range(published_before):
        publish(table, f"before{i}", [9])
    files = stage(table, "x", [1, 2, 3])
    found = at_the_same_time([lambda: commit(table, "x", files)] * 3, monkeypatch)
    assert sorted((f.new, f.version, f.rows) for f in found if isinstance(f, rankings.Published)) == [
        (False, published_before, 9), (False, published_before, 9), (True, published_before, 9),
    ]  # fmt: skip
    assert triples(rankings.read(table)) == triples(rows("x", [1, 2, 3]))
    assert len(DeltaTable(table, storage_options={"AWS_ALLOW_HTTP": "true"}).history()) == published_before + 1
