"""MovieLens-100k as `items`, `interactions` and `users` tables, from the asset's tab-separated files."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa


def tables(directory: Path) -> dict[str, pa.Table]:
    """Three tables with int64 ids; the log keeps the file's order, which breaks ties in time.

    items: item_id, title, year, genres. interactions: user_id, item_id, timestamp, value. users: user_id, age, gender,
    occupation.
    """

    def read(kind: str, names: list[str]) -> pl.DataFrame:
        return pl.read_csv(
            directory / f"ml-100k.{kind}", separator="\t", new_columns=names, infer_schema=False, quote_char=None
        )

    items = read("item", ["item_id", "title", "year", "genres"]).with_columns(
        pl.col("item_id").cast(pl.Int64),
        pl.col("year").cast(pl.Int32, strict=False),
        pl.col("genres").str.replace_all(" ", ", "),
    )
    interactions = read("inter", ["user_id", "item_id", "value", "timestamp"]).select(
        pl.col("user_id").cast(pl.Int64),
        pl.col("item_id").cast(pl.Int64),
        pl.col("timestamp").cast(pl.Float64).cast(pl.Int64),
        pl.col("value").cast(pl.Float32),
    )
    users = read("user", ["user_id", "age", "gender", "occupation", "zip_code"]).select(
        pl.col("user_id").cast(pl.Int64),
        pl.col("age").cast(pl.Int32),
        pl.col("gender").replace({"M": "male", "F": "female"}),
        pl.col("occupation"),
    )
    return {"items": items.to_arrow(), "interactions": interactions.to_arrow(), "users": users.to_arrow()}
