"""fairness: what lists gain for a group of items and lose in relevance as rerank.least grows, and for which users.

Nothing is scored anew: the kept scores rank as they did, and lists are chosen out of them once for every share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec import config
from llmrec.engine import evaluate_items, rerank
from llmrec.engine.kept_lists import KeptLists, kept_run, nothing_held_out
from llmrec.engine.units import each, reporting
from llmrec.evaluation import bootstrap, fairness, metrics
from llmrec.evaluation.fairness import Gap
from llmrec.evaluation.segments import Grouping, inside
from llmrec.fusion.rerank import Rerank
from llmrec.layout import Layout
from llmrec.ranker.ragged import Ragged
from llmrec.schema import BUCKET, USER
from llmrec.tables import buckets


@dataclass(frozen=True)
class OfGroup:
    """A group of users: those with held-out events, their mean NDCG, and the share that the items have of what all its
    users are shown, weighed by `fairness.discounts`, with its interval of `fairness.Exposure`; None where that is
    nothing."""

    name: str
    users: int
    ndcg: float
    exposure: float | None
    exposure_interval: tuple[float, float] | None


@dataclass(frozen=True)
class Point:
    """Lists of one floor. ndcg: at score.top_k, of users with held-out events; change: 95% bootstrap interval of its
    difference from the lists without a floor, user by user. exposure: as in `OfGroup`, of all users; short: the share
    of lists with fewer of the items than the floor asks for, for want of candidates or of room under quotas. groups: of
    users; gap: between the groups' NDCG, None where there are not two."""

    share: float
    ndcg: float
    change: tuple[float, float]
    exposure: float | None
    exposure_interval: tuple[float, float] | None
    short: float
    groups: list[OfGroup]
    gap: Gap | None


@dataclass(frozen=True)
class Curve:
    """points: without a floor first. column, value: of items; catalogue: the share of items that have it; by: the
    column of users that groups them, empty for none; lists: of how many users; users: with held-out events."""

    run_id: str
    k: int
    window: int
    column: str
    value: str
    catalogue: float
    by: str
    lists: int
    users: int
    points: list[Point]


def curve(
    settings: config.Config, layout: Layout, say: Callable[[str], None], column: str, value: str,
    shares: Sequence[float], by: str = "",
) -> Curve:  # fmt: skip
    """Lists with each share as floor of the items that have a value, beside those without a floor.

    by: users.COLUMN, whose groups are measured apart.

    Raises:
        UserError: the run that is shown kept no parts, nothing was held out, or a column or a value is not there.
    """
    import ray

    k = settings.score.top_k
    run_id, units = kept_run(settings, layout)
    segments = settings.evaluate.model_copy(update={"segments": (by,) if by else ()})
    attributes = evaluate_items.attributes(segments, layout)
    asked = settings.reranking.model_copy(update={"least": {column: {value: 1.0}}, "freshness": config.Freshness()})
    ids, how = ray.get(ray.remote(_catalogue).remote(asked, layout))
    (floor,) = how.floors
    points = [0.0, *sorted(share for share in set(shares) if share > 0)]
    files = buckets.bucket_files(layout.users) if attributes else {}
    given = {
        "layout": layout, "asked": asked, "points": points, "top_k": k, "made": ray.put((ids, how)),
        "attribute": attributes[0] if attributes else "",
    }  # fmt: skip
    units = [unit | {"attributes": files.get(unit[BUCKET], "")} for unit in units]
    rows = sorted(
        reporting(each(units, _measure, given), len(units), say, "fairness"), key=lambda row: int(row[BUCKET])
    )
    lists = sum(row["lists"] for row in rows)
    ndcg, with_truth = _stacked(rows, "ndcg", points), np.concatenate([np.asarray(row["with_truth"]) for row in rows])
    if not ndcg.shape[1]:
        raise nothing_held_out(layout)
    seen, theirs, few = (_stacked(rows, name, points) for name in ("seen", "theirs", "short"))
    grouping = None
    if attributes:
        kind = buckets.schema_of(next(iter(files.values()))).field(attributes[0]).type
        grouping = grouped(attributes[0], [row["values"] for row in rows], kind, segments)
    members = [] if grouping is None else list(zip(grouping.names, inside(grouping), strict=True))
    drawn = settings.evaluate.bootstrap, settings.evaluate.seed
    of_everyone = fairness.exposures(theirs, seen, *drawn)
    of_members = {name: fairness.exposures(theirs[:, users], seen[:, users], *drawn) for name, users in members}
    place = np.full(lists, -1)
    place[with_truth.nonzero()[0]] = np.arange(ndcg.shape[1])
    found = []
    for i, share in enumerate(points):
        of_all = np.full(lists, np.nan)
        of_all[with_truth.nonzero()[0]] = ndcg[i]
        groups = []
        for name, users in members:
            measured = users[place[users] >= 0]
            if len(measured):
                ours, exposed = float(of_all[measured].mean()), of_members[name][i]
                groups.append(OfGroup(name, len(measured), ours, exposed.share, exposed.interval))
        gap = None
        if grouping is not None:
            taken = replace(grouping, members=grouping.members[with_truth.nonzero()[0]])
            gap = fairness.gap(taken, f"ndcg@{k}", ndcg[i], *drawn)
        change, exposed = bootstrap.interval(ndcg[i] - ndcg[0], *drawn), of_everyone[i]
        found.append(
            Point(
                share, float(ndcg[i].mean()), change, exposed.share, exposed.interval, float(few[i].mean()), groups, gap
            )
        )
    return Curve(
        run_id, k, settings.rerank.window, column, value, float(floor.items.mean()), by, lists, ndcg.shape[1], found
    )


