"""diff: two published rankings side by side, a few buckets at a time. Needs no cluster."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from llmrec import storage
from llmrec.engine.units import SECONDS_BETWEEN_LINES
from llmrec.errors import UserError
from llmrec.evaluation import bootstrap, comparison, metrics, significance
from llmrec.evaluation.comparison import A, B
from llmrec.schema import ITEM, ITEMS, RANK, TITLE, USER
from llmrec.tables import buckets, rankings
from llmrec.tables.rankings import Snapshot

JUDGED_BY = ("ndcg", "recall")
RESAMPLES, PERMUTATIONS, SEED = 1000, 10_000, 0
MOST_JUDGED = 1_000_000  # users, about: all figures of these are held at once


def diff(
    a: Snapshot, b: Snapshot, items: str | None, say: Callable[[str], None], cutoffs: Sequence[int] = (1, 5, 10),
    p: float = 0.9, by: str | None = None, discounted: bool = False, show_users: int = 3, show_items: int = 10,
    held_out: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What changed from run a to run b, as one mapping that JSON can hold.

    items: the items table, for titles, categories and the catalogue's size; None if there is none.
    by: a column of it whose values gained or lost places; cutoffs, p, discounted: see `evaluation.comparison`.
    held_out: the table of held-out items by which runs are judged, of MOST_JUDGED users about, a stable choice; None,
    or one that is not there, for none.
    Tables with other numbers of buckets are read as many at a time as those numbers have in common.

    Raises:
        UserError: a setting is out of range, the runs' ids are of other types, or the column is not there.
    """
    if not 0 < p < 1:
        raise UserError(f"p = {p:g}: how likely a reader goes on to the next rank is above 0 and below 1")
    if min(cutoffs, default=0) < 1:
        raise UserError(f"cut-offs {', '.join(map(str, cutoffs)) or 'none'}: give ranks from 1 on")
    for column in (USER, ITEM):
        kinds = [run.data.schema.field(column).type for run in (a, b)]
        if kinds[0] != kinds[1]:
            raise UserError(
                f"column '{column}' is {kinds[0]} in {a.table} and {kinds[1]} in {b.table}; they have no ids in common"
            )
    catalogue = _catalogue(items, by)
    total, accuracy = None, []
    judged = buckets.bucket_files(held_out) if held_out and storage.exists(held_out) else {}
    share, _ = buckets.share_for(judged.values(), MOST_JUDGED)
    for part, truth in _parts(a, b, judged, share, say):
        found = comparison.compare(*part, sorted(set(cutoffs)), p, discounted, show_users)
        total = found if total is None else comparison.add(total, found, show_users)
        if truth is not None:
            accuracy.append(_accuracy(*part, truth, sorted(set(cutoffs))))
    assert total is not None
    shifts = comparison.shifts(total.exposure, ITEM)
    gained = shifts.filter(pl.col("change") > 0).head(show_items)
    lost = shifts.filter(pl.col("change") < 0).reverse().head(show_items)
    moved = total.moved
    shown = {*gained[ITEM], *lost[ITEM], *moved[A].explode(), *moved[B].explode()}
    titles = _titles(catalogue, shown)
    categories = None
    if by is not None and catalogue is not None:
        grouped = comparison.by_category(total.exposure, catalogue, by)
        categories = {"column": by, "rows": comparison.shifts(grouped, "category").to_dicts()}
    return {
        A: _named(a), B: _named(b), "p": p, "discounted": discounted,
        **comparison.summary(total),
        "moved": [_side_by_side(row, titles) for row in moved.to_dicts()],
        "items": {
            name: [{**row, "title": titles.get(row[ITEM])} for row in rows.to_dicts()]
            for name, rows in (("gained", gained), ("lost", lost))
        },
        "categories": categories,
        "coverage": comparison.coverage(total.exposure, None if catalogue is None else catalogue.height),
        "accuracy": _judged(accuracy, sorted(set(cutoffs))) if accuracy else None,
    }  # fmt: skip


def run_of(which: str, table: Callable[[], str]) -> Snapshot:
    """The run that a person named: a path or s3:// URI of a rankings table (it has a slash), or a run's id.

    table: gives the table that ids belong to, when one is named.

    Raises:
        UserError: nothing is published there, or the run never was or was pruned.
    """
    where = storage.absolute(which) if "/" in which else table()
    storage.check(where)
    return rankings.snapshot(where, None if "/" in which else which)


def _parts(
    a: Snapshot, b: Snapshot, judged: Mapping[int, str], share: float, say: Callable[[str], None]
) -> Iterator[tuple[tuple[pl.DataFrame, pl.DataFrame], pl.DataFrame | None]]:
    """All rows of some users after all rows of others, and their held-out items: a user's bucket modulo a divisor of
    all numbers of buckets is the same. judged: files of held-out items by bucket, of every bucket; share: of users,
    who are judged."""
    common = math.gcd(a.buckets, b.buckets, len(judged))
    last = time.monotonic()
    for part in range(common):
        runs = _frame(a, range(part, a.buckets, common)), _frame(b, range(part, b.buckets, common))
        yield runs, _held_out([judged[n] for n in range(part, len(judged), common)], runs[0], share)
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{part + 1} of {common} parts compared")


