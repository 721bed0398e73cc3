"""A user taken out of every table by one command, cut off or not: every byte under the root is searched. No cluster."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import staging
from typer.testing import CliRunner

from llmrec import cli, config, storage
from llmrec.engine import forget, ledger, publish
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.tables import augmentations, buckets, export, forgotten, rankings
from llmrec.tables.rankings import StagedFile

BUCKETS = staging.BUCKETS
GONE, ALONE = "user-007@example.org", "user-alone@example.org"
USERS = [f"user-{u:03d}@example.org" for u in range(12)]
STRING = pa.string()
CUT_EVERY = 17  # at any change it holds, which takes minutes to see


def bucketed(table: str, rows: pa.Table) -> None:
    which = buckets.bucket_of(rows["user_id"], BUCKETS)
    for b in range(BUCKETS):
        buckets.write_parquet(rows.filter(pa.array(which == b)), buckets.bucket_file(table, b))


def with_ledger(layout: Layout, table: str, run_id: str, files: list[StagedFile], reasons: bool = False) -> None:
    for f in files:
        users = f.rows // 3
        counts = dict.fromkeys(ledger.ENDS, 0) | {"pairs_in": f.rows, "ranked": f.rows, "scored": f.rows}
        entry = ledger.Entry(f.bucket, f.path, f.size, f.rows, users, counts, 1.0, None, 1, None)
        if reasons:
            told = {**asdict(entry), "counts": {}, "examples": [{"user": GONE, "reason": "you had w1"}, {"user": "x"}]}
            storage.write_json(f"{layout.ledger(run_id)}/bucket-{f.bucket:05d}.json", told)
        else:
            ledger.write(layout, run_id, entry)
    if not reasons:
        ledger.write_table(layout, run_id, ledger.read(layout, run_id))
    about = {"output": table, "staged": len(files), "buckets": BUCKETS, "run_id": run_id}
    examples = [{"user": GONE, "reason": "you had w1"}, {"user": USERS[0], "reason": "-"}]
    storage.write_json(layout.run_summary(run_id), about | {"examples": examples})


def staged(layout: Layout, table: str, run_id: str, users: list[str], reasons: bool = False) -> list[StagedFile]:
    files = staging.stage(table, run_id, users, STRING)
    with_ledger(layout, table, run_id, files, reasons)
    return files


def written(root: str) -> config.Config:
    """A root after some runs: old, shown, staged, unfinished ones, reasons, texts, quarantine, a page, leavings."""
    layout = Layout(root)
    everyone, aside = [*USERS, ALONE], [GONE, USERS[1]]
    plain = pa.table(
        {"user_id": everyone, "item_ids": [[1, 2]] * 13, "timestamps": [[5, 6]] * 13, "train_length": [1] * 13}
    )
    texts = pa.table({"user_id": everyone, "text": [f"likes {u[5:8]}" for u in everyone], "content_hash": [
        hashlib.md5(u.encode()).hexdigest() for u in everyone
    ]})  # fmt: skip
    for table in (layout.users, layout.histories, layout.targets, layout.candidates(), layout.candidates("mine")):
        bucketed(table, plain)
    bucketed(layout.queries, plain)
    bucketed(layout.user_augmentations, texts)
    rows = {"content_hash": texts["content_hash"], "text": texts["text"], "reason": [""] * 13, "detail": [""] * 13}
    augmentations.add(layout.generated("users"), pa.table(rows))
    detail = {"reason_code": ["r"] * 2, "detail": ["-"] * 2, "source_file": ["f"] * 2}
    for path in ("prepare/bucket-00001", "score/shown/bucket-00001-reading", "recall/bucket-00000", "augment/users/b"):
        buckets.write_parquet(pa.table({"key": aside, **detail}), f"{layout.quarantine(path)}.parquet")
    for run_id in ("old", "shown"):
        files = staged(layout, layout.rankings, run_id, everyone)
        staging.commit(layout.rankings, run_id, files, STRING)
    for run_id in ("shown", "ready"):
        bucketed(layout.score_parts(run_id), plain)
        bucketed(f"{layout.run(run_id)}/users", plain)
    staged(layout, layout.rankings, "ready", everyone)
    staging.stage(layout.rankings, "unfinished", everyone, STRING)
    storage.write_json(f"{layout.run('unfinished')}/plan.json", {"output": layout.rankings})
    reasons = staged(layout, layout.reasons, "shown-1", everyone, reasons=True)
    rankings.publish(layout.reasons, reasons, BUCKETS, staging.rows("", {}, STRING).schema, "shown-1", "reasons")
    storage.write_json(layout.summary("explain"), {"summary": {"examples": [{"user": GONE}, {"user": USERS[2]}]}})
    for page in (layout.report, layout.evaluation_of("shown")[1]):
        storage.write_bytes(page, f"<h3>user {GONE}</h3>".encode())
    storage.write_bytes(f"{layout.scratch('bucket')}/shard", GONE.encode())
    export.export(rankings.snapshot(layout.rankings), f"{root}-export")
    raw = f"{root}/raw/log.parquet"
    buckets.write_parquet(pa.table({"user_id": everyone}), raw)
    return config.build({"root": root, "data": {"interactions": raw}})


def holding(text: str, *roots: str) -> list[str]:
    """Files in which a text is, Parquet decoded by polars, the raw input left out."""
    found = []
    for root in roots:
        for uri, _ in storage.list_files(root):
            data = storage.read_bytes(uri)
            held = str(pl.read_parquet(io.BytesIO(data)).to_dicts()) if uri.endswith(".parquet") else str(data)
            if text in held and not uri.endswith("raw/log.parquet"):
                found.append(uri)
    return found


def run(settings: config.Config, user: str = GONE) -> forget.Done:
    layout = Layout.of(settings)
    who = forget.named(settings, layout, [user])
    return forget.forget(settings, layout, who, [f"{settings.root}-export"], lambda message: None)


def check(settings: config.Config, before: pa.Table, user: str = GONE) -> None:
    """He is nowhere, and everyone else is where he was, in tables that jobs and readers take."""
    layout = Layout.of(settings)
    assert holding(user, settings.root, f"{settings.root}-export") == []
    others = [u for u in [*USERS, ALONE] if u != user]
    tables = (
        layout.users,
        layout.histories,
        layout.targets,
        layout.candidates(),
        layout.queries,
        layout.score_parts("ready"),
    )
    for table in tables:
        assert sorted(buckets.read_parquet(table)["user_id"].to_pylist()) == others
        assert len(buckets.bucket_files(table)) == BUCKETS
    shown = before.filter(pa.compute.not_equal(before["user_id"], user))
    assert rankings.read(layout.rankings).equals(shown) and rankings.snapshot(layout.rankings).run_id == "shown"
    assert len(pl.read_delta(layout.rankings)) == shown.num_rows
    assert [r.run_id for r in rankings.runs(layout.rankings) if r.files_there] == ["shown"]
    for run_id in ("shown", "ready"):
        _, entries = publish.complete(layout, run_id)
        for entry in entries.values():
            if entry.rows:
                data = Path(layout.rankings, entry.path).read_bytes()
                assert (len(data), len(pl.read_parquet(io.BytesIO(data)))) == (entry.size, entry.rows)
        assert sum(e.users for e in entries.values()) == len(others)
    assert sorted(rankings.read(layout.reasons)["user_id"].unique().to_pylist()) == others
    made = json.loads(Path(f"{settings.root}-export", "_manifest.json").read_text())
    files = [Path(f"{settings.root}-export", f["path"]) for f in made["files"]]
    assert [hashlib.sha256(f.read_bytes()).hexdigest() for f in files] == [f["sha256"] for f in made["files"]]
    assert made["rows"] == sum(f["rows"] for f in made["files"]) == len(pl.read_parquet(files)) == shown.num_rows
    texts = {
        row["text"]
        for uri, _ in storage.list_files(layout.generated("users"))
        for row in pl.read_parquet(uri).to_dicts()
    }
    assert texts == {f"likes {u[5:8]}" for u in others}
    list_of = forgotten.read(layout)
    assert list_of is not None and list_of.among(pa.array([user, *others, None])).tolist() == [True] + [False] * 13
    assert publish.publish(layout, "ready").rows == shown.num_rows  # last: it shows another run


def test_a_user_is_nowhere_afterwards_and_all_others_are(tmp_path: Path) -> None:
    settings = written(str(tmp_path / "root"))
    layout = Layout.of(settings)
    before, raw = rankings.read(layout.rankings), storage.manifest(settings.data.interactions)
    assert len(holding(GONE, settings.root)) > 25
    kept = {uri: tag for uri, _, tag in storage.manifest(settings.root)}
    done = run(settings)
    assert done.left == [] and done.searched > 60 and done.users == 1
    assert done.runs_deleted == ["old", "unfinished"]
    removed = {(r.place, r.what): (r.files, r.rows) for r in done.removed}
    assert removed["tables/histories", "rows taken out"] == removed["runs/shown/parts", "rows taken out"] == (1, 1)
    assert removed["rankings", "rows taken out"] == (1, 3) and removed["rankings", "deleted"] == (1, 3)
    assert removed["quarantine/prepare", "rows taken out"] == (1, 1) and removed[
        "generated/users", "rows taken out"
    ] == (1, 1)
    # Only his buckets were written again, and not the input.
    now = {uri: tag for uri, _, tag in storage.manifest(settings.root)}
    (his,) = buckets.bucket_of(pa.array([GONE]), BUCKETS)
    for table in (layout.histories, layout.candidates("mine")):
        changed = {uri for uri in kept if uri.startswith(table) and now[uri] != kept[uri]}
        assert changed == {buckets.bucket_file(table, his)}
    assert storage.manifest(settings.data.interactions) == raw
    check(settings, before)
    assert storage.read_json(layout.summary("explain"))["summary"]["examples"] == [{"user": USERS[2]}]


def test_who_is_alone_in_his_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = buckets.bucket_of
    monkeypatch.setattr(sys.modules[__name__], "BUCKETS", 64)
    monkeypatch.setattr(staging, "BUCKETS", 64)
    assert of(pa.array([ALONE]), 64)[0] not in of(pa.array(USERS), 64)
    settings = written(str(tmp_path / "root"))
    before = rankings.read(Layout.of(settings).rankings)
    assert run(settings, ALONE).left == []
    check(settings, before, ALONE)


def test_an_export_of_json_lines_loses_his_line(tmp_path: Path) -> None:
    settings, target = written(str(tmp_path / "root")), str(tmp_path / "lines")
    layout = Layout.of(settings)
    export.export(rankings.snapshot(layout.rankings), target, form="json_lines")
    before = storage.read_json(f"{target}/_manifest.json")
    who = forget.named(settings, layout, [GONE])
    assert len(holding(GONE, target)) == 1 and forget.search(settings, layout, who, [target])[1]
    done = forget.forget(settings, layout, who, [target], lambda message: None)
    assert done.left == [] and holding(GONE, target) == []
    made = storage.read_json(f"{target}/_manifest.json")
    lines = [Path(target, f["path"]).read_bytes() for f in made["files"]]
    assert [hashlib.sha256(data).hexdigest() for data in lines] == [f["sha256"] for f in made["files"]]
    assert [data.count(b"\n") for data in lines] == [f["rows"] for f in made["files"]]
    assert made["rows"] == before["rows"] - 1 == len(USERS)
    told = [json.loads(line) for data in lines for line in data.splitlines()]
    assert sorted(of["user_id"] for of in told) == sorted([u for u in USERS if u != GONE] + [ALONE])


def test_in_an_object_store(store: Any) -> None:
    settings = written("s3://llmrec-test/forget/root")
    layout = Layout.of(settings)
    before = rankings.read(layout.rankings)
    done = run(settings)
    assert done.left == [] and done.runs_deleted == ["old", "unfinished"]
    assert holding(GONE, settings.root, f"{settings.root}-export") == []
    shown = before.filter(pa.compute.not_equal(before["user_id"], GONE))
    assert rankings.read(layout.rankings).equals(shown)
    assert publish.publish(layout, "ready").rows == shown.num_rows


def changing(monkeypatch: pytest.MonkeyPatch, before: Callable[[], None]) -> None:
    """Call something before each change to the store."""
    for module, name in ((storage, "write_bytes"), (storage, "delete"), (rankings, "rewrite")):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, original=original, **k: (before(), original(*a, **k))[1])


def test_cut_off_anywhere_the_same_command_finishes(tmp_path: Path) -> None:
    settings = written(str(tmp_path / "root"))
    before = rankings.read(Layout.of(settings).rankings)
    for place in ("root", "root-export"):
        shutil.copytree(tmp_path / place, tmp_path / "kept" / place)
    seen = 0

    def cut(at: int) -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            raise KeyboardInterrupt

    cuts = [0]  # once to its end, to know how many changes there are
    while cuts:
        at, seen = cuts.pop(), 0
        for place in ("root", "root-export"):
            shutil.rmtree(tmp_path / place)
            shutil.copytree(tmp_path / "kept" / place, tmp_path / place)
        with pytest.MonkeyPatch.context() as patch:
            changing(patch, partial(cut, at))
            with pytest.raises(KeyboardInterrupt) if at else contextlib.nullcontext():
                run(settings)
        if not at:
            assert seen > 40
            cuts = [2, *range(3, seen, CUT_EVERY)]
        assert run(settings).left == []
        check(settings, before)


def test_ids_that_are_numbers_and_a_file_of_them(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path / "root"))
    table = pa.table({"user_id": [7, 8, 77], "item_ids": [[7]] * 3})
    buckets.write_parquet(table, buckets.bucket_file(layout.histories, 0))
    rows = {"key": ["7", "8"], "reason_code": ["r"] * 2, "detail": ["item=7"] * 2, "source_file": ["f"] * 2}
    buckets.write_parquet(pa.table(rows), f"{layout.quarantine('score/r')}/b.parquet")
    of_items = f"{layout.quarantine('prepare')}/items.parquet"
    buckets.write_parquet(pa.table(rows), of_items)  # items of the same ids
    (tmp_path / "list.txt").write_text("7\n\n77\n")
    buckets.write_parquet(pa.table({"user_id": [8]}), str(tmp_path / "list.parquet"))

    def called(*arguments: str) -> Any:
        return CliRunner().invoke(cli.app, ["forget", "--root", layout.root, *arguments])

    told = called("7", "--dry-run")
    assert told.exit_code == 0 and "2 hold" in told.output and buckets.read_parquet(layout.histories).num_rows == 3
    done = called("--users", str(tmp_path / "list.txt"), "--json", str(tmp_path / "done.json"))
    assert done.exit_code == 0, done.output
    assert storage.read_json(str(tmp_path / "done.json"))["users"] == 2
    assert buckets.read_parquet(layout.histories)["user_id"].to_pylist() == [8]
    assert pl.read_parquet(f"{layout.quarantine('score/r')}/b.parquet")["key"].to_list() == ["8"]
    assert pl.read_parquet(of_items)["key"].to_list() == ["7", "8"]
    assert called("--users", str(tmp_path / "list.parquet")).exit_code == 0
    assert buckets.read_parquet(layout.histories).num_rows == 0
    for arguments, words in (([], "nobody is named"), (["anna"], "user 'anna': ids in the log are int64")):
        with pytest.raises(UserError, match=words):
            forget.named(config.build({"root": layout.root}), layout, arguments)