def grouped(name: str, values: Sequence[Sequence[str | None]], kind: pa.DataType, wanted: config.Evaluate) -> Grouping:
    """Users by a column of theirs, as `evaluate` groups them: numbers in bins. values: of each bucket's users, as
    texts; kind: of the column."""
    told = pa.chunked_array([pa.array(list(of), pa.string()) for of in values])
    return evaluate_items.of_attribute(
        name, told.cast(pa.float64()) if evaluate_items.is_number(kind) else told, wanted
    )


def _stacked(rows: Sequence[dict[str, Any]], name: str, points: Sequence[float]) -> np.ndarray:
    """float64[points, users]."""
    return np.concatenate([np.asarray(row[name], np.float64).reshape(len(points), -1) for row in rows], axis=1)


def _catalogue(asked: config.Rerank, layout: Layout) -> tuple[pa.Array, Rerank]:
    """The catalogue's ids, and all that choosing takes of it but the vectors of the texts."""
    ids = buckets.catalogue_ids(layout.items)
    how = rerank.of_items(asked, layout, ids).rerank
    assert how is not None
    return ids, how


def _measure(
    batch: pa.Table, layout: Layout, asked: config.Rerank, points: list[float], top_k: int, made: Any, attribute: str
) -> pa.Table:
    """One bucket. Of each point: ndcg of every user with truth; of every user, what he sees, what of it is of the
    items, and whether that is less than the floor asks for."""
    import ray

    (unit,) = batch.to_pylist()
    ids, how = ray.get(made)
    how = rerank.ready(how, asked, layout, ids)
    assert how is not None
    (floor,) = how.floors
    kept = KeptLists(unit, ids)
    ndcg, seen, theirs, short = [], [], [], []
    for share in points:
        lists = kept.chosen(replace(how, floors=(replace(floor, share=share),)), top_k)
        ndcg.append(metrics.per_user(kept.truth, kept.named(lists), [top_k])[f"ndcg@{top_k}"])
        discounts, of_items = fairness.discounts(lists), floor.items[lists.values]
        seen.append(_by_user(discounts, lists))
        theirs.append(_by_user(discounts * of_items, lists))
        short.append(_by_user(of_items.astype(float), lists) < np.floor(share * lists.lengths + 1e-9))
    values = _attribute(unit["attributes"], attribute, kept.users) if attribute else [None] * len(kept.users)
    # Held-out items come in the order of the truth's users; the lists' is another.
    order = {user: i for i, user in enumerate(kept.truth)}
    there = [user for user in kept.users if user in order]
    by_list = np.asarray([order[user] for user in there], np.int64)
    return pa.table({
        BUCKET: [unit[BUCKET]], "lists": [len(kept.users)], "with_truth": [[user in order for user in kept.users]],
        "ndcg": [np.concatenate([of[by_list] for of in ndcg]).tolist()], "seen": [np.concatenate(seen).tolist()],
        "theirs": [np.concatenate(theirs).tolist()], "short": [np.concatenate(short).astype(float).tolist()],
        "values": pa.array([values], pa.list_(pa.string())),
    })  # fmt: skip


def _by_user(values: np.ndarray, lists: Ragged) -> np.ndarray:
    return np.bincount(np.repeat(np.arange(len(lists)), lists.lengths), values, len(lists))


def _attribute(uri: str, column: str, users: list[str]) -> list[str | None]:
    """A column of the users table as texts, None where it says nothing of a user."""
    if not uri:
        return [None] * len(users)
    table = buckets.read_parquet(uri, [USER, column])
    values: list[str | None] = table[column].cast(pa.string()).to_pylist()
    known = dict(zip(map(str, table[USER].to_pylist()), values, strict=True))
    return [known.get(user) for user in users]