def _frame(run: Snapshot, which: range) -> pl.DataFrame:
    found = pl.from_arrow(rankings.rows(run, which, [USER, RANK, ITEM]))
    assert isinstance(found, pl.DataFrame)
    return found


def _held_out(files: Sequence[str], run: pl.DataFrame, share: float) -> pl.DataFrame | None:
    """user_id and item_ids of a share of users, of who has some; None where no file is.

    Raises:
        UserError: ids are of another type than the run's.
    """
    if not files:
        return None
    found = pl.concat([pl.DataFrame(pl.from_arrow(buckets.read_parquet(uri, [USER, ITEMS]))) for uri in files])
    if (held := found.schema[USER]) != (shown := run.schema[USER]):
        raise UserError(f"{files[0]}: column '{USER}' is {held}, the runs' is {shown}; they have no ids in common")
    some = pl.Series(buckets.share_of(found[USER].to_arrow(), share))
    return found.filter(some & (found[ITEMS].list.len() > 0))


def _accuracy(a: pl.DataFrame, b: pl.DataFrame, truth: pl.DataFrame, cutoffs: Sequence[int]) -> np.ndarray:
    """float64[2, metrics, users]: of users with held-out items who are in a run."""
    asked = truth.filter(pl.col(USER).is_in(pl.concat([a[USER], b[USER]]).unique().implode()))
    judged = {str(user): [str(i) for i in items] for user, items in asked.select(USER, ITEMS).iter_rows()}
    lists = []
    for run in (a, b):
        by_user = run.sort(USER, RANK).group_by(USER, maintain_order=True).agg(ITEM)
        ranked = {str(user): [str(i) for i in items] for user, items in by_user.iter_rows()}
        lists.append(list(metrics.per_user(judged, ranked, cutoffs, JUDGED_BY).values()))
    return np.asarray(lists, np.float64).reshape(2, len(cutoffs) * len(JUDGED_BY), len(judged))


def _judged(parts: Sequence[np.ndarray], cutoffs: Sequence[int]) -> dict[str, Any] | None:
    """Means of both runs, b's less a's with its 95% interval and p-value; None if nobody has held-out items."""
    both = np.concatenate(parts, axis=2)
    if not both.shape[2]:
        return None
    differences = both[1] - both[0]
    samples = bootstrap.means(differences, RESAMPLES, SEED)
    p_values = significance.paired_permutation(differences, PERMUTATIONS, SEED)
    return {
        "users": both.shape[2],
        "metrics": {
            name: {
                A: float(both[0, i].mean()), B: float(both[1, i].mean()), "change": float(differences[i].mean()),
                "interval": bootstrap.bounds(samples[i]), "p_value": float(p_values[i]),
            }
            for i, name in enumerate(metrics.names(cutoffs, JUDGED_BY))
        },
    }  # fmt: skip


def _catalogue(items: str | None, by: str | None) -> pl.DataFrame | None:
    if items is None or not storage.exists(items):
        if by is not None:
            raise UserError(
                f"--by {by}: there is no items table ({items or 'no root is set'}); give --root or --config"
            )
        return None
    fs, path = storage.filesystem(items)
    names = pq.read_schema(path, filesystem=fs).names
    if by is not None and by not in names:
        raise UserError(f"{items}: column '{by}' is missing (it has: {', '.join(names)})")
    wanted = [c for c in names if c in (ITEM, TITLE, by)]
    found = pl.from_arrow(buckets.read_parquet(items, wanted))
    assert isinstance(found, pl.DataFrame)
    return found


def _titles(catalogue: pl.DataFrame | None, items: set[Any]) -> dict[Any, str]:
    if catalogue is None or TITLE not in catalogue.columns:
        return {}
    return dict(catalogue.filter(pl.col(ITEM).is_in(list(items))).select(ITEM, TITLE).iter_rows())


def _named(run: Snapshot) -> dict[str, Any]:
    return {
        "table": run.table,
        "run_id": run.run_id,
        "version": run.version,
        "time": run.time.isoformat(timespec="seconds"),
    }


def _side_by_side(row: dict[str, Any], titles: dict[Any, str]) -> dict[str, Any]:
    """A user's two lists; an item of the second with its rank in the first, None if it is new."""
    before = {item: rank for rank, item in enumerate(row[A], 1)}

    def listed(items: list[Any]) -> list[dict[str, Any]]:
        return [{RANK: r, ITEM: i, TITLE: titles.get(i)} for r, i in enumerate(items, 1)]

    return {
        USER: row[USER], comparison.RBO: row[comparison.RBO], A: listed(row[A]),
        B: [{**place, "rank_in_a": before.get(place[ITEM])} for place in listed(row[B])],
    }  # fmt: skip
