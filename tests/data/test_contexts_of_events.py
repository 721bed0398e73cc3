from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec import config, schema
from llmrec.config import Columns, Data
from llmrec.data import context
from llmrec.data.clean import ROW, judge_interactions
from llmrec.data.split import Boundaries, Split, split_events
from llmrec.errors import UserError
from llmrec.tables import contexts

KNOWN = pa.array([10, 11, 12, 13])
EVENTS = st.lists(st.tuples(st.integers(1, 3), st.integers(9, 13), st.integers(0, 6)), max_size=25)


def split(rows: list[tuple[int, int, int]], **data: Any) -> Split:
    """Events whose context `mark` tells their place in the input, judged and split as prepare does."""
    users, items, times = zip(*rows, strict=True) if rows else ((), (), ())
    log = pa.table({
        "user_id": pa.array(users, pa.int64()), "item_id": pa.array(items, pa.int64()),
        "timestamp": pa.array(times, pa.int64()), "mark": pa.array(range(len(rows)), pa.int64()),
    })  # fmt: skip
    wanted = Data(context=("mark",), min_user_events=1, **data)
    judged = judge_interactions(log, Columns(), KNOWN, 1, 100, "log", wanted.context).with_row_index(ROW)
    good = judged.filter(pl.col("reason_code").is_null())
    return split_events(good, wanted, Boundaries(3, 5), pa.int64(), pa.int64())


@settings(max_examples=100, deadline=None)
@given(EVENTS, st.sampled_from(["leave_one_out", "time", "none"]))
def test_contexts_stay_beside_their_events(rows: list[tuple[int, int, int]], kind: str) -> None:
    """Ties in time, copies and bad rows included; what is asked for is the context of the first target, or none."""
    found = split(rows, split=kind)
    assert found.histories.schema == schema.histories(pa.int64(), pa.int64(), ["mark"])
    assert found.targets.schema == schema.targets(pa.int64(), pa.int64(), ["mark"])
    held_out = {row["user_id"]: row for row in found.targets.to_pylist()}
    for row in found.histories.to_pylist():
        marks = [int(mark) for mark in row["context_mark"]]
        assert [rows[mark] for mark in marks] == [
            (row["user_id"], item, time) for item, time in zip(row["item_ids"], row["timestamps"], strict=True)
        ]
        target = held_out.get(row["user_id"], {"item_ids": [], "context_mark": []})
        assert [rows[int(mark)][1] for mark in target["context_mark"]] == target["item_ids"]
        assert row["now_mark"] == (target["context_mark"] or [None])[0]
        # As if validation had not happened: asked about in its first event's context, which the trunk does not hold.
        before = contexts.now(found.histories, ["mark"], training_only=True)["mark"]
        place = found.histories["user_id"].to_pylist().index(row["user_id"])
        later = row["context_mark"][row["train_length"] :]
        assert before[place].as_py() == (later or [None])[0]
        assert before[place].as_py() not in row["context_mark"][: row["train_length"]]


def test_without_contexts_the_tables_are_what_they_were() -> None:
    log = pa.table({"user_id": [1, 1, 1], "item_id": [10, 11, 12], "timestamp": [1, 2, 3], "place": ["a", "b", "c"]})
    judged = judge_interactions(log, Columns(), KNOWN, 1, 100, "log").with_row_index(ROW)
    assert judged.columns == [ROW, "user_id", "item_id", "timestamp", "reason_code"]
    found = split_events(judged, Data(), None, pa.int64(), pa.int64())
    assert found.histories.column_names == ["user_id", "item_ids", "timestamps", "train_length"]
    assert found.targets.column_names == ["user_id", "item_ids"]
    dumped = config.Config().model_dump()
    assert not {"context", "requests"} & (dumped["data"].keys() | dumped["recall"].keys())
    assert config.build({"data": {"context": ["place"]}}).model_dump()["data"]["context"] == ("place",)


