"""The rankings by DuckDB, in several formulations."""

from __future__ import annotations

import os
from collections.abc import Callable

import duckdb

from benchmarks.scale.formula import FACTOR, ITEM_FACTOR, USER_FACTOR, VALUES

SCORE = f"((item_id * {ITEM_FACTOR} + user_id * {USER_FACTOR}) % {VALUES})"
KEY = f"(({VALUES - 1} - {SCORE}) * {FACTOR} + item_id)"


def lists(candidates: str, out: str, top_k: int) -> None:
    """Lambdas over whole lists, each sorted."""
    keys = f"list_sort(list_transform(item_ids, lambda item_id: {KEY}))[1:{top_k}]"
    _ranked(f"select user_id, {keys} as keys from {_files(candidates)}", out)


def smallest(candidates: str, out: str, top_k: int) -> None:
    """Unnested, the smallest numbers of each group."""
    _ranked(f"select user_id, min({KEY}, {top_k}) as keys from ({_pairs(candidates)}) group by user_id", out)


def best_items(candidates: str, out: str, top_k: int) -> None:
    """Unnested, the best items of each group by a structure of score and item."""
    by = f"{{'score': -{SCORE}, 'item': item_id}}"
    keys = f"list_transform(min({by}, {top_k}), lambda x: ({VALUES - 1} + x.score) * {FACTOR} + x.item)"
    _ranked(f"select user_id, {keys} as keys from ({_pairs(candidates)}) group by user_id", out)


def window(candidates: str, out: str, top_k: int) -> None:
    """Unnested, a window's row numbers."""
    rank = f"row_number() over (partition by user_id order by {KEY})"
    _write(f"select user_id, {KEY} as key, {rank} as rank from ({_pairs(candidates)}) qualify rank <= {top_k}", out)


FORMULATIONS: dict[str, Callable[[str, str, int], None]] = {
    "lists": lists, "smallest": smallest, "best-items": best_items, "window": window,
}  # fmt: skip


def _files(candidates: str) -> str:
    return f"read_parquet('{candidates}/*.parquet')"


def _pairs(candidates: str) -> str:
    return f"select user_id, unnest(item_ids) as item_id from {_files(candidates)}"


def _ranked(best: str, out: str) -> None:
    """From user_id and key lists."""
    _write(f"select user_id, unnest(keys) as key, unnest(range(1, len(keys) + 1)) as rank from ({best})", out)


def _write(rows: str, out: str) -> None:
    """From user_id, key and rank."""
    database = duckdb.connect(config={"threads": int(os.environ["THREADS"]), "preserve_insertion_order": False})
    columns = f"""user_id, rank::integer as rank, key % {FACTOR} as item_id,
        ({VALUES - 1} - key // {FACTOR})::float as score"""
    database.execute(f"copy (select {columns} from ({rows})) to '{out}' (format parquet, compression zstd)")
