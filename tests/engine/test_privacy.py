"""Pseudonyms, columns that stay out, and users who are forgotten: jobs on a cluster, every byte in a real S3 server."""

from __future__ import annotations

import hashlib
import hmac
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import staging
import yaml
from typer.testing import CliRunner

from llmrec import cli, config, storage
from llmrec.engine import stages
from llmrec.engine.session import user_error_in
from llmrec.layout import Layout
from llmrec.report.users import named
from llmrec.tables import buckets, rankings

RAW, ROOT = "s3://llmrec-test/privacy-raw", "s3://llmrec-test/privacy"
USERS, ITEMS = 24, 12
SETTINGS: dict[str, Any] = {
    "root": ROOT,
    "data": {
        "items": f"{RAW}/items.parquet", "interactions": f"{RAW}/interactions.parquet", "users": f"{RAW}/users.parquet",
        "requests": f"{RAW}/requests.parquet", "context": ["place"], "split": "none", "buckets": 3,
        "min_user_events": 3,
    },
    "prompt": {"user": "A {kind}. ", "context": "at {place}", "context_as": "text"},
    "privacy": {"pseudonyms": True, "never": ["phone", "supplier", "address"]},
    "recall": {"candidates": 8},
}  # fmt: skip
IDS = [f"user-{u:03d}@example.org" for u in range(USERS)]


def quietly(message: str) -> None:
    """A `say` for stages."""


def pseudonym(user: str) -> str:
    return hmac.new(os.environ["LLMREC_PSEUDONYM_KEY"].encode(), user.encode(), hashlib.sha256).hexdigest()


def raw() -> dict[str, pa.Table]:
    """Users with an address, a birthday and a telephone; bad rows; a user without events, who asks for a ranking."""
    log = [(IDS[u], (u + step) % ITEMS, 1000 + step) for u in range(USERS) for step in range(4)]
    log += [(IDS[0], 999, 5), (IDS[1], 3, -7), (None, 3, 5), ("lonely@example.org", 3, 5)]
    user, item, time = zip(*log, strict=True)
    people = [*IDS, "new@example.org"]
    return {
        "items": pa.table({
            "item_id": list(range(ITEMS)), "title": [f"w{i} w{i + 1}" for i in range(ITEMS)],
            "supplier": [f"supplier no. {i}@wholesale" for i in range(ITEMS)],
        }),
        "interactions": pa.table({
            "user_id": user, "item_id": item, "timestamp": pa.array(time, pa.int64()),
            "place": [f"w{i % 3}" for i in item], "address": [f"10.0.{t % 200}.{i}" for i, t in enumerate(time)],
        }),
        "users": pa.table({
            "user_id": people, "kind": [f"w{i % 2}" for i in range(len(people))],
            "phone": [5_550_100_000 + i for i in range(len(people))],
        }),
        "requests": pa.table({"user_id": people[4:], "place": ["w1"] * len(people[4:])}),
    }  # fmt: skip


def decoded(root: str) -> dict[str, str]:
    """Every file under a prefix as one text, Parquet by polars alone."""
    found = {}
    for uri, _ in storage.list_files(root):
        data = storage.read_bytes(uri)
        found[uri] = str(pl.read_parquet(io.BytesIO(data)).to_dicts()) if uri.endswith(".parquet") else str(data)
    return found


def holding(text: str, files: Mapping[str, str]) -> list[str]:
    return [uri for uri, held in files.items() if text in held]


def failure(stage: str, wanted: config.Config) -> str:
    """The one line that a stage fails with."""
    with pytest.raises(Exception) as caught:
        stages.run(stage, wanted, quietly)
    told = user_error_in(caught.value)
    assert told is not None and "\n" not in str(told), caught.value
    return str(told)


@pytest.fixture(scope="module")
def prepared(cluster: Any) -> dict[str, Any]:
    for name, table in raw().items():
        buckets.write_parquet(table, f"{RAW}/{name}.parquet")
    return stages.run("prepare", config.build(SETTINGS), quietly)


@pytest.fixture(scope="module")
def layout() -> Layout:
    return Layout(ROOT)


