"""Whether two engines came to the same rankings."""

from __future__ import annotations

import polars as pl

COLUMNS = ["user_id", "rank", "item_id", "score"]


def equal(rankings: str, file: str) -> bool:
    """Same users, ranks, items and scores in a published Delta table and in a Parquet file, in any order."""
    ours, theirs = (rows.select(COLUMNS).collect() for rows in (pl.scan_delta(rankings), pl.scan_parquet(file)))
    return ours.height == theirs.height and ours.sort(COLUMNS[:2]).equals(theirs.sort(COLUMNS[:2]))
