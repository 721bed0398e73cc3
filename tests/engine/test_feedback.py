"""Impressions of published rankings that come back as weighed events, by the real jobs on a mini cluster and S3."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from test_item_tokens import quietly

from llmrec import config, storage
from llmrec.engine import stages
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.tables import buckets

RAW, ROOT = "s3://llmrec-test/raw-feedback", "s3://llmrec-test/feedback"
USERS, ITEMS, PLACES = 300, 20, 5
LOOKED = 1 / np.arange(1, PLACES + 1)


def settings(root: str = ROOT, **sections: Any) -> config.Config:
    values: dict[str, Any] = {
        "root": root,
        "data": {
            "items": f"{RAW}/items.parquet", "interactions": f"{RAW}/interactions.parquet", "buckets": 2,
            "columns": {"user": "who", "item": "what", "timestamp": "at"}, "context": ["device"], "split": "none",
        },
        "feedback": {"impressions": f"{RAW}/impressions", "position": "place", "outcome": "clicked", "max_weight": 4},
    }  # fmt: skip
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return config.build(values)


def impressions() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    n = USERS * 40
    item, place = rng.integers(ITEMS, size=n), rng.integers(1, PLACES + 1, size=n)
    clicked = rng.random(n) < LOOKED[place - 1] * (0.1 + 0.4 * item / ITEMS)
    return pl.DataFrame({
        "who": [f"u{i:03}" for i in rng.integers(USERS, size=n)], "what": [f"i{i:02}" for i in item],
        "at": 1000 + np.arange(n), "place": place, "clicked": clicked.astype(np.int8),
        "device": rng.choice(["phone", "tv"], n), "run_id": rng.choice(["a", "b"], n),
    })  # fmt: skip


@pytest.fixture(scope="module")
def shown(cluster: Any) -> pl.DataFrame:
    items = pa.table({"what": [f"i{i:02}" for i in range(ITEMS)], "title": [f"title {i}" for i in range(ITEMS)]})
    log = pa.table({
        "who": [f"u{u:03}" for u in range(USERS) for _ in range(3)], "at": list(range(3)) * USERS,
        "what": [f"i{(u + s) % ITEMS:02}" for u in range(USERS) for s in range(3)], "device": ["tv"] * 3 * USERS,
    })  # fmt: skip
    log = log.set_column(1, "at", pa.array([10 + s for s in log["at"].to_pylist()]))
    found = impressions()
    buckets.write_parquet(items, f"{RAW}/items.parquet")
    buckets.write_parquet(log, f"{RAW}/interactions.parquet")
    half = len(found) // 2
    for number, part in enumerate((found[:half], found[half:].drop("device"))):
        buckets.write_parquet(part.to_arrow(), f"{RAW}/impressions/{number}.parquet")
    return found


def test_what_was_taken_is_in_histories_with_what_its_place_makes_of_it(shown: pl.DataFrame) -> None:
    done = stages.run("feedback", settings(), quietly)
    taken = shown.filter(pl.col("clicked") > 0)
    assert (done["impressions"], done["outcomes"], done["set_aside"]) == (len(shown), len(taken), {})
    assert done["converged"] is True
    by_place = shown.group_by("place").agg(pl.len(), pl.col("clicked").cast(pl.Int64).sum()).sort("place")
    assert [(p["shown"], p["taken"]) for p in done["places"]] == by_place.select("len", "clicked").rows()
    examined = np.asarray([p["examined"] for p in done["places"]])
    assert np.abs(examined - LOOKED).max() < 0.06
    assert np.allclose([p["weight"] for p in done["places"]], np.minimum(1 / examined, 4))
    for run in done["runs"]:
        mine = shown.filter(pl.col("run_id") == run["run_id"])
        weights = np.minimum(1 / examined, 4)[mine["place"].to_numpy() - 1]
        assert run["rate"] == pytest.approx(float(mine["clicked"].mean() or 0))
        assert run["corrected"] == pytest.approx(float((weights * mine["clicked"].to_numpy()).mean()), rel=1e-5)

    prepared = stages.run("prepare", settings(), quietly)
    assert prepared["rows_in"] == 3 * USERS + len(taken)
    histories = pl.DataFrame(pl.from_arrow(buckets.read_parquet(Layout(ROOT).histories)))
    events = histories.explode("item_ids", "timestamps", "weights", "context_device")
    ours = events.filter(pl.col("timestamps") >= 1000).sort("timestamps")
    wanted = taken.sort("at")
    assert ours["timestamps"].to_list() == wanted["at"].to_list()
    assert ours["item_ids"].to_list() == wanted["what"].to_list()
    assert np.allclose(ours["weights"], np.minimum(1 / examined, 4)[wanted["place"].to_numpy() - 1], rtol=1e-6)
    devices = wanted.with_columns(pl.when(pl.col("at") < 1000 + len(shown) // 2).then("device"))["device"]
    assert ours["context_device"].to_list() == devices.to_list(), "one file tells of devices, the other does not"
    assert set(events.filter(pl.col("timestamps") < 1000)["weights"]) == {1.0}
    assert stages.run("prepare", settings(), quietly, reuse=True)["reused"]


def test_known_places_are_taken_as_they_are_and_nothing_corrected_if_so_asked(shown: pl.DataFrame) -> None:
    given = settings("s3://llmrec-test/feedback-given", feedback={"examination": [1, 0.5], "positions": 3})
    done = stages.run("feedback", given, quietly)
    assert [(p["position"], p["examined"], p["weight"]) for p in done["places"]] == [
        (1, 1, 1),
        (2, 0.5, 2),
        (3, 0.5, 2),
    ]
    assert sum(p["shown"] for p in done["places"]) == len(shown) and done["converged"] is None
    plain = stages.run(
        "feedback", settings("s3://llmrec-test/feedback-plain", feedback={"correction": "none"}), quietly
    )
    assert {p["weight"] for p in plain["places"]} == {1.0} and plain["effective"] == plain["outcomes"]


def test_rows_that_cannot_be_are_set_aside_and_too_many_stop_the_job(shown: pl.DataFrame) -> None:
    bad = shown[:100].with_columns(
        place=pl.when(pl.int_range(pl.len()) < 3).then(0).otherwise("place"),
        clicked=pl.when(pl.int_range(pl.len()) == 5).then(None).otherwise("clicked"),
        what=pl.when(pl.int_range(pl.len()) == 7).then(None).otherwise("what"),
    )
    uri = f"{RAW}/bad.parquet"
    buckets.write_parquet(bad.to_arrow(), uri)
    wanted = settings("s3://llmrec-test/feedback-bad", feedback={"impressions": uri})
    done = stages.run("feedback", wanted, quietly)
    assert done["set_aside"] == {"impossible_position": 3, "null_id": 1, "null_outcome": 1}
    rows = buckets.read_parquet(done["quarantine"]).to_pylist()
    assert len(rows) == 5 and {row["source_file"] for row in rows} == {uri}
    before = storage.manifest(done["table"])
    strict = settings(
        "s3://llmrec-test/feedback-bad",
        feedback={"impressions": uri},
        data=wanted.data.model_dump() | {"max_bad_share": 0.01},
    )
    with pytest.raises(UserError, match=r"of 100 impressions 5 are bad \(3 impossible_position, 1 null_id"):
        stages.run("feedback", strict, quietly)
    assert storage.manifest(done["table"]) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"outcome": "bought"}, r"column 'bought' is missing \(it has: .*name it in feedback.outcome"),
        ({"position": "device"}, r"column 'device' has type .*; feedback.position is a whole number"),
        ({"impressions": f"{RAW}/none"}, r"raw-feedback/none: no Parquet files there"),
    ],
)
def test_wrong_settings_are_one_line(shown: pl.DataFrame, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        stages.run("feedback", settings("s3://llmrec-test/feedback-wrong", feedback=change), quietly)


def test_the_kind_of_an_outcome_has_to_be_named_where_kinds_are_weighed() -> None:
    with pytest.raises(UserError, match=r"feedback.event = '': data.event_weights weighs kinds of events"):
        settings(data={"event_weights": {"view": 0.1, "buy": 1}})