def test_every_table_has_pseudonyms_and_no_ids(prepared: dict[str, Any], layout: Layout) -> None:
    assert prepared["users"] == USERS + 1 and prepared["new_users"] == 1
    assert prepared["requests"] == len(raw()["requests"])
    for table, users in (
        (layout.histories, [*IDS, "new@example.org"]), (layout.users, [*IDS, "new@example.org"]), (layout.targets, []),
    ):  # fmt: skip
        found = buckets.read_parquet(table)["user_id"]
        assert found.type == pa.string() and sorted(found.to_pylist()) == sorted(map(pseudonym, users))
    asked = {row["user_id"]: row["now_place"] for row in buckets.read_parquet(layout.histories).to_pylist()}
    assert asked[pseudonym(IDS[5])] == "w1" and asked[pseudonym(IDS[0])] is None
    aside = buckets.read_parquet(storage.join(layout.quarantine("prepare"))).to_pylist()
    keys = {row["reason_code"]: row["key"] for row in aside}
    assert keys["unknown_item"] == pseudonym(IDS[0]) and keys["too_few_events"] == pseudonym("lonely@example.org")
    assert keys["null_id"] is None
    files = decoded(ROOT)
    assert len(files) > 10 and not holding("@example.org", files) and not holding("a key of tests", files)
    assert named(IDS[3], layout.rankings, config.build(SETTINGS).privacy, layout) == pseudonym(IDS[3])


def test_candidates_that_are_brought_have_ids(prepared: dict[str, Any], layout: Layout) -> None:
    rows = {"user_id": [*IDS[:9], None], "item_id": [1] * 10}
    buckets.write_parquet(pa.table(rows), f"{RAW}/candidates.parquet")
    wanted = config.build(SETTINGS, ["--bucket.input", f"{RAW}/candidates.parquet"])
    assert stages.run("bucket", wanted, quietly)["users"] == 9
    found = buckets.read_parquet(layout.candidates("brought"))["user_id"].to_pylist()
    assert sorted(found) == sorted(map(pseudonym, IDS[:9]))
    buckets.write_parquet(pa.table({"user_id": found, "item_id": [2] * 9}), f"{RAW}/candidates.parquet")
    wanted = config.build(SETTINGS, ["--bucket.input", f"{RAW}/candidates.parquet", "--privacy.brought", "pseudonyms"])
    stages.run("bucket", wanted, quietly)
    assert buckets.read_parquet(layout.candidates("brought"))["user_id"].to_pylist() == found


def test_columns_that_must_never_leave_are_nowhere(prepared: dict[str, Any], layout: Layout, tmp_path: Path) -> None:
    assert prepared["values_kept_out"] == sum(
        len(set(raw()[table][column].to_pylist()))
        for table, column in (("users", "phone"), ("items", "supplier"), ("interactions", "address"))
    )
    rows = {
        "user_id": IDS[:2],
        "item_id": [1, 2],
        "phone": [5_550_100_000, 5_550_100_001],
        "supplier": ["@wholesale"] * 2,
    }
    buckets.write_parquet(pa.table(rows), f"{RAW}/more.parquet")
    stages.run("bucket", config.build(SETTINGS, ["--bucket.input", f"{RAW}/more.parquet"]), quietly)
    files = decoded(ROOT)
    for value in ("55501000", "@wholesale", "10.0."):
        assert not holding(value, files)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    asked = ["check-privacy", "--config", str(tmp_path / "config.yaml"), "--json", str(tmp_path / "checked.json")]
    done = CliRunner().invoke(cli.app, asked)
    assert done.exit_code == 0, done.output
    found = storage.read_json(str(tmp_path / "checked.json"))
    assert found["found"] == [] and found["files"] == len(files) and found["prompts"] == ITEMS + USERS + 1
    leak = storage.join(ROOT, "runs", "r", "note.json")
    storage.write_json(leak, {"detail": "telephone 5550100003, called"})
    done = CliRunner().invoke(cli.app, asked)
    assert done.exit_code == cli.EXIT_REFUSED and "5550100003" not in done.output and "note.json" in done.output
    storage.delete(leak)


