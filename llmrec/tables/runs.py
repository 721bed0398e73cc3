"""What lies of each run of a rankings table: staged and not published, and what may be deleted."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from llmrec import storage
from llmrec.errors import UserError
from llmrec.layout import EVALUATION, REPORT, Layout
from llmrec.storage import Listed
from llmrec.tables import rankings
from llmrec.tables.rankings import STAGED, Commit

DAY = 86_400.0
AFTERWARDS = (f"/{EVALUATION}", f"/{REPORT}")  # what says of a run that it is over, not that a job is at it
COMMIT_SECONDS = 0.001  # Delta Lake keeps the milliseconds of a commit's time and drops what is finer


@dataclass(frozen=True)
class RunFiles:
    """The files of one run: buckets staged under the table, and its own folder with the ledger and the summary."""

    run_id: str
    staged: list[Listed]
    folder: list[Listed]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(f.size for f in (*self.staged, *self.folder))

    @property
    def newest(self) -> float:
        """Seconds since 1970 of the last change to any of them, its evaluation left out if there is anything else."""
        files = [*self.staged, *self.folder]
        return max(f.modified for f in [f for f in files if not f.uri.endswith(AFTERWARDS)] or files)


@dataclass(frozen=True)
class StagedRun:
    """A run that was not published.

    finished: buckets with a ledger entry; buckets: of how many, None if unknown; share: the one of the other.
    """

    run_id: str
    finished: int
    buckets: int | None
    share: float | None
    complete: bool
    newest: datetime
    bytes: int


@dataclass(frozen=True)
class PrunedRun:
    """version: where the run was published last, None if it never was; newest: as of `RunFiles`."""

    run_id: str
    version: int | None
    newest: datetime
    files: int
    bytes: int


@dataclass(frozen=True)
class Pruned:
    """What prune deleted, or would delete. kept: runs that stay, with the reason."""

    table: str
    dry_run: bool
    deleted: list[PrunedRun]
    kept: dict[str, str]
    bytes: int


def of_table(layout: Layout, table: str) -> dict[str, RunFiles]:
    """run_id -> files of every run of this table. Runs under the same root that rank into another table are not his."""
    staged = _by_run(storage.join(table, STAGED))
    folders = _by_run(layout.runs)
    found = {}
    for run_id in {**staged, **folders}:
        # Files under the table tell whose run it is; where there are none, only the summary of a finished one does.
        if run_id in staged or _output(layout, run_id) == storage.absolute(table):
            found[run_id] = RunFiles(run_id, staged.get(run_id, []), folders.get(run_id, []))
    return found


def unpublished(layout: Layout, table: str, candidates: str) -> list[StagedRun]:
    """Runs that are staged and that the table never showed, newest first.

    candidates: the table that they score; a run that is under way will have as many buckets.
    """
    published = rankings.latest(rankings.log(table))
    expected = len([uri for uri, _ in storage.list_files(candidates, ".parquet") if "/bucket-" in uri]) or None
    found = []
    for run in sorted(of_table(layout, table).values(), key=lambda r: -r.newest):
        if run.run_id in published:
            continue
        summary, ledger = layout.run_summary(run.run_id), layout.ledger(run.run_id) + "/"
        complete = any(f.uri == summary for f in run.folder)
        finished = sum(f.uri.startswith(ledger) and f.uri.endswith(".json") for f in run.folder)
        buckets = storage.read_json(summary)["staged"] if complete else expected
        share = finished / buckets if buckets else None
        newest = datetime.fromtimestamp(run.newest, UTC)
        found.append(StagedRun(run.run_id, finished, buckets, share, complete, newest, run.size))
    return found


def prune(
    layout: Layout, table: str, keep: int = 5, days: float = 7, dry_run: bool = False, now: float | None = None
) -> Pruned:
    """Delete the files of old runs: the newest `keep` published ones stay, and every other that is younger than `days`.

    A run's age counts from the last change to any of its files but its evaluation. A published run that was staged
    again since is judged by its age too, as a job may be at it. What the table shows is always among those that stay.

    now: seconds since 1970.

    Raises:
        UserError: keep or days are not positive, or the table's newest commit is not one of ours.
    """
    if keep < 1 or days <= 0:
        raise UserError(
            f"keep = {keep}, days = {days:g}: keep at least 1 published run, and give running jobs more than 0 days"
        )
    moment = time.time() if now is None else now
    published = rankings.latest(rankings.log(table))
    kept, deleted = {}, []
    for run in of_table(layout, table).values():
        reason = _why_kept(run, published, keep, days, moment)
        if reason is None and not dry_run:
            # It may have been resumed or published since we looked.
            run = _of_run(layout, table, run.run_id)
            reason = _why_kept(run, rankings.latest(rankings.log(table)), keep, days, moment)
        if reason is not None:
            kept[run.run_id] = reason
            continue
        if not dry_run:
            storage.delete(layout.run(run.run_id))  # first, so that no ledger speaks of files that are gone
            storage.delete(storage.join(table, STAGED, run.run_id))
        commit = published.get(run.run_id)
        newest = datetime.fromtimestamp(run.newest, UTC)
        files = len(run.staged) + len(run.folder)
        deleted.append(PrunedRun(run.run_id, commit.version if commit else None, newest, files, run.size))
    return Pruned(table, dry_run, deleted, kept, sum(r.bytes for r in deleted))


def _why_kept(run: RunFiles, published: Mapping[str, Commit], keep: int, days: float, now: float) -> str | None:
    commit = published.get(run.run_id)
    if run.run_id in list(published)[:keep]:
        return "shown" if run.run_id == next(iter(published)) else f"among the newest {keep} published"
    if not (run.staged or run.folder):
        return "deleted by someone else"
    if commit and run.newest < commit.time.timestamp() + COMMIT_SECONDS:
        return None
    return f"younger than {days:g} days" if run.newest > now - days * DAY else None


def _of_run(layout: Layout, table: str, run_id: str) -> RunFiles:
    staged = storage.list_details(storage.join(table, STAGED, run_id))
    return RunFiles(run_id, staged, storage.list_details(layout.run(run_id)))


def _by_run(prefix: str) -> dict[str, list[Listed]]:
    found = defaultdict(list)
    prefix = storage.absolute(prefix)
    for file in storage.list_details(prefix):
        found[file.uri.removeprefix(prefix + "/").split("/", 1)[0]].append(file)
    return found


def _output(layout: Layout, run_id: str) -> str | None:
    """The table that a finished run was staged for."""
    summary = layout.run_summary(run_id)
    return storage.absolute(storage.read_json(summary)["output"]) if storage.exists(summary) else None
