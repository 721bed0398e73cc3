"""Kinds of events: which rows count, which event of several stays, and what is held out, against plain Python."""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec import config, schema
from llmrec.config import Columns, Data
from llmrec.data.clean import EVENT_WEIGHT, KIND, ROW, interactions_quarantine, judge_interactions
from llmrec.data.split import Boundaries, Split, split_events, with_new_users
from llmrec.errors import UserError

KNOWN = pa.array([10, 11, 12, 13])
WEIGHTS = {"view": 0.25, "cart": 0.5, "buy": 1.0, "scroll": 0.0}


def log(rows: list[tuple[Any, ...]], kind: pa.DataType | None = None) -> pa.Table:
    users, items, times, kinds = zip(*rows, strict=True)
    column = pa.array(kinds, kind or pa.string())
    return pa.table([list(users), list(items), list(times), column], ["user_id", "item_id", "timestamp", "event"])


def judged(table: pa.Table, weights: dict[str, float] | None = None) -> pl.DataFrame:
    return judge_interactions(table, Columns(), KNOWN, 1, 100, "log", event_weights=weights or WEIGHTS)


def split(rows: list[tuple[int, int, int, str]], boundaries: Boundaries | None = None, **data: Any) -> Split:
    wanted = Data(event_weights=WEIGHTS, **data)
    good = judged(log(rows)).with_row_index(ROW).filter(pl.col("reason_code").is_null())
    return split_events(good, wanted, boundaries, pa.int64(), pa.int64())


def held_out(found: Split) -> dict[int, list[int]]:
    return dict(zip(found.targets["user_id"].to_pylist(), found.targets["item_ids"].to_pylist(), strict=True))


def test_rows_of_no_kind_are_bad_and_rows_of_no_weight_are_dropped_before_all_else() -> None:
    rows = [(1, 10, 5, "view"), (1, 10, 5, None), (1, 10, 5, "glance"), (1, 99, 5, "glance"), (1, 99, 5, "scroll"),
            (1, 10, 500, "buy"), (1, 11, 5, "scroll")]  # fmt: skip
    found = judged(log(rows))
    assert found["reason_code"].to_list() == [
        None, "unknown_event", "unknown_event", "unknown_item", "dropped_event", "impossible_timestamp",
        "dropped_event",
    ]  # fmt: skip
    assert found[EVENT_WEIGHT].to_list() == [0.25, None, None, None, 0.0, 1.0, 0.0]
    assert interactions_quarantine(found[1:2], "log")["detail"].to_pylist() == ["item=10 timestamp=5 event=null"]


def test_kinds_may_be_whole_numbers_or_a_dictionary() -> None:
    numbers = judged(log([(1, 10, 5, 1), (1, 10, 5, 2)], pa.int8()), {"1": 0.5})
    assert numbers["reason_code"].to_list() == [None, "unknown_event"]
    table = log([(1, 10, 5, "buy")])
    coded = table.set_column(3, "event", table["event"].dictionary_encode())
    assert judged(coded)[KIND].to_list() == ["buy"]


def test_without_weights_the_column_is_not_read() -> None:
    table = log([(1, 10, 5, "view"), (1, 11, 5, None)])
    plain = judge_interactions(table, Columns(), KNOWN, 1, 100, "log")
    assert plain.equals(judge_interactions(table.drop("event"), Columns(event="?"), KNOWN, 1, 100, "log"))
    assert plain.columns == ["user_id", "item_id", "timestamp", "reason_code"]


