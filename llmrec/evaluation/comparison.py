"""Two sets of rankings side by side: how far lists moved, and which items gained or lost places.

Works on a part of the users at a time (`compare`); parts of other users add up (`add`), so that no more than one part's
rows are held at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from llmrec.schema import ITEM, RANK, USER

A, B, VALUE, MEASURE, USERS, RBO = "a", "b", "value", "measure", "users", "rbo"
DIGITS = 12
COUNTS = ("in_both", "only_in_a", "only_in_b", "unchanged", "first_item_changed")


@dataclass(frozen=True)
class Part:
    """Figures of some users, to be added up.

    counts: users by COUNTS; sums: of each measure over the users in both; spread: measure, value (to two decimals),
    users; exposure: item_id, a, b (the weight of its list places); moved: user_id, rbo, a, b (lists of items), the
    lowest rbo first.
    """

    counts: dict[str, int]
    sums: dict[str, float]
    spread: pl.DataFrame
    exposure: pl.DataFrame
    moved: pl.DataFrame


def compare(
    a: pl.DataFrame, b: pl.DataFrame, cutoffs: Sequence[int], p: float, discounted: bool = False, moved: int = 10
) -> Part:
    """All figures of some users.

    a, b: user_id, rank (from 1, without gaps), item_id; no item twice in a list; all rows of a user are there.
    cutoffs, p: see `per_user`. discounted: a place counts 1 / log2(rank + 1), else 1. moved: how many users to name.
    """
    users = per_user(a, b, cutoffs, p)
    counts = {
        "in_both": users.height,
        "only_in_a": a[USER].n_unique() - users.height,
        "only_in_b": b[USER].n_unique() - users.height,
        "unchanged": int(users["unchanged"].sum()),
        "first_item_changed": int(users["first_item_changed"].sum()),
    }
    measures = [c for c in users.columns if c.startswith("overlap@")] + [RBO, "rbo_min"]
    spread = (
        users.select(pl.col(measures).round(2))
        .unpivot(variable_name=MEASURE, value_name=VALUE)
        .group_by(MEASURE, VALUE)
        .agg(pl.len().cast(pl.Int64).alias(USERS))
    )
    farthest = users.sort(RBO, USER).head(moved).select(USER, RBO)
    return Part(
        counts,
        {m: float(users[m].sum()) for m in measures},
        spread,
        exposure(a, b, discounted),
        farthest.join(_lists(a, A), on=USER, how="left").join(_lists(b, B), on=USER, how="left"),
    )


def add(one: Part, other: Part, moved: int = 10) -> Part:
    """The figures of the users of both; no user is in both."""
    return Part(
        {k: one.counts[k] + other.counts[k] for k in COUNTS},
        {k: one.sums[k] + other.sums[k] for k in one.sums},
        pl.concat([one.spread, other.spread]).group_by(MEASURE, VALUE).agg(pl.col(USERS).sum()),
        pl.concat([one.exposure, other.exposure]).group_by(ITEM).agg(pl.col(A, B).sum()),
        pl.concat([one.moved, other.moved]).sort(RBO, USER).head(moved),
    )


def per_user(a: pl.DataFrame, b: pl.DataFrame, cutoffs: Sequence[int], p: float) -> pl.DataFrame:
    """One row a user of both, in no order: user_id, overlap@k for each cut-off, rbo, rbo_min, unchanged,
    first_item_changed.

    overlap@k: items in both lists' first k, as a share of k, or of the longer list where both end before k.
    rbo: rank-biased overlap, extrapolated (Webber, Moffat and Zobel, "A similarity measure for indefinite rankings",
    ACM TOIS 28 (4), 2010, equation 32, which allows lists of different length); rbo_min: what it is at least, whatever
    comes after the lists' ends. p: how likely a reader goes on from one rank to the next, above 0 and below 1.
    """
    lengths = _lengths(a, A).join(_lengths(b, B), on=USER)
    pairs = a.select(USER, ITEM, pl.col(RANK).alias(A)).join(
        b.select(USER, ITEM, pl.col(RANK).alias(B)), on=[USER, ITEM]
    )
    # An item of both lists counts in the overlap of every depth from the deeper of its ranks on. So each sum over
    # depths is a sum over these items, and the weights of depths are needed only added up: powers[d] = sum of p^i and
    # shares[d] = sum of p^i / i over i = 1 .. d.
    longest = int(max(a[RANK].max() or 0, b[RANK].max() or 0))  # type: ignore[arg-type,type-var]
    depths = np.arange(1, longest + 1)
    powers = np.concatenate([[0.0], np.cumsum(p**depths)])
    shares = np.concatenate([[0.0], np.cumsum(p**depths / depths)])
    pairs = pairs.with_columns(pl.max_horizontal(A, B).alias("depth")).join(
        lengths.select(USER, pl.min_horizontal("length_a", "length_b").alias("shorter")), on=USER
    )
    pairs = pairs.with_columns(pl.Series("before", shares[pairs["depth"].to_numpy() - 1], pl.Float64))
    found = pairs.group_by(USER).agg(
        pl.len().alias("common"),
        (pl.col("depth") <= pl.col("shorter")).sum().alias("common_short"),
        pl.col("before").sum(),
        (pl.col(A) == pl.col(B)).sum().alias("in_place"),
        ((pl.col(A) == 1) & (pl.col(B) == 1)).any().alias("same_first"),
        *((pl.col("depth") <= k).sum().alias(f"common@{k}") for k in cutoffs),
    )
    users = lengths.join(found, on=USER, how="left").with_columns(
        pl.col("same_first").fill_null(False), pl.exclude(USER, "same_first").fill_null(0)
    )
    short = users.select(pl.min_horizontal("length_a", "length_b")).to_series().to_numpy()
    long = users.select(pl.max_horizontal("length_a", "length_b")).to_series().to_numpy()
    x_short, x_long, before = (users[c].to_numpy().astype(float) for c in ("common_short", "common", "before"))
    seen = x_long * shares[long] - before
    # Beyond the shorter list's end its next items are taken to agree as those before did.
    assumed = x_short / short * (powers[long] - powers[short]) - x_short * (shares[long] - shares[short])
    tail = ((x_long - x_short) / long + x_short / short) * p**long
    rbo = (1 - p) / p * (seen + assumed) + tail
    rbo_min = (1 - p) / p * (-x_long * np.log1p(-p) - before)
    return users.select(
        USER,
        *(
            (pl.col(f"common@{k}") / pl.min_horizontal(pl.lit(k), pl.max_horizontal("length_a", "length_b"))).alias(
                f"overlap@{k}"
            )
            for k in cutoffs
        ),
        # Sums in another order differ in the last bits; equal overlaps are to stay equal.
        pl.Series(RBO, rbo.round(DIGITS), pl.Float64),
        pl.Series("rbo_min", rbo_min.round(DIGITS), pl.Float64),
        ((pl.col("in_place") == pl.col("length_a")) & (pl.col("length_a") == pl.col("length_b"))).alias("unchanged"),
        (~pl.col("same_first")).alias("first_item_changed"),
    )


def exposure(a: pl.DataFrame, b: pl.DataFrame, discounted: bool = False) -> pl.DataFrame:
    """item_id, a, b: the weight of the places that each item has in all lists of a and of b, in no order."""
    weight = 1 / (pl.col(RANK) + 1).log(2) if discounted else pl.lit(1.0)
    none = pl.lit(0.0)
    return (
        pl.concat([
            a.select(ITEM, weight.alias(A), none.alias(B)),
            b.select(ITEM, none.alias(A), weight.alias(B)),
        ])
        .group_by(ITEM)
        .agg(pl.col(A, B).sum())
    )  # fmt: skip


def shifts(exposure: pl.DataFrame, key: str) -> pl.DataFrame:
    """key, a, b (shares of all places), change (b - a): the largest gain first, ties by key."""
    totals = exposure.select(pl.col(A, B).sum()).row(0)
    shares = (pl.col(c) / t if t else pl.lit(0.0).alias(c) for c, t in zip((A, B), totals, strict=True))
    grouped = exposure.group_by(key).agg(pl.col(A, B).sum())
    return grouped.with_columns(*shares).with_columns((pl.col(B) - pl.col(A)).round(DIGITS).alias("change")).sort(
        ["change", key], descending=[True, False], nulls_last=True
    )  # fmt: skip


def by_category(exposure: pl.DataFrame, items: pl.DataFrame, column: str) -> pl.DataFrame:
    """`exposure` by a column of items: category (text), a, b. An item in several (a list) is shared out among them.

    An item without one, or that is not among items, has category null.
    """
    category = items.select(ITEM, pl.col(column).alias("category"))
    each = pl.lit(1)
    if isinstance(category.schema["category"], pl.List):
        each = pl.col("category").list.len().clip(lower_bound=1)  # explode keeps an empty list as one null
    category = category.with_columns(each.alias("each"))
    if isinstance(category.schema["category"], pl.List):
        category = category.explode("category")
    joined = exposure.join(category.with_columns(pl.col("category").cast(pl.String)), on=ITEM, how="left")
    share = pl.col("each").fill_null(1)
    return joined.group_by("category").agg((pl.col(A) / share).sum(), (pl.col(B) / share).sum())


def summary(part: Part) -> dict[str, Any]:
    """users: counts, and what share of those in both kept their list or have another first item; measures: the mean of
    each, its 10%, 50% and 90% quantiles, and how many users had which value.

    Quantiles and values are to two decimals; a mean over no users is None.
    """
    users = part.counts["in_both"]
    shares = {f"share_{c}": part.counts[c] / users if users else None for c in ("unchanged", "first_item_changed")}
    measures = {}
    for name, total in part.sums.items():
        values = part.spread.filter(pl.col(MEASURE) == name).sort(VALUE)
        measures[name] = {
            "mean": total / users if users else None,
            **{f"p{q}": quantile(values, q) for q in (10, 50, 90)},
            "users": {f"{v:.2f}": n for v, n in values.select(VALUE, USERS).iter_rows()},
        }
    return {"users": {**part.counts, **shares}, "measures": measures}


def quantile(values: pl.DataFrame, percent: int) -> float | None:
    """The smallest value that at least so many per cent of users do not exceed; values: value ascending, users."""
    if values.is_empty():
        return None
    reached = values[USERS].cum_sum().to_numpy()
    return float(values[VALUE][int(np.searchsorted(100 * reached, percent * reached[-1]))])


def coverage(exposure: pl.DataFrame, catalogue: int | None) -> dict[str, Any]:
    """How many items each side shows at all, and only one of them; shares of the catalogue if its size is known."""
    in_a, in_b = exposure[A] > 0, exposure[B] > 0
    counts = {
        "items_in_a": int(in_a.sum()), "items_in_b": int(in_b.sum()), "only_in_a": int((in_a & ~in_b).sum()),
        "only_in_b": int((in_b & ~in_a).sum()),
    }  # fmt: skip
    shares: Mapping[str, Any] = {}
    if catalogue:
        shares = {
            "catalogue": catalogue,
            "share_of_catalogue_a": counts["items_in_a"] / catalogue,
            "share_of_catalogue_b": counts["items_in_b"] / catalogue,
        }
    return {**counts, **shares}


def _lengths(lists: pl.DataFrame, side: str) -> pl.DataFrame:
    return lists.group_by(USER).agg(pl.len().cast(pl.Int64).alias(f"length_{side}"))


def _lists(rows: pl.DataFrame, side: str) -> pl.DataFrame:
    return rows.group_by(USER).agg(pl.col(ITEM).sort_by(RANK).alias(side))