def test_a_value_that_another_column_brings_stops_prepare(prepared: dict[str, Any], tmp_path: Path) -> None:
    tables = raw()
    titles = ["w1 by supplier no. 3@wholesale", *tables["items"]["title"].to_pylist()[1:]]
    items = tables["items"].set_column(1, "title", pa.array(titles))
    buckets.write_parquet(items, str(tmp_path / "items.parquet"))
    wanted = ["--root", str(tmp_path / "root"), "--data.items", str(tmp_path / "items.parquet")]
    told = failure("prepare", config.build(SETTINGS, wanted))
    assert (
        "tables/items/items.parquet, column 'title', holds 1 values of 'supplier'" in told and "wholesale" not in told
    )
    assert not storage.exists(Layout(str(tmp_path / "root")).summary("prepare"))
    assert not storage.list_files(str(tmp_path / "root" / "tables"), ".parquet")
    never = ["--privacy.never", '["phone", "suplier"]', "--root", str(tmp_path / "other")]
    assert "'suplier', a column of none of the inputs" in failure("prepare", config.build(SETTINGS, never))
    assert not storage.list_files(str(tmp_path / "other"))


def test_another_key_stops_before_it_makes_other_users(
    prepared: dict[str, Any], layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = storage.manifest(ROOT)
    monkeypatch.setenv("LLMREC_PSEUDONYM_KEY", "another key, which is long enough as well")
    assert "holds another key" in failure("prepare", config.build(SETTINGS))
    monkeypatch.setenv("OTHER_KEY", os.environ["LLMREC_PSEUDONYM_KEY"])
    fresh = config.build(SETTINGS, ["--root", f"{ROOT}-fresh", "--privacy.key_variable", "OTHER_KEY"])
    assert "OTHER_KEY is not set" in failure("prepare", fresh)  # on the nodes, which started without it
    assert not storage.list_files(f"{ROOT}-fresh")
    after = storage.manifest(ROOT)
    assert [row for row in before if "/summaries/" not in row[0]] == [r for r in after if "/summaries/" not in r[0]]


def test_who_is_forgotten_is_nowhere_and_stays_out_of_the_log(
    prepared: dict[str, Any], layout: Layout, tmp_path: Path
) -> None:
    """The last test here: it takes a user out of the tables."""
    settings = config.build(SETTINGS)
    stages.run("prepare", settings, quietly)  # it was refused another key meanwhile
    stages.run("recall", settings, quietly)
    everyone = list(map(pseudonym, IDS))
    staging.publish(layout.rankings, "before", everyone, pa.string())
    staging.publish(layout.rankings, "now", everyone, pa.string())
    gone, name = IDS[5], pseudonym(IDS[5])
    before = decoded(ROOT)
    places = (
        "histories",
        "users",
        "candidates/merged",
        "candidates/item_item",
        "rankings/runs/before",
        "rankings/runs/now",
    )
    for place in places:
        assert any(place in uri for uri in holding(name, before)), place
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    asked = ["forget", gone, "--config", str(tmp_path / "config.yaml"), "--json", str(tmp_path / "done.json")]
    done = CliRunner().invoke(cli.app, asked)
    assert done.exit_code == 0, done.output
    assert gone not in done.output and name not in done.output
    files = decoded(ROOT)
    assert holding(name, files) == [] and holding(gone, files) == []
    found = storage.read_json(str(tmp_path / "done.json"))
    assert found["left"] == [] and found["searched"] == len(files) and found["runs_deleted"] == ["before"]
    assert pl.read_delta(layout.rankings)["user_id"].unique().sort().to_list() == sorted({*everyone} - {name})
    assert rankings.snapshot(layout.rankings).run_id == "now"
    # The log, which is not ours, has him still.
    again = stages.run("prepare", settings, quietly)
    assert again["set_aside"]["forgotten_user"] == 4 and again["users"] == USERS
    assert again["rows_in"] == again["events_kept"] + sum(again["set_aside"].values())
    buckets.write_parquet(pa.table({"user_id": IDS[4:6], "item_id": [1, 1]}), f"{RAW}/candidates.parquet")
    brought = stages.run("bucket", config.build(SETTINGS, ["--bucket.input", f"{RAW}/candidates.parquet"]), quietly)
    assert brought["set_aside"] == {"forgotten_user": 1} and brought["users"] == 1
    files = decoded(ROOT)
    assert holding(name, files) == [] and len(holding(pseudonym(IDS[4]), files)) > 4
