"""A published run as plain Parquet: Hive-partitioned files, and a manifest that is written last and swapped whole.

    <target>/_manifest.json                                    which run, every file with size, rows and content hash
    <target>/<run_id>-v<version>/bucket=00042/part.parquet     the rows of a bucket, by user and rank

The next export writes beside the files that a reader of the manifest before may still be reading; only the one after
it deletes them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from llmrec import storage
from llmrec.errors import UserError
from llmrec.schema import BUCKET
from llmrec.tables import rankings
from llmrec.tables.buckets import parquet_bytes
from llmrec.tables.rankings import Snapshot

MANIFEST = "_manifest.json"
WRITERS = 4  # buckets in flight: writing to a store is mostly waiting
_FILE = re.compile(r"([^/]+)/bucket=\d{5}/part\.parquet(\.\d+\.tmp)?")


@dataclass(frozen=True)
class ExportedFile:
    """path: relative to the target."""

    path: str
    bytes: int
    rows: int
    sha256: str


@dataclass(frozen=True)
class Exported:
    """What the manifest says. new: false if the target held this run already."""

    target: str
    run_id: str
    files: int
    rows: int
    bytes: int
    new: bool


def export(run: Snapshot, target: str, overwrite: bool = False) -> Exported:
    """Write a run under `target`, the manifest last. A run that is there already is left as it is.

    overwrite: replace another run's export. Its files stay until the next one, so that its readers come to an end.

    Raises:
        UserError: the target lies in the table, holds files that are no export, or holds another run's export and
            `overwrite` is not set.
    """
    target, folder = storage.absolute(target), f"{run.run_id}-v{run.version}"
    here = {uri.removeprefix(target + "/"): size for uri, size in storage.list_files(target)}
    before = manifest(target) if MANIFEST in here else None
    _check(run, target, folder, here, before, overwrite)
    if before is not None and before["folder"] == folder and _whole(before, here):
        return _exported(target, before, new=False)
    with ThreadPoolExecutor(WRITERS) as pool:
        written = [f for f in pool.map(partial(_write, run, target, folder), range(run.buckets)) if f is not None]
    previous = None
    if before is not None and before["folder"] == folder:  # it had lost files
        previous = before["previous"]
    elif before is not None:
        previous = before["folder"]
        if before["previous"] not in (None, folder):
            storage.delete(storage.join(target, before["previous"]))
    made = {
        "run_id": run.run_id, "table": run.table, "version": run.version, "published": run.time.isoformat(),
        "folder": folder, "buckets": run.buckets, "rows": sum(f.rows for f in written),
        "files": [asdict(f) for f in written], "previous": previous,
    }  # fmt: skip
    storage.write_json(storage.join(target, MANIFEST), made)
    return _exported(target, made, new=True)


def manifest(target: str) -> dict[str, Any]:
    """The manifest of an export.

    Raises:
        UserError: there is none, or it is no manifest of ours.
    """
    uri = storage.join(target, MANIFEST)
    try:
        found = storage.read_json(uri)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {"folder", "files", "previous"} <= set(found):
        raise UserError(f"{uri}: not the manifest of an export; choose another target")
    return found


def _check(
    run: Snapshot, target: str, folder: str, here: Mapping[str, int], before: dict[str, Any] | None, overwrite: bool
) -> None:
    if f"{target}/".startswith(f"{run.table}/"):
        raise UserError(f"{target}: lies in the table that is exported; choose another target")
    for path in here:
        if path != MANIFEST and not _FILE.fullmatch(path):
            raise UserError(f"{target}: holds files that are no export ({path}); choose another target")
    held = {before["folder"]} if before is not None else {path.split("/", 1)[0] for path in here}
    if held - {folder} and not overwrite:
        raise UserError(
            f"{target}: holds the export {', '.join(sorted(held - {folder}))}; replace it by {folder} with --overwrite"
        )


def _whole(before: dict[str, Any], here: Mapping[str, int]) -> bool:
    return all(here.get(f["path"]) == f["bytes"] for f in before["files"])


def _write(run: Snapshot, target: str, folder: str, bucket: int) -> ExportedFile | None:
    table = rankings.rows(run, [bucket])
    if not table.num_rows:
        return None
    data = parquet_bytes(table.drop_columns([BUCKET]))  # its folder's name says it
    path = f"{folder}/{BUCKET}={bucket:05d}/part.parquet"
    storage.write_bytes(storage.join(target, path), data)
    return ExportedFile(path, len(data), table.num_rows, hashlib.sha256(data).hexdigest())


def _exported(target: str, made: dict[str, Any], new: bool) -> Exported:
    size = sum(f["bytes"] for f in made["files"])
    return Exported(target, made["run_id"], len(made["files"]), made["rows"], size, new)
