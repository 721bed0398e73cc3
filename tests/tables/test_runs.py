"""Which runs are there, and which prune deletes."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from staging import commit, stage, write_ledger
from typer.testing import CliRunner

from llmrec import cli, storage
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.tables import rankings, runs

DAY = 86_400


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(str(tmp_path / "root"))


def staged(layout: Layout, run_id: str, complete: bool = True, buckets: int | None = None) -> list[Any]:
    """A run staged by score, of which only the first buckets may be done."""
    files = stage(layout.rankings, run_id, range(40))[:buckets]
    write_ledger(layout, layout.rankings, run_id, files, complete)
    return files


def published(layout: Layout, run_id: str) -> None:
    commit(layout.rankings, run_id, staged(layout, run_id))


def aged(layout: Layout, run_id: str, days: float) -> None:
    """All files of a run last changed so many days ago."""
    for folder in (Path(layout.rankings, "runs", run_id), Path(layout.run(run_id))):
        for file in folder.rglob("*"):
            os.utime(file, (time.time() - days * DAY,) * 2)


def on_disk(layout: Layout) -> set[str]:
    """Runs of which anything is left."""
    found = (Path(layout.rankings, "runs"), Path(layout.runs))
    return {p.name for folder in found if folder.is_dir() for p in folder.iterdir()}


def size_on_disk(layout: Layout, run_id: str) -> int:
    folders = (Path(layout.rankings, "runs", run_id), Path(layout.run(run_id)))
    return sum(f.stat().st_size for folder in folders for f in folder.rglob("*") if f.is_file())


def test_the_newest_published_and_the_young_staged_runs_stay(layout: Layout) -> None:
    for run_id in ("p1", "p2", "p3", "p4"):
        published(layout, run_id)
    staged(layout, "old", complete=False)
    staged(layout, "old-but-busy", complete=False, buckets=1)
    staged(layout, "young")
    for run_id, days in {"p1": 20, "p2": 20, "p3": 20, "p4": 20, "old": 8, "old-but-busy": 8, "young": 6}.items():
        aged(layout, run_id, days)
    write_ledger(layout, layout.rankings, "old-but-busy", stage(layout.rankings, "old-but-busy", range(40))[:2], False)
    sizes = {run_id: size_on_disk(layout, run_id) for run_id in ("p1", "p2", "old")}

    would = runs.prune(layout, layout.rankings, keep=2, dry_run=True)
    assert {r.run_id: r.bytes for r in would.deleted} == sizes and would.bytes == sum(sizes.values())
    assert on_disk(layout) == {"p1", "p2", "p3", "p4", "old", "old-but-busy", "young"}

    done = runs.prune(layout, layout.rankings, keep=2)
    assert done.deleted == would.deleted and not done.dry_run
    assert {r.run_id: r.version for r in done.deleted} == {"p1": 0, "p2": 1, "old": None}
    assert on_disk(layout) == {"p3", "p4", "old-but-busy", "young"} == set(done.kept)
    assert rankings.read(layout.rankings, run_id="p3").num_rows == 120
    with pytest.raises(UserError, match="files of run 'p2' are gone"):
        rankings.read(layout.rankings, run_id="p2")
    assert [(r.run_id, r.files_there) for r in rankings.runs(layout.rankings)] == [
        ("p4", True), ("p3", True), ("p2", False), ("p1", False),
    ]  # fmt: skip
    assert runs.prune(layout, layout.rankings, keep=2).deleted == []
    # Delta's bookkeeping of superseded files does not mind that they are gone.
    DeltaTable(layout.rankings).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    assert rankings.read(layout.rankings).num_rows == 120


def test_the_run_that_is_shown_stays_whatever_its_age(layout: Layout) -> None:
    published(layout, "p1")
    published(layout, "p2")
    published(layout, "p1")  # shown again, so the newest
    aged(layout, "p1", 300)
    aged(layout, "p2", 300)
    done = runs.prune(layout, layout.rankings, keep=1)
    assert [r.run_id for r in done.deleted] == ["p2"] and done.kept == {"p1": "shown"}
    assert rankings.read(layout.rankings).num_rows == 120


def test_a_published_run_that_is_staged_again_is_left_to_its_job(layout: Layout) -> None:
    for run_id in ("p1", "p2"):
        published(layout, run_id)
        aged(layout, run_id, 20)
    assert [r.run_id for r in runs.prune(layout, layout.rankings, keep=1).deleted] == ["p1"]
    files = staged(layout, "p1")
    assert runs.prune(layout, layout.rankings, keep=1).deleted == []
    assert commit(layout.rankings, "p1", files).new


@pytest.mark.parametrize(("seconds", "deleted"), [(0.0005, ["p1"]), (0.002, [])])
def test_a_file_of_the_commits_own_millisecond_was_there_before_it(
    layout: Layout, seconds: float, deleted: list[str]
) -> None:
    published(layout, "p1")
    aged(layout, "p1", 20)
    moment = rankings.runs(layout.rankings)[0].time.timestamp() + seconds
    os.utime(next(Path(layout.run("p1")).rglob("*.json")), (moment, moment))
    published(layout, "p2")
    assert [r.run_id for r in runs.prune(layout, layout.rankings, keep=1).deleted] == deleted


def test_an_evaluation_does_not_make_a_run_younger(layout: Layout) -> None:
    """Every run has one after it was published, and is no longer at work for that."""
    for run_id in ("p1", "p2"):
        published(layout, run_id)
        aged(layout, run_id, 20)
        for uri in layout.evaluation_of(run_id):
            storage.write_bytes(uri, b"{}")
    done = runs.prune(layout, layout.rankings, keep=1)
    assert [r.run_id for r in done.deleted] == ["p1"] and on_disk(layout) == {"p2"}


def test_a_run_being_staged_is_left_alone_and_can_be_published(layout: Layout) -> None:
    """prune between any two buckets of a run; an old published run goes meanwhile."""
    for run_id in ("p1", "p2"):
        published(layout, run_id)
        aged(layout, run_id, 20)
    files = []
    for file in stage(layout.rankings, "new", range(40)):
        files.append(file)
        write_ledger(layout, layout.rankings, "new", files, complete=False)
        runs.prune(layout, layout.rankings, keep=1)
    assert on_disk(layout) == {"p2", "new"}
    assert len(storage.list_files(layout.ledger("new"))) == len(files) == 4
    assert commit(layout.rankings, "new", files).new
    assert rankings.read(layout.rankings).num_rows == 120


@pytest.mark.parametrize("what", ["published", "resumed"])
def test_a_run_that_changes_while_prune_is_at_work_stays(
    what: str, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(layout, "p1")
    files = staged(layout, "s1")
    aged(layout, "s1", 20)
    look = runs.of_table

    def then(*arguments: Any) -> Any:
        found = look(*arguments)
        if what == "published":
            commit(layout.rankings, "s1", files)
        else:
            write_ledger(layout, layout.rankings, "s1", files[:1])
        return found

    monkeypatch.setattr(runs, "of_table", then)
    assert runs.prune(layout, layout.rankings).deleted == []
    assert "s1" in on_disk(layout) and storage.exists(layout.run_summary("s1"))


def test_runs_of_another_table_under_the_same_root_stay(layout: Layout) -> None:
    published(layout, "p1")
    other = layout.root + "/elsewhere"
    write_ledger(layout, other, "theirs", stage(other, "theirs", range(40)))
    write_ledger(layout, other, "theirs-unfinished", stage(other, "theirs-unfinished", range(40)), complete=False)
    for run_id in ("theirs", "theirs-unfinished"):
        aged(layout, run_id, 20)
    assert runs.prune(layout, layout.rankings).deleted == []
    assert runs.unpublished(layout, layout.rankings, layout.candidates()) == []
    assert {r.run_id for r in runs.unpublished(layout, other, layout.candidates())} == {"theirs", "theirs-unfinished"}
    assert len(storage.list_files(layout.runs)) == 5 + 5 + 4


def test_files_without_a_ledger_and_a_ledger_without_files_go_too(layout: Layout) -> None:
    """What a prune leaves that was cut off, and what someone left who deleted the files by hand."""
    published(layout, "p1")
    stage(layout.rankings, "no-ledger", range(40))
    staged(layout, "no-files")
    storage.delete(layout.rankings + "/runs/no-files")
    for run_id in ("no-ledger", "no-files"):
        aged(layout, run_id, 20)
    assert {r.run_id for r in runs.prune(layout, layout.rankings).deleted} == {"no-ledger", "no-files"}
    assert on_disk(layout) == {"p1"}


@pytest.mark.parametrize(("keep", "days"), [(0, 7), (5, 0), (5, -1)])
def test_what_could_delete_the_shown_run_or_a_running_one_is_refused(layout: Layout, keep: int, days: float) -> None:
    with pytest.raises(UserError, match="keep at least 1 published run, and give running jobs more than 0 days"):
        runs.prune(layout, layout.rankings, keep, days)


def test_prune_on_the_object_store(store: Any) -> None:
    layout = Layout("s3://llmrec-test/prune")
    for run_id in ("p1", "p2"):
        published(layout, run_id)
    staged(layout, "s1", complete=False)
    assert [r.run_id for r in runs.prune(layout, layout.rankings, keep=1, dry_run=True).deleted] == ["p1"]
    later = time.time() + 8 * DAY
    done = runs.prune(layout, layout.rankings, keep=1, now=later)
    assert {r.run_id for r in done.deleted} == {"p1", "s1"} and done.bytes > 0
    left = [uri for uri, _ in storage.list_files(layout.root) if "_delta_log" not in uri]
    assert len(left) == 9 and all("/runs/p2/" in uri for uri in left)
    assert rankings.read(layout.rankings).num_rows == 120
    with pytest.raises(UserError, match="files of run 'p1' are gone"):
        rankings.read(layout.rankings, run_id="p1")


def test_staged_runs_say_how_far_they_are(layout: Layout) -> None:
    published(layout, "p1")
    staged(layout, "half", complete=False, buckets=2)
    staged(layout, "whole")
    aged(layout, "half", 3)
    found = runs.unpublished(layout, layout.rankings, layout.candidates())
    assert [(r.run_id, r.finished, r.buckets, r.share, r.complete) for r in found] == [
        ("whole", 4, 4, 1.0, True), ("half", 2, None, None, False),
    ]  # fmt: skip
    assert found[0].bytes == size_on_disk(layout, "whole")
    assert abs(found[1].newest.timestamp() - time.time() + 3 * DAY) < 60
    for b in range(8):
        storage.write_bytes(f"{layout.candidates()}/bucket-{b:05d}.parquet", b"")
    (half,) = (r for r in runs.unpublished(layout, layout.rankings, layout.candidates()) if r.run_id == "half")
    assert (half.finished, half.buckets, half.share) == (2, 8, 0.25)


def called(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, list(arguments), catch_exceptions=True)


def test_the_command_line_lists_and_prunes(layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))
    for run_id in ("p1", "p2"):
        published(layout, run_id)
    staged(layout, "s1", complete=False)
    aged(layout, "s1", 20)

    listed = json.loads(called("runs", "--root", layout.root, "--json").stdout)
    assert [(r["run_id"], r["version"], r["rows"], r["files_there"]) for r in listed["published"]] == [
        ("p2", 1, 120, True), ("p1", 0, 120, True),
    ]  # fmt: skip
    assert [(r["run_id"], r["finished"]) for r in listed["staged"]] == [("s1", 4)]
    assert datetime.fromisoformat(listed["published"][0]["time"]).tzinfo == UTC
    text = called("runs", "--root", layout.root).stdout
    for part in ("p1", "p2", "shown", "can be read", "s1", "4 of unknown", "unfinished"):
        assert part in text

    would = called("prune", "--root", layout.root, "--keep", "1", "--dry-run")
    assert "runs to be deleted: 2" in would.stdout and on_disk(layout) == {"p1", "p2", "s1"}
    done = json.loads(called("prune", "--root", layout.root, "--keep", "1", "--json").stdout)
    assert {r["run_id"] for r in done["deleted"]} == {"p1", "s1"} and done["kept"] == {"p2": "shown"}
    assert on_disk(layout) == {"p2"}
    assert "pruned" in called("runs", "--root", layout.root).stdout
    nothing = called("runs", "--root", str(tmp_path / "nothing"))
    assert isinstance(nothing.exception, UserError) and "no run is published or staged" in str(nothing.exception)
