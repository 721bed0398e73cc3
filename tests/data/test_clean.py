from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from llmrec import schema
from llmrec.config import Columns
from llmrec.data.clean import clean_items, clean_users, interactions_quarantine, judge_interactions
from llmrec.errors import UserError

KNOWN = pa.array([10, 11, 12])
LATEST = 4_102_444_800


def judged(times: pa.Array, users: list | None = None, items: list | None = None, **columns: str) -> list[str | None]:
    table = pa.table({
        "user_id": pa.array(users if users is not None else [1] * len(times), pa.int64()),
        "item_id": pa.array(items if items is not None else [10] * len(times), pa.int64()),
        "timestamp": times,
    })  # fmt: skip
    return judge_interactions(table, Columns(**columns), KNOWN, 1, LATEST, "log.parquet")["reason_code"].to_list()


def one_line(caught: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_items_are_kept_or_set_aside_with_a_reason() -> None:
    items = pa.table({
        "item_id": [1, None, 2, 1, 3, 4],
        "title": ["One", "Nameless", None, "One again", "  ", "Four"],
        "year": [2001, 2002, 2003, 2004, 2005, 2006],
    })  # fmt: skip
    good, bad = clean_items(items, Columns(), "items.parquet")
    assert good.to_pydict() == {"item_id": [1, 4], "title": ["One", "Four"], "year": [2001, 2006]}
    assert bad.schema == schema.QUARANTINE
    assert bad.to_pylist() == [
        {"key": None, "reason_code": "null_id", "detail": "Nameless", "source_file": "items.parquet"},
        {"key": "2", "reason_code": "no_title", "detail": None, "source_file": "items.parquet"},
        {"key": "1", "reason_code": "duplicate_item", "detail": "One again", "source_file": "items.parquet"},
        {"key": "3", "reason_code": "no_title", "detail": "  ", "source_file": "items.parquet"},
    ]
    assert good.num_rows + bad.num_rows == items.num_rows


def test_mapped_columns_get_our_names_and_ids_our_types() -> None:
    items = pa.table({"sku": pa.array([7], pa.int32()), "name": ["Seven"]})
    good, _ = clean_items(items, Columns(item="sku", title="name"), "i")
    assert good.to_pydict() == {"item_id": [7], "title": ["Seven"]}
    assert good.schema.field("item_id").type == pa.int64()


def test_titles_that_are_a_dictionary() -> None:
    items = pa.table({"item_id": [1, 2, 3], "title": pa.array(["A", None, "A"], pa.large_string()).dictionary_encode()})
    good, bad = clean_items(items, Columns(), "i")
    assert good.to_pydict() == {"item_id": [1, 3], "title": ["A", "A"]} and bad["key"].to_pylist() == ["2"]
    assert not pa.types.is_dictionary(good.schema.field("title").type)


def test_the_first_usable_row_of_an_item_stays() -> None:
    items = pa.table({"item_id": [1, 1, 1, 2], "title": [None, "A", None, "B"]})
    good, bad = clean_items(items, Columns(), "i")
    assert good.to_pydict() == {"item_id": [1, 2], "title": ["A", "B"]}
    assert bad["reason_code"].to_pylist() == ["no_title", "duplicate_item"]


def test_ids_beyond_int64_are_one_line() -> None:
    items = pa.table({"item_id": pa.array([1, 2**63 + 5], pa.uint64()), "title": ["A", "B"]})
    with pytest.raises(UserError, match="i: column 'item_id' holds ids beyond int64; give them as texts"):
        clean_items(items, Columns(), "i")
    small = pa.table({"item_id": pa.array([1, 2], pa.uint64()), "title": ["A", "B"]})
    assert clean_items(small, Columns(), "i")[0].schema.field("item_id").type == pa.int64()


@pytest.mark.parametrize(
    ("items", "complaint"),
    [
        ({"title": ["One"]}, "i.parquet: column 'item_id' is missing"),
        ({"item_id": [1]}, "i.parquet: column 'title' is missing"),
        ({"item_id": [1.5], "title": ["One"]}, "i.parquet: column 'item_id' has type double"),
        ({"item_id": [1], "title": [5]}, "i.parquet: column 'title' has type int64, which is no text"),
        ({"item_id": [1, 2], "title": [None, " "]}, "i.parquet: none of its 2 items is usable"),
    ],
)
def test_an_items_table_that_cannot_be_used(items: dict[str, list[Any]], complaint: str) -> None:
    table = pa.table({k: pa.array(v, pa.string()) if v[0] is None else pa.array(v) for k, v in items.items()})
    with pytest.raises(UserError, match=complaint) as caught:
        clean_items(table, Columns(), "i.parquet")
    one_line(caught)


def test_a_column_beside_the_one_mapped_to_its_name_is_refused() -> None:
    items = pa.table({"sku": [1], "item_id": [2], "title": ["One"]})
    with pytest.raises(UserError, match="column 'item_id' is there beside the one mapped to it"):
        clean_items(items, Columns(item="sku"), "i")


def test_events_are_judged_in_this_order() -> None:
    assert judged(pa.array([5, 5, 5, None, 0, 5], pa.int64()), [1, None, 1, 1, 1, 1], [10, 10, None, 10, 99, 99]) == [
        None,
        "null_id",
        "null_id",
        "null_timestamp",
        "impossible_timestamp",
        "unknown_item",
    ]


def test_whole_number_timestamps() -> None:
    times = pa.array([1, 0, -5, LATEST, LATEST + 1, 1_700_000_000_000, 2**63 - 1], pa.int64())
    bad = "impossible_timestamp"
    assert judged(times) == [None, bad, bad, None, bad, bad, bad]


def test_unsigned_timestamps_beyond_int64() -> None:
    assert judged(pa.array([2**64 - 1, 5], pa.uint64())) == ["impossible_timestamp", None]


def test_floating_timestamps() -> None:
    times = pa.array([5.9, float("nan"), float("inf"), -float("inf"), 1e300, -1e300, -0.5, 0.99, None])
    bad = "impossible_timestamp"
    found = judged(times)
    assert found[0] is None and found[4:8] == [bad] * 4 and found[8] == "null_timestamp"
    assert all(reason in (bad, "null_timestamp") for reason in found[1:4])


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_arrow_timestamps_become_unix_seconds(unit: str, zone: str | None) -> None:
    moment = datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC)
    times = pa.array([moment, datetime(1950, 1, 1, tzinfo=UTC), None], pa.timestamp(unit, zone))
    table = pa.table({"user_id": [1] * 3, "item_id": [10] * 3, "timestamp": times})
    frame = judge_interactions(table, Columns(), KNOWN, 1, LATEST, "log")
    assert frame["reason_code"].to_list() == [None, "impossible_timestamp", "null_timestamp"]
    assert frame["timestamp"][0] == int(moment.timestamp())


