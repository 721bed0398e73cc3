"""The ledger of a run: what became of every candidate of every bucket. A bucket has an entry once its file is whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from llmrec import storage
from llmrec.layout import Layout
from llmrec.ranker.health import Probe
from llmrec.tables import buckets

TABLE = "ledger.parquet"
# Where a candidate can end. pairs_in is their sum, for every bucket and for the run.
ENDS = ("ranked", "below_top_k", "over_limit", "seen", "blocked", "locked", "quarantined")


@dataclass(frozen=True)
class Entry:
    """One bucket. path: of its file, relative to the rankings; size: bytes; counts: see `score.Scored`; seconds: of
    scoring; mfu: see `Scorer.mfu`; attempt: 1 unless the process died on it before."""

    bucket: int
    path: str
    size: int
    rows: int
    users: int
    counts: dict[str, int]
    seconds: float
    mfu: float | None
    attempt: int
    probe: Probe | None


def write(layout: Layout, run_id: str, entry: Entry) -> None:
    """Leave a bucket's entry, after checking that it adds up."""
    check(entry)
    storage.write_json(_file(layout, run_id, entry.bucket), asdict(entry))


def read(layout: Layout, run_id: str) -> dict[int, Entry]:
    """The entries of a run by bucket."""
    files = [uri for uri, _ in storage.list_files(layout.ledger(run_id), ".json")]
    return {found.bucket: found for found in map(entry, storage.each(storage.read_json, files))}


def find(layout: Layout, run_id: str, bucket: int) -> Entry | None:
    """The entry of one bucket, None if it has none yet."""
    uri = _file(layout, run_id, bucket)
    return entry(storage.read_json(uri)) if storage.exists(uri) else None


def check(entry: Entry) -> None:
    """Every candidate ended somewhere, and the file has the rows that were ranked.

    Raises:
        AssertionError: not so, which no input can cause.
    """
    ends = {name: entry.counts[name] for name in ENDS}
    assert entry.counts["pairs_in"] == sum(ends.values()), (
        f"bucket {entry.bucket}: {entry.counts['pairs_in']} != {ends}"
    )
    assert entry.rows == ends["ranked"], f"bucket {entry.bucket}: {entry.rows} rows, {ends['ranked']} ranked"


def total(entries: Mapping[int, Entry]) -> Counter[str]:
    """The counts of a run, checked bucket by bucket."""
    found = Counter[str]()
    for entry in entries.values():
        check(entry)
        found.update(entry.counts)
    return found


def write_table(layout: Layout, run_id: str, entries: Mapping[int, Entry]) -> str:
    """The whole ledger as one Parquet file, a row a bucket and a column a count, for SQL; its URI."""
    rows: list[dict[str, Any]] = []
    for _, entry in sorted(entries.items()):
        row = asdict(entry)
        row |= row.pop("counts") | {f"probe_{k}": v for k, v in (row.pop("probe") or {}).items()}
        rows.append(row)
    columns = dict.fromkeys(name for row in rows for name in row)
    uri = storage.join(layout.run(run_id), TABLE)
    buckets.write_parquet(pa.table({name: [row.get(name) for row in rows] for name in columns}), uri)
    return uri


def _file(layout: Layout, run_id: str, bucket: int) -> str:
    return storage.join(layout.ledger(run_id), f"bucket-{bucket:05d}.json")


def entry(found: dict[str, Any]) -> Entry:
    return Entry(**{**found, "probe": found["probe"] and Probe(**found["probe"])})
