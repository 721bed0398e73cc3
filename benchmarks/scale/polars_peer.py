"""The rankings by polars' streaming engine, in several formulations."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from benchmarks.scale.formula import FACTOR, ITEM_FACTOR, USER_FACTOR, VALUES


def lists(candidates: str, out: str, top_k: int) -> None:
    """Arithmetic on whole lists, each sorted."""
    best = _scan(candidates).select("user_id", _key().list.sort().list.head(top_k).alias("key"))
    _write(_ranked(best), out)


def lists_bottom_k(candidates: str, out: str, top_k: int) -> None:
    """Arithmetic on whole lists, the smallest numbers of each."""
    best = _scan(candidates).select("user_id", _key().list.eval(pl.element().bottom_k(top_k).sort()).alias("key"))
    _write(_ranked(best), out)


def bottom_k(candidates: str, out: str, top_k: int) -> None:
    """Exploded, the smallest numbers of each group."""
    pairs = _scan(candidates).explode("item_ids").select("user_id", key=_key())
    _write(_ranked(pairs.group_by("user_id").agg(pl.col("key").bottom_k(top_k).sort())), out)


def top_k_by(candidates: str, out: str, top_k: int) -> None:
    """Exploded, the best of each group by score and item."""
    pairs = _scan(candidates).explode("item_ids").with_columns(score=_score())
    best = [
        pl.col(column).top_k_by(["score", "item_ids"], top_k, reverse=[False, True]) for column in ("item_ids", "score")
    ]
    ranked = pairs.group_by("user_id").agg(*best).with_columns(rank=_ranks("score"))
    _write(ranked.explode("item_ids", "score", "rank").rename({"item_ids": "item_id"}), out)


def sort(candidates: str, out: str, top_k: int) -> None:
    """Exploded, all sorted, the head of each group."""
    pairs = _scan(candidates).explode("item_ids").select("user_id", key=_key()).sort("user_id", "key")
    _write(_ranked(pairs.group_by("user_id", maintain_order=True).agg(pl.col("key").head(top_k))), out)


FORMULATIONS: dict[str, Callable[[str, str, int], None]] = {
    "lists": lists, "lists-bottom-k": lists_bottom_k, "bottom-k": bottom_k, "top-k-by": top_k_by, "sort": sort,
}  # fmt: skip


def _scan(candidates: str) -> pl.LazyFrame:
    return pl.scan_parquet(f"{candidates}/*.parquet").select("user_id", "item_ids")


def _score() -> pl.Expr:
    """Of ids, or of a whole list of them."""
    return (pl.col("item_ids") * ITEM_FACTOR + pl.col("user_id") * USER_FACTOR) % VALUES


def _key() -> pl.Expr:
    return (_score() * -1 + (VALUES - 1)) * FACTOR + pl.col("item_ids")


def _ranks(lists: str) -> pl.Expr:
    return pl.int_ranges(1, pl.col(lists).list.len() + 1, dtype=pl.Int32)


def _ranked(best: pl.LazyFrame) -> pl.LazyFrame:
    """From user_id and key lists."""
    rows = best.with_columns(rank=_ranks("key")).explode("key", "rank")
    return rows.with_columns(item_id=pl.col("key") % FACTOR, score=VALUES - 1 - pl.col("key") // FACTOR)


def _write(rows: pl.LazyFrame, out: str) -> None:
    table = rows.select("user_id", "rank", "item_id", pl.col("score").cast(pl.Float32))
    table.sink_parquet(out, compression="zstd", maintain_order=False, engine="streaming")
