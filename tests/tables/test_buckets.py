from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from llmrec.errors import UserError
from llmrec.tables import buckets

NAMES = ["a", "user-7", "Zoë", ""]


def test_user_hash_has_not_changed() -> None:
    assert buckets.user_hash(pa.array([0, 1, -5])).tolist() == [
        0x633457081244AFEC,
        0xB7B41276360564D4,
        0xB46B527273306370,
    ]
    assert buckets.user_hash(pa.array(["a", "Zoë"])).tolist() == [0xD24EC4F1A98C6E5B, 0x577DD6BEC83CA1D1]


def test_user_hash_is_xxhash_of_the_text() -> None:
    assert buckets.user_hash(pa.array(NAMES)).tolist() == [xxhash.xxh64(n.encode()).intdigest() for n in NAMES]
    assert buckets.user_hash(pa.array([12])).tolist() == [xxhash.xxh64(b"12").intdigest()]


def test_a_users_bucket_does_not_depend_on_the_arrow_type() -> None:
    ids = list(range(-50, 50))
    wanted = buckets.bucket_of(pa.array(ids, pa.int64()), 7).tolist()
    assert set(wanted) == set(range(7))
    assert wanted == [xxhash.xxh64(str(i).encode()).intdigest() % 7 for i in ids]
    for other in (
        pa.array(ids, pa.int32()),
        pa.chunked_array([pa.array(ids[:13]), pa.array([], pa.int64()), pa.array(ids[13:])]),
        pa.array([str(i) for i in ids], pa.large_string()),
        pa.array([None, *ids]).slice(1),
    ):
        assert buckets.bucket_of(other, 7).tolist() == wanted


def test_a_share_of_users_is_stable_nested_and_independent_of_buckets() -> None:
    ids = pa.array(range(4000))
    some, more = buckets.share_of(ids, 0.1), buckets.share_of(ids, 0.3)
    assert 0.08 < some.mean() < 0.12
    assert not (some & ~more).any()
    assert buckets.share_of(ids, 1.0).all() and not buckets.share_of(ids, 0.0).any()
    per_bucket = np.bincount(buckets.bucket_of(ids, 4)[some], minlength=4)
    assert per_bucket.min() > 0.6 * per_bucket.mean()


def test_the_same_rows_give_the_same_bytes() -> None:
    table = pa.table({"user_id": [1, 2, 3], "x": ["a", None, "c"]})
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert buckets.parquet_bytes(table) == buckets.parquet_bytes(table)
    assert buckets.parquet_bytes(chunked.combine_chunks()) == buckets.parquet_bytes(table)
    assert buckets.parquet_bytes(table.slice(1)) != buckets.parquet_bytes(table)


def test_write_and_read_one_file_and_a_directory(tmp_path: Path) -> None:
    table = pa.table({"user_id": [1, 2, 3], "x": ["a", None, "c"]})
    assert buckets.write_parquet(table, f"{tmp_path}/t/one.parquet") == (tmp_path / "t" / "one.parquet").stat().st_size
    buckets.write_parquet(table.slice(1), f"{tmp_path}/t/two.parquet")
    (tmp_path / "t" / "_SUCCESS").write_text("")
    assert buckets.read_parquet(f"{tmp_path}/t/one.parquet").equals(table)
    assert buckets.read_parquet(f"{tmp_path}/t", ["user_id"]).to_pydict() == {"user_id": [1, 2, 3, 2, 3]}


def refused(uri: Path, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        buckets.read_parquet(str(uri))
    assert "\n" not in str(caught.value) and str(uri) in str(caught.value)


def test_what_is_no_parquet_table_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "missing.parquet", "no such table")
    refused(tmp_path, "no such table")
    whole = buckets.parquet_bytes(pa.table({"x": list(range(1000))}))
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut.parquet", "not a readable Parquet file")
    (tmp_path / "empty.parquet").write_bytes(b"")
    refused(tmp_path / "empty.parquet", "not a readable Parquet file")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes.txt").write_text("hello, this is no table at all")
    refused(tmp_path / "sub", "not a readable Parquet file")


def test_files_that_disagree_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": ["one"]}), tmp_path / "b.parquet")
    refused(tmp_path, "its files disagree on columns")


def test_bucket_files_are_found_by_number_and_leftovers_deleted(tmp_path: Path) -> None:
    table = str(tmp_path / "t")
    for bucket in (0, 3, 12):
        buckets.write_parquet(pa.table({"x": [bucket]}), buckets.bucket_file(table, bucket))
    (tmp_path / "t" / "other.parquet").write_bytes(b"")
    assert buckets.bucket_files(table) == {b: f"{table}/bucket-{b:05d}.parquet" for b in (0, 3, 12)}
    buckets.delete_others(table, [0, 3])
    assert list(buckets.bucket_files(table)) == [0, 3]
    buckets.delete_others(str(tmp_path / "missing"), [])
    with pytest.raises(UserError, match="no bucketed table there"):
        buckets.bucket_files(str(tmp_path / "missing"))


def test_a_table_is_refused_from_the_first_deletion_to_the_last_write(tmp_path: Path) -> None:
    table, row = str(tmp_path / "t"), pa.table({"x": [1]})
    with buckets.rewriting(table):
        buckets.write_parquet(row, buckets.bucket_file(table, 5))
    assert list(buckets.bucket_files(table)) == [5]
    with pytest.raises(KeyboardInterrupt), buckets.rewriting(table):
        assert [p.name for p in (tmp_path / "t").iterdir()] == [buckets.UNFINISHED]
        buckets.write_parquet(row, buckets.bucket_file(table, 0))
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="half-written"):
        buckets.bucket_files(table)
    with buckets.rewriting(table):
        buckets.write_parquet(row, buckets.bucket_file(table, 1))
    assert list(buckets.bucket_files(table)) == [1]


def test_sorted_by_user() -> None:
    table = pa.table({"user_id": [3, 1, 2], "x": ["c", "a", "b"]})
    assert buckets.sorted_by_user(table).to_pydict() == {"user_id": [1, 2, 3], "x": ["a", "b", "c"]}


def test_texts_are_read_as_dictionaries_where_the_file_holds_some(tmp_path: Path) -> None:
    n = 3000
    few, many = [["a", "bb", None][i % 3] for i in range(n)], [f"text {i}" for i in range(n)]
    table = pa.table({
        "few": few, "many": many, "lists": [[t] for t in few], "numbers": [[1]] * n, "other": few,
    })  # fmt: skip
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=1000, dictionary_pagesize_limit=100)
    found = buckets.read_parquet(f"{tmp_path}/t.parquet", dictionaries=("few", "many", "lists", "numbers", "absent"))
    text = pa.dictionary(pa.int32(), pa.string())
    wanted = {"few": text, "many": pa.string(), "other": pa.string(), "numbers": pa.list_(pa.int64())}
    assert {name: found.schema.field(name).type for name in wanted} == wanted
    assert found.schema.field("lists").type.value_type == text
    assert found.to_pydict() == table.to_pydict()


@pytest.mark.parametrize("ids", [[3, 1, 2], [1, 2, 3], ["b", "a"], ["a", "b"], [1], []])
def test_catalogue_ids_ascend(ids: list, tmp_path: Path) -> None:
    kind = pa.array(ids).type if ids else pa.int64()
    buckets.write_parquet(
        pa.table({"item_id": pa.array(ids, kind), "title": ["t"] * len(ids)}), f"{tmp_path}/i.parquet"
    )
    found = buckets.catalogue_ids(f"{tmp_path}/i.parquet")
    assert found.type == kind and found.to_pylist() == sorted(ids)
