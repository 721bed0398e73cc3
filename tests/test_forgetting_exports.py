"""Forgetting where a configuration says that something was exported to, and what killed writers left. No cluster."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import staging

from llmrec import config, storage
from llmrec.engine import forget
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.tables import buckets, export, key_value, rankings, redis_lists

GONE, OTHERS = "user-007@example.org", [f"user-{u:03d}@example.org" for u in range(5)]


def written(folder: Path, **of_export: Any) -> config.Config:
    """A root that shows a run, without its ledger."""
    settings = config.build({"root": str(folder / "root"), "export": of_export})
    layout, users = Layout.of(settings), pa.array([*OTHERS, GONE])
    buckets.write_parquet(pa.table({"user_id": users}), buckets.bucket_file(layout.histories, 0))
    staging.publish(layout.rankings, "shown", users.to_pylist(), pa.string())
    return settings


def forgotten(settings: config.Config, user: str = GONE) -> forget.Done:
    layout = Layout.of(settings)
    return forget.forget(settings, layout, forget.named(settings, layout, [user]), [], lambda message: None)


@pytest.mark.parametrize("form", ["rows", "json_lines"])
def test_the_export_of_the_configuration_is_written_again_and_what_is_no_export_stays(
    tmp_path: Path, form: Any
) -> None:
    target = tmp_path / "plain"
    settings = written(tmp_path, target=str(target))
    layout = Layout.of(settings)
    export.export(rankings.snapshot(layout.rankings), str(target), form=form)
    (target / "mine.txt").write_text(GONE)
    who = forget.named(settings, layout, [GONE])
    assert [place for place in forget.search(settings, layout, who)[1] if place.startswith(str(target))]
    done = forgotten(settings)
    assert done.left == [] and str(target) in {removed.place for removed in done.removed}
    made = json.loads((target / "_manifest.json").read_text())
    data = [(target / file["path"]).read_bytes() for file in made["files"]]
    assert [hashlib.sha256(part).hexdigest() for part in data] == [file["sha256"] for file in made["files"]]
    read = pl.read_parquet if form == "rows" else pl.read_ndjson
    shown = pl.concat([read(part) for part in data])
    assert sorted(shown["user_id"].unique()) == OTHERS and len(shown) == made["rows"]
    assert (target / "mine.txt").read_text() == GONE


@pytest.mark.parametrize("place", ["runs/{run}/bucket={bucket}/bucket-{bucket:05d}", "runs/{run}/bucket-{bucket:05d}"])
def test_polars_reads_what_is_shown_then_wherever_its_files_lie(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second place is where an earlier version put them."""
    monkeypatch.setattr(rankings, "staged_path", lambda run, bucket: place.format(run=run, bucket=bucket) + ".parquet")
    settings = written(tmp_path)
    layout = Layout.of(settings)
    files = staging.stage(layout.rankings, "waits", [*OTHERS, GONE], pa.string())
    staging.write_ledger(layout, layout.rankings, "waits", files)
    done = forgotten(settings)
    assert done.left == [] and {"rankings", "rankings/runs/waits"} <= {removed.place for removed in done.removed}
    shown = pl.read_delta(layout.rankings)
    assert sorted(shown["user_id"].unique()) == OTHERS
    assert shown["bucket"].null_count() == (0 if "=" in place else len(shown))


def test_an_export_that_was_cut_off_and_one_that_never_was(tmp_path: Path) -> None:
    target = tmp_path / "plain"
    settings = written(tmp_path, target=str(target))
    assert forgotten(settings, OTHERS[0]).left == [] and not target.exists()
    export.export(rankings.snapshot(Layout.of(settings).rankings), str(target))
    (target / "_manifest.json").unlink()
    assert forgotten(settings).left == []
    files = list(target.rglob("*.parquet"))
    assert sorted(pl.read_parquet(files)["user_id"].unique()) == OTHERS[1:]
    (target / "_manifest.json").write_text("{}")
    with pytest.raises(UserError, match="not the manifest of an export"):
        forgotten(settings)


def test_parts_of_files_that_killed_writers_left_go(tmp_path: Path) -> None:
    settings = written(tmp_path)
    layout = Layout.of(settings)
    left = [f"{buckets.bucket_file(layout.histories, 0)}.4711.tmp", f"{layout.rankings}/x.parquet.12.tmp"]
    for uri in left:
        storage.write_bytes(uri, GONE.encode())
    storage.write_bytes(f"{layout.root}/notes.tmp", b"mine")
    done = forgotten(settings)
    assert done.left == [] and not any(map(storage.exists, left)) and storage.exists(f"{layout.root}/notes.tmp")
    removed = {(r.place, r.what): r.files for r in done.removed}
    assert removed["tables/histories", "deleted"] == 1
    assert removed["rankings", "deleted"] == 2  # and his bucket, as it was


def test_his_lists_in_the_redis_server_of_the_configuration_go(tmp_path: Path, redis_server: Any) -> None:
    settings = written(tmp_path, form="redis", redis={"url": redis_server.url, "prefix": "shop"})
    layout, found = Layout.of(settings), redis_server.client()
    users, values = key_value.json_values(rankings.read(layout.rankings).select(key_value.COLUMNS))
    for version in ("a-v0", "b-v1"):
        with redis_lists.connected(settings.export.redis) as client:
            redis_lists.write(client, settings.export.redis, version, users, values)
            redis_lists.serve(client, settings.export.redis, version)
    place = f"{redis_server.url}, shop:*"
    assert place in forget.search(settings, layout, forget.named(settings, layout, [GONE]))[1]
    done = forgotten(settings)
    assert done.left == [] and [(r.files, r.rows) for r in done.removed if r.place == place] == [(0, 2)]
    assert not [key for key in found.keys("*") if GONE in key] and len(found.keys("shop:b-v1:*")) == len(OTHERS)
    assert found.get("shop:current") == "b-v1"


def test_a_redis_server_that_is_away_is_told_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("redis")
    settings = written(tmp_path, redis={"url": "redis://127.0.0.1:9/0"})
    with pytest.raises(UserError, match=r"redis://127\.0\.0\.1:9/0: no answer") as caught:
        forgotten(settings)
    assert "\n" not in str(caught.value)