def test_text_ids_and_large_strings() -> None:
    table = pa.table({
        "user_id": pa.array(["a", None], pa.large_string()),
        "item_id": pa.array(["x", "y"]).dictionary_encode(),
        "timestamp": [1, 2],
    })  # fmt: skip
    frame = judge_interactions(table, Columns(), pa.array(["x"]), 1, LATEST, "log")
    assert frame["reason_code"].to_list() == [None, "null_id"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"user_id": None}, "log.parquet: column 'user_id' is missing"),
        ({"item_id": None}, "log.parquet: column 'item_id' is missing"),
        ({"timestamp": None}, "log.parquet: column 'timestamp' is missing"),
        ({"user_id": [1.0]}, "log.parquet: column 'user_id' has type double; ids must be integers or strings"),
        ({"timestamp": ["2001-02-03"]}, "log.parquet: column 'timestamp' has type string, which is no time"),
        ({"item_id": ["10"]}, "log.parquet: column 'item_id' holds string ids, but the items table holds int64"),
    ],
)
def test_a_log_of_another_shape_is_refused(change: dict[str, Any], complaint: str) -> None:
    columns = {"user_id": [1], "item_id": [10], "timestamp": [5]} | change
    table = pa.table({k: v for k, v in columns.items() if v is not None})
    with pytest.raises(UserError, match=complaint) as caught:
        judge_interactions(table, Columns(), KNOWN, 1, LATEST, "log.parquet")
    one_line(caught)


def test_events_set_aside_name_user_item_and_time() -> None:
    table = pa.table({"user_id": [1, None], "item_id": [99, 10], "timestamp": pa.array([5, None], pa.int64())})
    frame = judge_interactions(table, Columns(), KNOWN, 1, LATEST, "log")
    found = interactions_quarantine(frame, "log")
    assert found.schema == schema.QUARANTINE
    assert found.to_pylist() == [
        {"key": "1", "reason_code": "unknown_item", "detail": "item=99 timestamp=5", "source_file": "log"},
        {"key": None, "reason_code": "null_id", "detail": "item=10 timestamp=null", "source_file": "log"},
    ]
    assert Counter(found["reason_code"].to_pylist()) == {"unknown_item": 1, "null_id": 1}


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_users_that_come_again_are_set_aside(kind: pa.DataType) -> None:
    ids = pa.chunked_array([pa.array([7, None, 8]), pa.array([7, 9, None, 7])]).cast(kind)
    table = pa.table({"user_id": ids, "age": [1, 2, 3, 4, 5, 6, 7]})
    kept, aside = clean_users(table, "users.parquet")
    assert kept.schema == table.schema and kept["age"].to_pylist() == [1, 3, 5]
    assert [tuple(row.values()) for row in aside.to_pylist()] == [
        (None, "null_id", "row=1", "users.parquet"), ("7", "duplicate_user", "row=3", "users.parquet"),
        (None, "null_id", "row=5", "users.parquet"), ("7", "duplicate_user", "row=6", "users.parquet"),
    ]  # fmt: skip
    assert aside.schema == schema.QUARANTINE
