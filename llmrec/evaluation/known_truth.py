"""How well lists find what is known to be right, where data was made up and the truth is known.

Frames of pairs have the columns user_id and item_id, lists rank (from 1) besides. A place that a list leaves empty
counts as wrong, and so does a user without a list.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from llmrec.schema import ITEM, RANK, USER


def share_right(lists: pl.DataFrame, right: pl.DataFrame, users: pl.Series, places: int) -> float:
    """Of the first `places` places of these users' lists, the share that is right; NaN for no users."""
    return float(shares_right(lists, right, users, places).mean()) if len(users) else float("nan")


def shares_right(lists: pl.DataFrame, right: pl.DataFrame, users: pl.Series, places: int) -> np.ndarray:
    """float64[len(users)]: the same of each user."""
    hits = lists.filter(pl.col(RANK) <= places).join(right, on=[USER, ITEM], how="semi")
    return _count(hits, users)["len"].to_numpy() / places


def gain_of_one(lists: pl.DataFrame, truth: pl.DataFrame, users: pl.Series, places: int) -> float:
    """Mean NDCG of these users' first `places` places, where truth has one item a user: 1 / log2(rank + 1) of it, 0 if
    it is not there (Järvelin and Kekäläinen, 2002); NaN for no users."""
    shown = lists.filter((pl.col(RANK) <= places) & pl.col(USER).is_in(users.to_list()))
    hits = shown.join(truth, on=[USER, ITEM], how="semi").select(1 / (pl.col(RANK) + 1).log(2))
    return float(hits.to_series().sum()) / len(users) if len(users) else float("nan")


def within_quota(lists: pl.DataFrame, group: pl.DataFrame, most: int, places: int) -> pl.DataFrame:
    """The first `places` of each list, of which an item is left out where its group has `most` places already:
    user_id, rank, item_id. group: item_id and one more column."""
    (name,) = (column for column in group.columns if column != ITEM)
    ordered = lists.select(USER, RANK, ITEM).join(group, on=ITEM).sort(USER, RANK)
    kept = ordered.filter(pl.int_range(pl.len()).over(USER, name) < most)
    return kept.select(USER, pl.int_range(1, pl.len() + 1).over(USER).alias(RANK), ITEM).filter(pl.col(RANK) <= places)


def best_share(right: pl.DataFrame, users: pl.Series, places: int) -> float:
    """The share that lists of nothing but right items reach, where there are fewer of these than places."""
    there = _count(right, users)["len"].clip(upper_bound=places).sum()
    return float(there) / (places * len(users)) if len(users) else float("nan")


def share_at_random(pool: pl.DataFrame, right: pl.DataFrame, users: pl.Series, places: int) -> float:
    """What lists drawn at random from each user's pool are expected to reach."""
    drawn = _count(pool, users).join(
        _count(pool.join(right, on=[USER, ITEM], how="semi"), users), on=USER, suffix="_right"
    )
    shares = drawn.select(
        pl.when(pl.col("len") > 0)
        .then(pl.col("len_right") / pl.col("len") * pl.col("len").clip(upper_bound=places) / places)
        .otherwise(0.0)
        .alias("share")
    )["share"]
    return float(shares.sum()) / len(users) if len(users) else float("nan")


def popular_lists(pool: pl.DataFrame, log: pl.DataFrame, places: int) -> pl.DataFrame:
    """Lists of each user's pool by how many events of the log an item has, ties by id: user_id, rank, item_id."""
    events = log.group_by(ITEM).len("events")
    ordered = pool.join(events, on=ITEM, how="left").with_columns(pl.col("events").fill_null(0))
    ordered = ordered.sort([USER, "events", ITEM], descending=[False, True, False])
    return ordered.with_columns(pl.int_range(1, pl.len() + 1).over(USER).alias(RANK)).filter(pl.col(RANK) <= places)


def _count(pairs: pl.DataFrame, users: pl.Series) -> pl.DataFrame:
    """user_id, len: each user's pairs, 0 where there are none."""
    of = pairs.group_by(USER).len()
    return (
        users.alias(USER)
        .to_frame()
        .join(of, on=USER, how="left", maintain_order="left")
        .with_columns(pl.col("len").fill_null(0))
    )