def test_times_become_texts() -> None:
    moments = [datetime(2026, 11, 26, 11, 23, tzinfo=UTC), datetime(2024, 2, 29, 0, 0, tzinfo=UTC), None]
    seconds = pl.Series([moment and int(moment.timestamp()) for moment in moments], dtype=pl.Int64)
    names = ("hour", "weekday", "part_of_day", "month")
    found = context.values(pa.table({"x": [1, 2, 3]}), seconds, [f"time:{name}" for name in names], "log")
    assert [s.name for s in found] == [f"context_{name}" for name in names]
    assert [s.to_list() for s in found] == [
        [m and m.strftime("%H") for m in moments],
        [m and m.strftime("%A").lower() for m in moments],
        ["morning", "night", None],
        [m and m.strftime("%B").lower() for m in moments],
    ]
    for hour in range(24):
        (part,) = context.values(pa.table({"x": [1]}), pl.Series([hour * 3600 + 3599]), ["time:part_of_day"], "log")
        assert part[0] == ["night", "morning", "afternoon", "evening"][hour // 6]


def test_texts_whole_numbers_and_booleans_become_texts() -> None:
    rows = pa.table({
        "place": pa.array(["home", None, "work"]).dictionary_encode(), "cell": pa.array([7, -1, None], pa.int16()),
        "mobile": [True, None, False], "never": pa.nulls(3), "long": pa.array(["x", "", None], pa.large_string()),
    })  # fmt: skip
    found = context.values(rows, pl.Series([None] * 3, dtype=pl.Int64), rows.column_names, "log")
    assert [s.to_list() for s in found] == [
        ["home", None, "work"], ["7", "-1", None], ["true", None, "false"], [None] * 3, ["x", "", None],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("column", "complaint"),
    [
        ({}, r"log: column 'place', which data.context names, is missing \(it has: x\)"),
        (
            {"place": [0.5]},
            "log: column 'place' has type double; data.context takes texts, whole numbers and booleans: cut its "
            "numbers into a few named ranges, as texts",
        ),
        (
            {"place": pa.array([Decimal("19.90")])},
            r"log: column 'place' has type decimal128\(4, 2\); .*: cut its numbers into a few named ranges",
        ),
        ({"place": [["a"]]}, "log: column 'place' has type list.*booleans: make it one of these"),
    ],
)
def test_columns_that_are_no_context_are_named(column: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        context.check(pa.table({"x": [1]} | column).schema, ["place"], "log")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"context": ["time:minute"]}, "context names 'time:minute'; of the time there are time:hour, time:weekday,"),
        ({"context": ["hour", "time:hour"]}, "context has 'hour' more than once"),
        ({"context": ["sku"], "columns": {"item": "sku"}}, "context names 'sku', whose value a request for"),
        ({"requests": "r"}, "requests brings the context of users; name its columns in context"),
        ({"requests": "r", "context": ["place"]}, "requests goes with split = none: with split = leave_one_out"),
    ],
)
def test_settings_that_do_not_go_together_are_named(data: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        config.build({"data": data})
    assert "\n" not in str(caught.value)


def test_users_are_asked_about_in_the_context_of_their_requests() -> None:
    histories = split([(1, 10, 1), (2, 11, 2), (3, 12, 3)], split="none").histories
    rows = pa.table({"customer": [3, 1, 9], "mark": ["c", None, "z"]})
    requests = context.requests(rows, ["mark"], Columns(user="customer"), pa.int64(), "requests")
    found, users = context.asked(histories, requests)
    assert found["now_mark"].to_pylist() == [None, None, "c"] and users == 2
    assert found.schema == histories.schema and found.drop_columns(["now_mark"]).equals(
        histories.drop_columns(["now_mark"])
    )
    timed = pa.table({"user_id": [1], "timestamp": [3600]})
    (made,) = context.requests(timed, ["time:hour"], Columns(), pa.int64(), "requests").to_pylist()
    assert made == {"user_id": 1, "now_hour": "01"}


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ({"user_id": [1]}, "requests: column 'mark', which data.context names, is missing"),
        ({"mark": ["a"]}, "requests: column 'user_id' is missing"),
        ({"user_id": ["1"], "mark": ["a"]}, "requests: column 'user_id' holds string ids, but the log holds int64"),
        ({"user_id": [1, None], "mark": ["a", "b"]}, "requests: 1 rows have no 'user_id'"),
        ({"user_id": [1, 2, 1], "mark": ["a", "b", "c"]}, "requests: user 1 has several rows; leave one of each user"),
    ],
)
def test_requests_of_another_shape_are_refused(rows: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        context.requests(pa.table(rows), ["mark"], Columns(), pa.int64(), "requests")
    assert "\n" not in str(caught.value)
