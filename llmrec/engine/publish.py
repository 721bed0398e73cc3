"""publish: a complete run becomes what the rankings table shows, in one atomic commit."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from llmrec import storage
from llmrec.engine import ledger
from llmrec.engine.ledger import Entry
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.tables import rankings
from llmrec.tables.rankings import Published, StagedFile


def complete(layout: Layout, run_id: str) -> tuple[dict[str, Any], dict[int, Entry]]:
    """The summary and the ledger of a run of which every bucket is staged.

    Raises:
        UserError: the run is unknown or incomplete.
    """
    where = layout.run_summary(run_id)
    if not storage.exists(where):
        raise UserError(f"run '{run_id}' is not complete under {layout.root}; run jobs/score.py with its configuration")
    run = storage.read_json(where)
    entries = ledger.read(layout, run_id)
    if len(entries) != run["staged"]:
        raise UserError(
            f"run '{run_id}': {len(entries)} of {run['staged']} buckets are staged; run jobs/score.py again"
        )
    ledger.total(entries)  # which checks them
    return run, entries


def publish(layout: Layout, run_id: str) -> Published:
    """Make a staged run visible, after checking that every file is there with the rows that the ledger says.

    Raises:
        UserError: the run is unknown or incomplete, or another publisher was first.
    """
    import pyarrow.parquet as pq

    run, entries = complete(layout, run_id)
    fs, _ = storage.filesystem(run["output"])

    def found_schema(entry: Entry) -> pa.Schema:
        uri = storage.join(run["output"], entry.path)
        try:
            footer = pq.read_metadata(uri.removeprefix("s3://"), filesystem=fs)
        except (OSError, pa.ArrowInvalid):
            raise UserError(
                f"run '{run_id}': staged file {uri} is gone or damaged; delete {layout.run_summary(run_id)} and score "
                "again"
            ) from None
        if footer.num_rows != entry.rows:
            raise UserError(f"run '{run_id}': {uri} has {footer.num_rows} rows, the ledger says {entry.rows}")
        return footer.schema.to_arrow_schema()

    schemas = storage.each(found_schema, entries.values())
    files = [StagedFile(b, entry.path, entry.size, entry.rows) for b, entry in sorted(entries.items()) if entry.rows]
    if not files:
        raise UserError(f"run '{run_id}' ranked no user; nothing to publish")
    return rankings.publish(run["output"], files, run["buckets"], schemas[0], run_id)
