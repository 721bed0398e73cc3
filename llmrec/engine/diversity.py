"""diversity: what lists gain in diversity and lose in relevance as rerank.trade grows, of a run that kept its parts.

Nothing is scored anew: the kept scores rank as they did, and lists are chosen out of them once for every trade.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from llmrec import config
from llmrec.engine import rerank
from llmrec.engine.kept_lists import KeptLists, kept_run, nothing_held_out
from llmrec.engine.units import each, reporting
from llmrec.evaluation import beyond, bootstrap, metrics
from llmrec.fusion.diversity import unlikeness
from llmrec.fusion.rerank import CELLS, Rerank
from llmrec.layout import Layout
from llmrec.schema import BUCKET
from llmrec.tables import buckets

METHODS, NONE = ("mmr", "dpp"), "none"


@dataclass(frozen=True)
class Point:
    """Lists of one trade. ndcg: at score.top_k, of users with held-out events; interval: 95% bootstrap interval of its
    mean; change: the same of its difference from relevance alone, user by user. unlikeness: of two items of a list, its
    mean over all lists of two or more comparable ones, None if there are none; coverage: share of the catalogue that is
    in a list."""

    method: str
    trade: float
    ndcg: float
    interval: tuple[float, float]
    change: tuple[float, float]
    unlikeness: float | None
    coverage: float


@dataclass(frozen=True)
class Curve:
    """points: relevance alone first. by: what makes items alike; lists: of how many users; users: those with held-out
    events."""

    run_id: str
    k: int
    window: int
    by: str
    lists: int
    users: int
    points: list[Point]


def curve(
    settings: config.Config, layout: Layout, say: Callable[[str], None], trades: Sequence[float],
    methods: Sequence[str] = METHODS,
) -> Curve:  # fmt: skip
    """Lists by each method and trade, within the quotas of rerank, beside those by relevance alone.

    Raises:
        UserError: the run that is shown kept no parts, nothing was held out, or items cannot be compared.
    """
    import ray

    k, window = settings.score.top_k, settings.rerank.window
    run_id, units = kept_run(settings, layout)
    # The kept scores hold what freshness adds. That relevance alone is measured by the same likenesses, items are
    # compared for it, too.
    changed = {"method": methods[0], "trade": 1.0, "freshness": config.Freshness()}
    asked = settings.reranking.model_copy(update=changed)
    made = ray.remote(_catalogue).remote(asked, layout)
    points = [(NONE, 0.0), *((method, trade) for method in methods for trade in trades if trade > 0)]
    given = {"layout": layout, "asked": asked, "points": points, "top_k": k, "made": made}
    covered = np.zeros((len(points), len(buckets.catalogue_ids(layout.items))), bool)
    rows = reporting(_covering(each(units, _measure, given), covered), len(units), say, "diversity")
    rows.sort(key=lambda row: row[BUCKET])
    users, found = together(rows, points, covered, settings.evaluate)
    if not users:
        raise nothing_held_out(layout)
    lists = sum(row["lists"] for row in rows)
    return Curve(run_id, k, window, ", ".join(settings.rerank.by) or "texts", lists, users, found)


def together(
    rows: Sequence[Mapping[str, Any]], points: Sequence[tuple[str, float]], covered: np.ndarray, wanted: config.Evaluate
) -> tuple[int, list[Point]]:
    """How many users have held-out events, and the points, none if nobody has.

    rows: what `_measure` gives of each bucket; covered: bool[points, n_items], what is in any list.
    """
    ndcg = np.concatenate([np.asarray(row["ndcg"]).reshape(len(points), -1) for row in rows], axis=1)
    if not ndcg.shape[1]:
        return 0, []
    apart, compared = (np.sum([row[name] for row in rows], axis=0) for name in ("apart", "compared"))

    def spread(values: np.ndarray) -> tuple[float, float]:
        return bootstrap.interval(values, wanted.bootstrap, wanted.seed)

    return ndcg.shape[1], [
        Point(
            method, trade, float(ndcg[i].mean()), spread(ndcg[i]), spread(ndcg[i] - ndcg[0]),
            beyond.ratio(apart[i], compared[i]), float(covered[i].mean()),
        )
        for i, (method, trade) in enumerate(points)
    ]  # fmt: skip


def _catalogue(asked: config.Rerank, layout: Layout) -> tuple[pa.Array, Rerank | None]:
    """The catalogue's ids, and all that choosing takes of it but the vectors of the texts."""
    ids = buckets.catalogue_ids(layout.items)
    return ids, rerank.of_items(asked, layout, ids).rerank


def _covering(rows: Iterator[dict[str, Any]], covered: np.ndarray) -> Iterator[dict[str, Any]]:
    """The rows without what each covers, which is noted in bool[points, n_items]."""
    for row in rows:
        for point, items in zip(covered, row.pop("covered"), strict=True):
            point[items] = True
        yield row


def _measure(
    batch: pa.Table, layout: Layout, asked: config.Rerank, points: list[tuple[str, float]], top_k: int, made: Any
) -> pa.Table:
    """One bucket. Of each point: ndcg of every user with truth, how far apart the items of all lists are, added up, of
    how many lists, and the rows of the catalogue that are in any."""
    import ray

    ids, within = ray.get(made)
    how = rerank.ready(within, asked, layout, ids)
    assert how is not None and how.alike is not None
    (unit,) = batch.to_pylist()
    kept = KeptLists(unit, ids)
    ndcg, apart, compared, covered = [], [], [], []
    for method, trade in points:
        chosen = replace(how, method=None if method == NONE else method, trade=trade)
        lists = kept.chosen(chosen, top_k)
        ndcg.append(metrics.per_user(kept.truth, kept.named(lists), [top_k])[f"ndcg@{top_k}"])
        far = unlikeness(lists, how.alike, CELLS)
        apart.append(float(np.nansum(far)))
        compared.append(int(np.isfinite(far).sum()))
        covered.append(np.unique(lists.values).tolist())
    return pa.table({
        BUCKET: [unit[BUCKET]], "lists": [len(kept.users)], "ndcg": [np.concatenate(ndcg).tolist()], "apart": [apart],
        "compared": [compared], "covered": [covered],
    })  # fmt: skip
