"""One user's history and ranking, with titles."""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc

from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.schema import ITEM, ITEMS, RANK, SCORE, TITLE, USER
from llmrec.tables import buckets, rankings


def show_user(
    layout: Layout, table: str, user: Any, recent: int
) -> tuple[Any, list[str], list[tuple[int, str, float]]]:
    """(user, newest titles of his history, newest first; (rank, title, score) of his ranking).

    Raises:
        UserError: nothing is published, or the table does not rank this user.
    """
    ranked = rankings.read(table, user)
    if not ranked.num_rows:
        raise UserError(f"user '{user}' is not in {table}")
    items = buckets.read_parquet(layout.items, [ITEM, TITLE])
    titles = dict(zip(items[ITEM].to_pylist(), items[TITLE].to_pylist(), strict=True))
    key = ranked[USER][0]
    files = buckets.bucket_files(layout.histories)
    bucket = int(buckets.bucket_of(ranked[USER].slice(0, 1), len(files))[0])
    histories = buckets.read_parquet(files[bucket], [USER, ITEMS])
    history = histories.filter(pc.equal(histories[USER], key))[ITEMS].to_pylist()
    newest = list(reversed(history[0]))[:recent] if history else []
    rows = zip(ranked[RANK].to_pylist(), ranked[ITEM].to_pylist(), ranked[SCORE].to_pylist(), strict=True)
    return key.as_py(), [titles.get(i, str(i)) for i in newest], [(r, titles.get(i, str(i)), s) for r, i, s in rows]
