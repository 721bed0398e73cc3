from __future__ import annotations

from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from llmrec import schema, storage
from llmrec.errors import UserError
from llmrec.tables import buckets, rankings
from llmrec.tables.rankings import StagedFile

BUCKETS = 4
COLUMNS = ["user_id", "rank", "item_id", "score"]
INTEGER = pa.int64()


def rows(run_id: str, users: list, kind: pa.DataType) -> pa.Table:
    made = [(u, r + 1, r, 1.0 / (r + 1)) for u in users for r in range(3)]
    n = len(made)
    columns = [[row[i] for row in made] for i in range(4)] + [[None] * n, [""] * n, ["m"] * n, [run_id] * n]
    wanted = schema.rankings(kind, pa.int64())
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, wanted, strict=True)], schema=wanted)


def stage(table: str, run_id: str, users: list, kind: pa.DataType = INTEGER) -> list[StagedFile]:
    data = rows(run_id, users, kind)
    bucket = buckets.bucket_of(data["user_id"], BUCKETS)
    files = []
    for b in sorted(set(bucket.tolist())):
        part, path = data.filter(pa.array(bucket == b)), rankings.staged_path(run_id, b)
        size = buckets.write_parquet(part, storage.join(table, path))
        files.append(StagedFile(b, path, size, part.num_rows))
    return files


def publish(table: str, run_id: str, users: list, kind: pa.DataType = INTEGER) -> rankings.Published:
    files = stage(table, run_id, users, kind)
    return rankings.publish(table, files, BUCKETS, schema.rankings(kind, pa.int64()), run_id)


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
        rankings.publish(table, late, BUCKETS, schema.rankings(pa.int64(), pa.int64()), "r3")
    assert "\n" not in str(caught.value)
    assert users_shown(table) == {2}
    assert rankings.publish(table, late, BUCKETS, schema.rankings(pa.int64(), pa.int64()), "r3").new
    assert users_shown(table) == {3}


def test_two_first_publishers_cannot_both_win(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(table, "r1", [1])
    late = stage(table, "r2", [2])
    monkeypatch.setattr(rankings, "opened", lambda table, version=None: None)
    with pytest.raises(UserError, match="another job changed the table while run r2"):
        rankings.publish(table, late, BUCKETS, schema.rankings(pa.int64(), pa.int64()), "r2")
    monkeypatch.undo()
    assert users_shown(table) == {1}


def test_a_table_of_someone_else_is_not_overwritten(table: str) -> None:
    pl.DataFrame({"user_id": [1]}).write_delta(table)
    with pytest.raises(UserError, match="was not made by llmrec"):
        publish(table, "r1", [1])
    assert pl.read_delta(table).to_dict(as_series=False) == {"user_id": [1]}
