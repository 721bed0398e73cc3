"""Lists of runs on the terminal. Computes no number itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from llmrec.report.terminal import console, print_rows, text


def print_runs(table: str, published: Sequence[Mapping[str, Any]], staged: Sequence[Mapping[str, Any]]) -> None:
    """The runs that a rankings table shows or showed, and those that only lie there."""
    if published:
        print_rows(
            f"published in {table}",
            ["run", "version", "time", "rows", "buckets", "state"],
            [
                [
                    r["run_id"], str(r["version"]), _time(r["time"]), r["rows"], r["buckets"],
                    "shown" if r["shown"] else "can be read" if r["files_there"] else "pruned",
                ]
                for r in published
            ],
        )  # fmt: skip
    if staged:
        print_rows(
            "staged, never published",
            ["run", "buckets staged", "state", "last change", "size"],
            [
                [
                    r["run_id"], f"{r['finished']:,} of {text(r['buckets']) if r['buckets'] else 'unknown'}",
                    "complete" if r["complete"] else "unfinished", _time(r["newest"]), size(r["bytes"]),
                ]
                for r in staged
            ],
        )  # fmt: skip


def print_pruned(done: Mapping[str, Any]) -> None:
    """What prune deleted or would delete, and why the others stay."""
    would = "to be deleted" if done["dry_run"] else "deleted"
    rows = [
        [r["run_id"], would, f"{text(r['files'])} files, {size(r['bytes'])}, last change {_time(r['newest'])}"]
        for r in done["deleted"]
    ]
    rows += [[run_id, "kept", why] for run_id, why in done["kept"].items()]
    print_rows(f"runs of {done['table']}", ["run", "", ""], rows)
    console().print(f"runs {would}: {len(done['deleted'])}, {size(done['bytes'])}")


def size(count: int) -> str:
    """Bytes as a person writes them."""
    value, units = float(count), iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 1000 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