@pytest.mark.parametrize(
    ("column", "complaint"),
    [
        (None, r"log: column 'event', whose kinds data\.event_weights weighs, is missing \(it has: user_id"),
        ([0.5], r"log: column 'event' has type double; kinds of events are texts"),
    ],
)
def test_a_log_without_kinds_is_refused(column: list[float] | None, complaint: str) -> None:
    table = log([(1, 10, 5, "view")]).drop("event")
    table = table if column is None else table.append_column("event", pa.array(column))
    with pytest.raises(UserError, match=complaint) as caught:
        judged(table)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"event_weights": {"view": 0.0}}, "event_weights drops every kind of event"),
        ({"event_weights": {"view": -1.0}}, r"data\.event_weights\.view = -1\.0"),
        ({"event_weights": {"view": float("inf")}}, r"data\.event_weights\.view = inf"),
        ({"target_events": ["buy"]}, "target_events names 'buy', to which event_weights gives no weight above 0"),
        ({"event_weights": {"view": 1.0, "buy": 0.0}, "target_events": ["buy"]}, "target_events names 'buy'"),
    ],
)
def test_settings_that_cannot_be(data: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        config.build({"data": data})


def test_who_does_not_use_kinds_has_the_settings_of_before() -> None:
    plain = Data().model_dump(mode="json")
    assert set(plain["columns"]) == {"user", "item", "timestamp", "title"}
    assert not {"event_weights", "target_events"} & set(plain)
    used = Data(event_weights=WEIGHTS, target_events=("buy",), columns=Columns(event="kind")).model_dump(mode="json")
    assert (used["event_weights"], used["target_events"], used["columns"]["event"]) == (WEIGHTS, ["buy"], "kind")


def test_of_kinds_at_the_same_time_the_heaviest_stays_and_repeats_stay() -> None:
    rows = [(1, 10, 5, "view"), (1, 10, 5, "buy"), (1, 10, 5, "cart"), (1, 11, 6, "view"), (1, 10, 7, "view"),
            (1, 12, 8, "cart"), (1, 12, 8, "cart")]  # fmt: skip
    found = split(rows, split="none", min_user_events=1)
    assert found.histories.schema == schema.histories(pa.int64(), pa.int64(), weighted=True)
    assert found.histories.to_pylist() == [
        {"user_id": 1, "item_ids": [10, 11, 10, 12], "timestamps": [5, 6, 7, 8], "weights": [1.0, 0.25, 0.25, 0.5],
         "train_length": 4}
    ]  # fmt: skip
    aside = found.set_aside.select(KIND, ROW, "reason_code").rows()
    assert sorted(aside) == [("cart", 2, "duplicate_event"), ("cart", 6, "duplicate_event"),
                             ("view", 0, "duplicate_event")]  # fmt: skip
    new = with_new_users(found.histories, pa.array([7])).to_pylist()[1]
    assert (new["user_id"], new["item_ids"], new["weights"]) == (7, [], [])


def test_of_kinds_at_the_same_time_a_target_stays_and_counts_as_the_heaviest() -> None:
    rows = [(1, 10, 5, "buy"), (1, 10, 6, "view"), (1, 10, 6, "cart"), (1, 10, 6, "buy"), (1, 11, 7, "cart")]
    found = split(rows, split="none", min_user_events=1, target_events=("cart",))
    (row,) = found.histories.to_pylist()
    assert (row["timestamps"], row["weights"]) == ([5, 6, 7], [1.0, 1.0, 0.5])
    assert sorted(found.set_aside.select(ROW, KIND).rows()) == [(1, "view"), (3, "buy")]


def test_a_user_without_a_wanted_event_is_ranked_and_not_evaluated() -> None:
    rows = [(1, 10, 1, "view"), (1, 11, 2, "view"), (1, 12, 3, "cart"), (2, 10, 1, "view"), (2, 11, 2, "buy"),
            (2, 12, 3, "view")]  # fmt: skip
    found = split(rows, target_events=("buy",))
    assert found.histories.select(["user_id", "item_ids", "train_length"]).to_pylist() == [
        {"user_id": 1, "item_ids": [10, 11, 12], "train_length": 3}, {"user_id": 2, "item_ids": [10], "train_length": 1}
    ]  # fmt: skip
    assert held_out(found) == {2: [11]}
    assert found.set_aside.select("item_id", "reason_code").rows() == [(12, "after_target")]


EVENTS = st.lists(
    st.tuples(st.integers(1, 3), st.integers(10, 13), st.integers(1, 6), st.sampled_from(["view", "cart", "buy"])),
    min_size=1, max_size=25,
)  # fmt: skip
WANTED = st.sampled_from([("buy",), ("buy", "cart")])


@settings(max_examples=150, deadline=None)
@given(EVENTS, st.sampled_from(["leave_one_out", "time", "none"]), WANTED)
def test_held_out_are_wanted_kinds_alone_and_nothing_later_is_known(
    rows: list[tuple[int, int, int, str]], kind: str, wanted: tuple[str, ...]
) -> None:
    found = split(rows, Boundaries(3, 5), split=kind, min_user_events=1, target_events=wanted)
    tables = {row["user_id"]: row for row in found.histories.to_pylist()}
    truth = held_out(found)
    total = sum(len(row["item_ids"]) for row in tables.values()) + sum(map(len, truth.values()))
    assert total + len(found.set_aside) == len(rows)
    clean: dict[int, list[tuple[int, int, str]]] = {}  # time, item, kind: one a user, item and time, in order
    for user, item, time, what in sorted(rows, key=lambda r: -WEIGHTS[r[3]]):  # of which the wanted are the heaviest
        if (time, item) not in [event[:2] for event in clean.setdefault(user, [])]:
            clean[user].append((time, item, what))
    place = {(u, i, t, k): n for n, (u, i, t, k) in reversed(list(enumerate(rows)))}
    assert tables.keys() == clean.keys()
    for user, events in clean.items():
        events.sort(key=lambda e: (e[0], place[user, e[1], e[0], e[2]]))
        buys = [at for at, event in enumerate(events) if event[2] in wanted]
        if kind == "none":
            known, train, test = events, len(events), []
        elif kind == "time":
            known, train = [e for e in events if e[0] < 5], sum(e[0] < 3 for e in events)
            test = [e for e in events if e[0] >= 5 and e[2] in wanted]
        else:
            known = events[: buys[-1]] if buys else events
            train = buys[-2] if len(buys) > 1 else len(known)
            test = [events[buys[-1]]] if buys else []
        assert tables[user]["item_ids"] == [item for _, item, _ in known]
        assert tables[user]["weights"] == [WEIGHTS[what] for _, _, what in known]
        assert tables[user]["train_length"] == train
        assert truth.get(user, []) == [item for _, item, _ in test]


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.sampled_from(["leave_one_out", "time", "none"]))
def test_kinds_that_all_count_one_change_nothing(rows: list[tuple[int, int, int, str]], kind: str) -> None:
    good = judged(log(rows), dict.fromkeys(WEIGHTS, 1.0)).with_row_index(ROW)
    data = {"split": kind, "min_user_events": 2}
    plain = split_events(good.drop(KIND, EVENT_WEIGHT), Data(**data), Boundaries(3, 5), pa.int64(), pa.int64())
    same = Data(**data, event_weights=dict.fromkeys(WEIGHTS, 1.0))
    equal = split_events(good, same, Boundaries(3, 5), pa.int64(), pa.int64())
    assert equal.histories.drop("weights") == plain.histories and equal.targets == plain.targets
