"""A published run as plain files: Hive-partitioned Parquet or JSON, and a manifest that is written last and swapped
whole.

    <target>/_manifest.json                                    which run, every file with size, rows and content hash
    <target>/<run_id>-v<version>/bucket=00042/part.parquet     the rows of a bucket, by user and rank
    <target>/<run_id>-v<version>-lists/bucket=...              one row a user, see `key_value`
    <target>/<run_id>-v<version>-json_lines/bucket=00042/part.jsonl

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
from typing import Any, Literal

from llmrec import storage
from llmrec.errors import UserError
from llmrec.schema import BUCKET
from llmrec.tables import buckets, key_value, rankings
from llmrec.tables.buckets import parquet_bytes
from llmrec.tables.rankings import Snapshot

MANIFEST = "_manifest.json"
WRITERS = 4  # buckets in flight: writing to a store is mostly waiting
Form = Literal["rows", "lists", "json_lines"]
_FILE = re.compile(r"([^/]+)/bucket=\d{5}/part\.(parquet|jsonl)(\.\d+\.tmp)?")


@dataclass(frozen=True)
class ExportedFile:
    """path: relative to the target."""

    path: str
    bytes: int
    rows: int
    sha256: str


@dataclass(frozen=True)
class Exported:
    """What the manifest says. rows: of the files, users' lists in some forms; new: false if the target held this run
    already."""

    target: str
    form: Form
    run_id: str
    files: int
    rows: int
    bytes: int
    new: bool


def export(run: Snapshot, target: str, overwrite: bool = False, form: Form = "rows") -> Exported:
    """Write a run under `target`, the manifest last. A run that is there already is left as it is.

    overwrite: replace another run's export, or one in another form. Its files stay until the next one, so that its
    readers come to an end.

    Raises:
        UserError: the target lies in the table, holds files that are no export, or holds another run's export and
            `overwrite` is not set.
    """
    target, folder = storage.absolute(target), f"{run.run_id}-v{run.version}{'' if form == 'rows' else f'-{form}'}"
    here = {uri.removeprefix(target + "/"): size for uri, size in storage.list_files(target)}
    before = manifest(target) if MANIFEST in here else None
    _check(run, target, folder, here, before, overwrite)
    if before is not None and before["folder"] == folder and _whole(before, here):
        return _exported(target, form, before, new=False)
    with ThreadPoolExecutor(WRITERS) as pool:
        written = [f for f in pool.map(partial(_write, run, target, folder, form), range(run.buckets)) if f is not None]
    previous = None
    if before is not None and before["folder"] == folder:  # it had lost files
        previous = before["previous"]
    elif before is not None:
        previous = before["folder"]
        if before["previous"] not in (None, folder):
            storage.delete(storage.join(target, before["previous"]))
    made = {
        "run_id": run.run_id, "table": run.table, "version": run.version, "published": run.time.isoformat(),
        "form": form, "folder": folder, "buckets": run.buckets, "rows": sum(f.rows for f in written),
        "files": [asdict(f) for f in written], "previous": previous,
    }  # fmt: skip
    storage.write_json(storage.join(target, MANIFEST), made)
    return _exported(target, form, made, new=True)


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


def files(target: str) -> list[str]:
    """URIs of all that exports have written there, the manifest and what was cut off too; not of others' files."""
    target = storage.absolute(target)
    paths = [uri.removeprefix(target + "/") for uri, _ in storage.list_files(target)]
    return [storage.join(target, path) for path in paths if path == MANIFEST or _FILE.fullmatch(path)]


def rows_in(uri: str) -> int:
    """Of an export's file: rows, or lines of JSON."""
    return storage.read_bytes(uri).count(b"\n") if uri.endswith(".jsonl") else buckets.rows_in(uri)


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


def _write(run: Snapshot, target: str, folder: str, form: Form, bucket: int) -> ExportedFile | None:
    table = rankings.rows(run, [bucket], None if form == "rows" else key_value.COLUMNS)
    if not table.num_rows:
        return None
    rows, suffix = table.num_rows, "parquet"
    if form == "rows":
        data = parquet_bytes(table.drop_columns([BUCKET]))  # its folder's name says it
    elif form == "lists":
        found = key_value.lists(table)
        rows, data = found.num_rows, parquet_bytes(found)
    else:
        data, suffix = key_value.json_lines(table), "jsonl"
        rows = data.count(b"\n")
    path = f"{folder}/{BUCKET}={bucket:05d}/part.{suffix}"
    storage.write_bytes(storage.join(target, path), data)
    return ExportedFile(path, len(data), rows, hashlib.sha256(data).hexdigest())


def _exported(target: str, form: Form, made: dict[str, Any], new: bool) -> Exported:
    size = sum(f["bytes"] for f in made["files"])
    return Exported(target, form, made["run_id"], len(made["files"]), made["rows"], size, new)
