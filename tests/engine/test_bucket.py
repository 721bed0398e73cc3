"""Candidates in any layout end in the bucket of their user's hash, in their order, or in one clear line."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from polars.testing import assert_frame_equal

from llmrec import config, schema, storage
from llmrec.engine import bucket, stages
from llmrec.engine.session import user_error_in
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.tables import buckets, requests

S3 = "s3://llmrec-test/bring"
SKEWED = 100_000
MINE = "mine"
ABOUT = pa.struct({"shelf": pa.int64(), "why": pa.string()})


def quietly(message: str) -> None:
    """A `say` for stages."""


def settings(root: str, source: str = "") -> config.Config:
    return config.build({"root": root, "bucket": {"input": source or storage.join(root, "in"), "name": MINE}})


def prepared(root: str, user: pa.DataType, item: pa.DataType, n: int) -> None:
    """What the job needs of prepare: histories in n buckets, and its summary."""
    layout = Layout(root)
    storage.delete(layout.histories)
    for b in range(n):
        buckets.write_parquet(schema.histories(user, item).empty_table(), buckets.bucket_file(layout.histories, b))
    storage.write_json(layout.summary("prepare"), {})


def scatter(rows: list[pa.Table], where: str, rng: np.random.Generator) -> None:
    """Tables as files in folders, their names in another order than they are given, row groups of any size."""
    names = ["b/1.parquet", "a/z/part-00.parquet", "part-10.parquet", "part-2.parquet", "b/0.x.parquet", "c.parquet"]
    fs, path = storage.filesystem(where)
    for name, table in zip(names, rows, strict=True):
        fs.create_dir(f"{path}/{name}".rsplit("/", 1)[0])
        pq.write_table(table, f"{path}/{name}", filesystem=fs, row_group_size=int(rng.integers(40, 9000)))
    storage.write_bytes(storage.join(where, "_SUCCESS"), b"")
    storage.write_bytes(storage.join(where, "_temporary", "half.parquet"), b"PAR1")


def long_form(rng: np.random.Generator, text: bool) -> list[pa.Table]:
    """Six tables whose users overlap, one user in all of them, with other types and columns from table to table."""
    tables = []
    for i, n in enumerate([3000, 1, 0, 4000, 700, 2500]):
        users = [None if u == 7 and i == 3 else f"user {u}" if text else int(u) for u in rng.zipf(1.3, n) % 400]
        items = rng.integers(0, 5000, n)
        table = pa.table({
            "item_id": [f"i{item}" for item in items] if text else pa.array(items, pa.int32() if i % 2 else pa.int64()),
            "user_id": pa.array(users, pa.string() if text else pa.int64()),
            "shown": pa.array(rng.integers(0, 10**9, n), pa.timestamp("s")),
            "about": pa.array([{"shelf": int(i), "why": f"{i}"} for i in items], ABOUT),
        })  # fmt: skip
        if i != 4:
            kind = pa.float32() if i % 2 else pa.float64()
            table = table.append_column("recall_score", pa.array(rng.random(n), kind))
        if text and i % 2:
            table = table.set_column(1, "user_id", table["user_id"].dictionary_encode())
        elif text:
            table = table.set_column(1, "user_id", table["user_id"].cast(pa.large_string()))
        tables.append(table)
    return tables


def list_form(rng: np.random.Generator, text: bool) -> list[pa.Table]:
    """Six tables with lists of 0 to 20 candidates, a user often in several rows; one table has no sources."""
    tables = []
    for i, n in enumerate([300, 1, 0, 400, 70, 250]):
        users = [None if u == 7 and i == 3 else f"user {u}" if text else int(u) for u in rng.zipf(1.3, n) % 100]
        lengths = rng.integers(0, 20, n)
        item = pa.list_(pa.string()) if text else (pa.large_list if i % 2 else pa.list_)(pa.int32())
        lists = [[f"i{x}" if text else int(x) for x in rng.integers(0, 5000, k)] for k in lengths]
        columns = {
            "user_id": pa.array(users, pa.string() if text else pa.int64()),
            "recall_scores": pa.array([rng.random(k).tolist() for k in lengths], pa.list_(pa.float64())),
            "item_ids": pa.array(lists, item),
            "shelf": pa.array([rng.integers(0, 9, k).tolist() for k in lengths], pa.list_(pa.int16())),
        }
        if i != 4:
            columns["sources"] = pa.array([[f"s{i}"] * k for k in lengths], pa.list_(pa.string()))
        if i == 1:
            columns["recall_scores"] = pa.nulls(n)  # as a column of None alone is written
        tables.append(pa.table(columns))
    return tables


def read_in_order(where: str) -> pl.DataFrame:
    """All rows of the input by polars, files by name; a column that a file lacks is null."""
    frames = [
        pl.from_arrow(pq.read_table(uri.removeprefix("s3://"), filesystem=storage.filesystem(where)[0]))
        for uri, _ in storage.list_files(where, ".parquet")
        if "_temporary" not in uri
    ]
    casts = pl.col("user_id").cast(pl.String if frames[0]["user_id"].dtype in (pl.String, pl.Categorical) else pl.Int64)
    return pl.concat([f.with_columns(casts) for f in frames if isinstance(f, pl.DataFrame)], how="diagonal_relaxed")


def bucket_by_xxhash(user: Any, n: int) -> int:
    return int(xxhash.xxh64(str(user).encode()).intdigest() % n)


def read_buckets(root: str) -> dict[int, pl.DataFrame]:
    found = buckets.bucket_files(Layout(root).candidates(MINE))
    return {b: pl.DataFrame(pl.from_arrow(buckets.read_parquet(uri))) for b, uri in found.items()}


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("where", "text"), [("s3", False), ("local", True)])
def test_long_form_in_any_layout_becomes_whole_users_in_their_order(where: str, text: bool, tmp_path: Path) -> None:
    root = f"{S3}/long" if where == "s3" else str(tmp_path)
    rng = np.random.default_rng(text)
    tables = long_form(rng, text)
    if not text:  # one user with very many candidates among small ones
        many = tables[3].take(rng.integers(0, tables[3].num_rows, SKEWED))
        many = many.set_column(1, "user_id", pa.array([77_777] * SKEWED))
        tables[3] = pa.concat_tables([tables[3], many]).take(rng.permutation(tables[3].num_rows + SKEWED))
    scatter(tables, f"{root}/in", rng)
    prepared(root, *([pa.string()] * 2 if text else [pa.int64()] * 2), n=5)
    done = stages.run("bucket", settings(root), quietly)

    every = read_in_order(f"{root}/in")
    rows = every.filter(pl.col("user_id").is_not_null())
    found = read_buckets(root)
    assert set(found) == set(range(5))
    for b, frame in found.items():
        expected = rows.filter(pl.col("user_id").map_elements(lambda u: bucket_by_xxhash(u, 5), pl.Int64) == b)
        expected = expected.sort("user_id", maintain_order=True)
        assert_frame_equal(frame, expected, check_column_order=False)
    per_user = rows["user_id"].value_counts()["count"]
    assert (done["rows_in"], done["pairs"], done["users"]) == (len(every), len(rows), len(per_user))
    assert (done["largest_user"], done["buckets"], done["form"]) == (per_user.max(), 5, "long")
    assert done["largest_user"] == SKEWED or text
    assert done["bytes_out"] == sum(size for _, size in storage.list_files(done["table"]))
    assert done["next"].endswith(f"--score.candidates {root}/tables/candidates/mine")

    nulls = every.filter(pl.col("user_id").is_null())
    assert done["set_aside"] == {"null_id": len(nulls)} and len(nulls)
    aside = buckets.read_parquet(done["quarantine"])
    assert aside.schema == schema.QUARANTINE
    assert aside["detail"].to_pylist() == [f"item={i}" for i in nulls["item_id"]]
    assert set(aside["source_file"].to_pylist()) == {f"{root}/in/part-2.parquet"}
    assert storage.list_files(Layout(root).scratch("")) == []


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("where", "text"), [("local", False), ("s3", True)])
def test_list_form_stays_and_a_users_rows_become_one(where: str, text: bool, tmp_path: Path) -> None:
    root = f"{S3}/list" if where == "s3" else str(tmp_path)
    rng = np.random.default_rng(text)
    scatter(list_form(rng, text), f"{root}/in", rng)
    prepared(root, *([pa.string()] * 2 if text else [pa.int64()] * 2), n=4)
    done = stages.run("bucket", settings(root), quietly)

    every = read_in_order(f"{root}/in")
    expected: dict[Any, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for row in every.filter(pl.col("user_id").is_not_null()).iter_rows(named=True):
        for column in ("item_ids", "recall_scores", "sources", "shelf"):
            expected[row["user_id"]][column] += [None] * len(row["item_ids"]) if row[column] is None else row[column]
    found = {
        row["user_id"]: (b, {name: v for name, v in row.items() if name != "user_id"})
        for b, frame in read_buckets(root).items()
        for row in frame.iter_rows(named=True)
    }
    assert found == {user: (bucket_by_xxhash(user, 4), dict(lists)) for user, lists in expected.items()}
    lengths = [len(lists["item_ids"]) for lists in expected.values()]
    assert (done["users"], done["pairs"], done["largest_user"]) == (len(lengths), sum(lengths), max(lengths))
    nulls = every.filter(pl.col("user_id").is_null())["item_ids"].to_list()
    aside = buckets.read_parquet(done["quarantine"])["detail"].to_pylist()
    assert aside == [f"items={','.join(map(str, items))}" for items in nulls] and aside


@pytest.mark.usefixtures("cluster")
def test_bytes_do_not_depend_on_the_order_or_the_number_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    root, rng = f"{S3}/again", np.random.default_rng(5)
    scatter(long_form(rng, text=False), f"{root}/in", rng)
    prepared(root, pa.int64(), pa.int64(), n=3)
    first = stages.run("bucket", settings(root), quietly)
    before = storage.manifest(first["table"])
    assert len(buckets.bucket_files(first["table"])) == 3

    # One task at a time, the last part first, a task a row group, many shards a task.
    each = bucket.each
    monkeypatch.setattr(bucket, "each", lambda units, *rest: each(units[::-1], *rest))
    monkeypatch.setattr(bucket, "UNIT_GROUPS", 1)
    monkeypatch.setattr(bucket, "SLICE_BYTES", 10_000)
    monkeypatch.setattr(bucket, "BATCH_ROWS", 300)
    options = ray.data.DataContext.get_current().execution_options
    monkeypatch.setattr(options, "resource_limits", ray.data.ExecutionResources.for_limits(cpu=1))
    second = stages.run("bucket", settings(root), quietly)
    assert storage.manifest(first["table"]) == before
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


@pytest.mark.usefixtures("cluster")
def test_what_a_cut_off_job_leaves_is_no_table_until_it_has_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path)
    table = Layout(root).candidates(MINE)
    few = pa.table({"user_id": [1, 2, 1], "item_id": [5, 6, 7]})
    buckets.write_parquet(few, f"{root}/in/few.parquet")
    prepared(root, pa.int64(), pa.int64(), n=12)
    stages.run("bucket", settings(root), quietly)
    found = read_buckets(root)
    assert set(found) == set(range(12)) and sum(map(len, found.values())) == 3  # empty buckets have a file too
    assert {tuple(frame.schema.items()) for frame in found.values()} == {
        (("user_id", pl.Int64()), ("item_id", pl.Int64()))
    }

    prepared(root, pa.int64(), pa.int64(), n=3)
    right = bucket.reporting

    def cut_off(rows: Iterator[dict[str, Any]], total: int, say: Any, what: str, *units: str) -> list[dict[str, Any]]:
        if "written" not in what:
            return right(rows, total, say, what, *units)
        next(rows)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(bucket, "reporting", cut_off)
        stages.run("bucket", settings(root), quietly)
    assert not storage.exists(Layout(root).summary("bucket"))
    with pytest.raises(UserError, match="half-written"):
        buckets.bucket_files(table)
    scored = config.build({"root": root, "score": {"candidates": table}})
    assert "half-written" in why("score", scored)

    stages.run("bucket", settings(root), quietly)
    found = read_buckets(root)
    assert set(found) == set(range(3))  # the twelve of before are gone
    assert {b: sorted(frame["item_id"]) for b, frame in found.items() if len(frame)} == {
        b: sorted(i for u, i in [(1, 5), (2, 6), (1, 7)] if bucket_by_xxhash(u, 3) == b)
        for b in {bucket_by_xxhash(u, 3) for u in (1, 2)}
    }
    names = {Path(uri).name for uri, _ in storage.list_files(table)}
    assert names == {f"bucket-{b:05d}.parquet" for b in range(3)}


@pytest.mark.usefixtures("cluster")
def test_histories_and_brought_candidates_join_bucket_by_bucket() -> None:
    root, rng = f"{S3}/joined", np.random.default_rng(2)
    users, items = [f"u{u}" for u in range(40)], [f"i{i}" for i in range(30)]
    had = {u: rng.choice(items, 4, replace=False).tolist() for u in users}
    layout = Layout(root)
    prepared(root, pa.string(), pa.string(), n=4)
    for b in range(4):
        mine = {u: i for u, i in had.items() if bucket_by_xxhash(u, 4) == b}
        lists = pa.table({"user_id": list(mine), "item_ids": list(mine.values())})
        buckets.write_parquet(lists, buckets.bucket_file(layout.histories, b))
    pairs = [(u, i) for u in users for i in rng.choice(items, 12, replace=False)]
    mine = pa.table({"user_id": [u for u, _ in pairs], "item_id": [i for _, i in pairs]})
    buckets.write_parquet(mine.take(rng.permutation(len(pairs))), f"{root}/in/mine.parquet")
    done = stages.run("bucket", config.build({"root": root, "bucket": {"input": f"{root}/in/mine.parquet"}}), quietly)
    assert done["table"] == layout.candidates("brought")
    histories, ids = buckets.bucket_files(layout.histories), pa.array(sorted(items))
    rules = requests.Rules(ids, np.zeros(len(ids), bool), exclude_seen=True, limit=100)
    order: dict[str, list[str]] = defaultdict(list)
    for row in buckets.read_parquet(f"{root}/in").to_pylist():
        order[row["user_id"]].append(row["item_id"])
    left = {}
    for b, uri in buckets.bucket_files(done["table"]).items():
        found = requests.read_candidates(uri)
        work = requests.build(buckets.read_parquet(histories[b]), found, rules, uri)
        left |= {u.as_py(): [ids[int(r)].as_py() for r in work.candidates[n]] for n, u in enumerate(work.users)}
    assert left == {u: [i for i in order[u] if i not in had[u]] for u in users}


def why(stage: str, wanted: config.Config) -> str:
    """The one line that a stage fails with; no exception is kept, whose frames would hold the failed run."""
    with pytest.raises(Exception) as caught:
        stages.run(stage, wanted, quietly)
    told = user_error_in(caught.value)
    assert isinstance(told, UserError), caught.value
    assert "\n" not in str(told)
    return str(told)


GOOD = pa.table({"user_id": [1, 2, 3], "item_id": [4, 5, 6], "recall_score": [0.1, 0.2, 0.3]})
LISTS = pa.table({"user_id": [1, 2], "item_ids": [[4, 5], [6]], "sources": [["a", "b"], ["c"]]})
WHOLE = buckets.parquet_bytes(pa.table({"user_id": np.arange(20_000), "item_id": np.arange(20_000)}))


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["in: no Parquet files there"]),
        ({"a.txt": b"user_id"}, ["in: no Parquet files there"]),
        ({"a": GOOD.slice(0, 0), "b": GOOD.slice(0, 0)}, ["in: the table is empty"]),
        ({"a": GOOD, "b": GOOD.drop_columns("user_id")}, ["b.parquet: column 'user_id' is missing (it has: item_id, "]),
        ({"a": GOOD.drop_columns("item_id")}, ["a.parquet: column 'item_id' (or 'item_ids', lists) is missing"]),
        ({"a": GOOD, "b": GOOD.set_column(0, "user_id", pa.array(["1", "2", "3"]))},
         ["b.parquet: column 'user_id' holds string ids, the prepared tables hold int64"]),
        ({"a": GOOD.set_column(1, "item_id", pa.array(["1", "2", "3"]))},
         ["a.parquet: column 'item_id' holds string ids, the prepared tables hold int64"]),
        ({"a": LISTS.set_column(1, "item_ids", pa.array([["x"], ["y"]]))}, ["'item_ids' holds string ids"]),
        ({"a": GOOD.set_column(0, "user_id", pa.array([0.5, 1.5, 2.5]))}, ["'user_id' has type double", "integers or"]),
        ({"a": GOOD.set_column(0, "user_id", pa.array([1, 2, 2**63], pa.uint64()))},
         ["a.parquet: column 'user_id' does not fit int64 (Integer value 9223372036854775808 not in range"]),
        ({"a": GOOD, "b": GOOD.set_column(2, "recall_score", pa.array(["x", "y", "z"]))},
         ["b.parquet: its columns do not fit those of ", "a.parquet (Unable to merge: Field recall_score"]),
        ({"a": GOOD.set_column(2, "recall_score", pa.array(["x", "y", "z"]))}, ["'recall_score' has type string"]),
        ({"a": GOOD, "b": LISTS}, ["b.parquet: ", "'item_ids'", "a.parquet is in the other form"]),
        ({"a": LISTS.append_column("day", pa.array([1, 2]))}, ["a.parquet: column 'day' has type int64", "drop it"]),
        ({"a": LISTS, "b": LISTS.set_column(2, "sources", pa.array([["a", "b"], ["c", "d"]]))},
         ["b.parquet: lists in 'sources' differ in length from those in 'item_ids'"]),
        ({"a": GOOD.set_column(0, "user_id", pa.nulls(3, pa.int64()))}, ["in: none of its 3 rows has a user_id"]),
        ({"a": GOOD, "b": WHOLE[:-50]}, ["b.parquet: not a readable Parquet file"]),
        ({"a": GOOD, "b": WHOLE[:9000] + bytes(9000) + WHOLE[18000:]}, ["b.parquet: not a readable Parquet file"]),
        ({"a": GOOD, "_delta_log/0.json": b"{}"}, ["in: a Delta table"]),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_line_and_the_table_of_before_stays(
    files: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    root = str(tmp_path)
    prepared(root, pa.int64(), pa.int64(), n=2)
    table = Layout(root).candidates(MINE)
    for b in range(2):
        buckets.write_parquet(GOOD.slice(b, 1), buckets.bucket_file(table, b))
    before = storage.manifest(table)
    (tmp_path / "in").mkdir()
    for name, content in files.items():
        if isinstance(content, pa.Table):
            buckets.write_parquet(content, f"{root}/in/{name}.parquet")
        else:
            storage.write_bytes(f"{root}/in/{name}" + ("" if "." in name else ".parquet"), content)
    told = why("bucket", settings(root))
    assert all(word in told for word in words), told
    assert storage.manifest(table) == before and set(buckets.bucket_files(table)) == {0, 1}


def test_what_is_asked_of_the_job_has_to_make_sense(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert "prepare has not finished" in why("bucket", settings(root))
    prepared(root, pa.int64(), pa.int64(), n=2)
    assert "bucket.input is not set" in why("bucket", config.build({"root": root}))
    assert "no Parquet files there" in why("bucket", settings(root, f"{root}/nowhere"))
    for place in (root, f"{root}/tables/candidates/mine", f"{root}/tables/candidates/mine/bucket-00000.parquet"):
        assert f"the job replaces {root}/tables/candidates/mine" in why("bucket", settings(root, place))


@pytest.mark.usefixtures("cluster")
def test_a_bucket_beyond_memory_is_told_before_anything_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path)
    prepared(root, pa.int64(), pa.int64(), n=2)
    storage.write_bytes(f"{root}/in/a.parquet", WHOLE)
    monkeypatch.setattr(bucket, "BUCKET_BYTES", 100_000)
    told = why("bucket", settings(root))
    assert "would take 0 MB of memory, more than 0; run prepare with data.buckets above 2" in told
    assert not storage.exists(Layout(root).candidates(MINE))
