"""The promotion gate: a staged run against the run that readers see, before it is published."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec import config, storage
from llmrec.engine.publish import complete
from llmrec.engine.ranking_lists import lists_of, lists_of_rows
from llmrec.engine.units import each, reporting
from llmrec.errors import UserError
from llmrec.evaluation import bootstrap, conditions, metrics
from llmrec.evaluation.conditions import Condition, Decision, Figure
from llmrec.layout import Layout
from llmrec.schema import ITEM, ITEMS, RANK, USER
from llmrec.tables import buckets, rankings
from llmrec.tables.rankings import Snapshot

STAGED, PUBLISHED, PART, COVERAGE = "staged", "published", "part", "coverage"


@dataclass(frozen=True)
class Gated:
    """Whether a run may be shown. published_run: what readers see, None if nothing; users: with a held-out event, over
    whom every mean is taken, about `evaluate.users` at most; one whom a run does not rank counts 0 there; ranked: those
    with a list in the staged run, for readers find nothing of the others once it is shown, whatever score.users_share
    says."""

    run_id: str
    published_run: str | None
    table: str
    users: int
    ranked: int
    holds: bool
    decisions: list[Decision]


def gate(
    settings: config.Config, layout: Layout, asked: Sequence[Condition], run_id: str | None, say: Callable[[str], None]
) -> Gated:
    """Measure a staged run and the published one on the held-out events, and judge every condition.

    asked: at least one; run_id: None for the run that score left last.

    Raises:
        UserError: the run is incomplete or unknown, or nothing was held out.
    """
    if run_id is None:
        if not storage.exists(layout.summary("score")):
            raise UserError(f"{layout.root}: score has not finished there; run jobs/score.py first, or give --run")
        run_id = storage.read_json(layout.summary("score"))["summary"]["run_id"]
    run, entries = complete(layout, run_id)
    table, count = run["output"], run["buckets"]
    hashed = len(buckets.bucket_files(layout.histories))
    if hashed != count:
        raise UserError(f"run '{run_id}' has {count} buckets, {layout.targets} has {hashed}; score again")
    now = rankings.snapshot(table) if rankings.opened(table) is not None else None
    # Users of a bucket of one number of buckets are spread over those of another that have a common remainder.
    common = count if now is None else math.gcd(count, now.buckets)
    truth = buckets.bucket_files(layout.targets)
    units = [{PART: part} for part in range(common) if any(b % common == part for b in truth)]
    shown = None if now is None else now.run_id
    given = {
        "table": table, "shown": shown, "cutoffs": sorted({condition.cutoff for condition in asked}),
        "parts": common, "truth": truth, "staged": {b: storage.join(table, e.path) for b, e in entries.items()},
        "buckets_shown": 0 if now is None else now.buckets,
        "share": buckets.share_for(truth.values(), settings.evaluate.users)[0],
    }  # fmt: skip
    covered = defaultdict[str, set[str]](set)
    done = reporting(_covering(each(units, _measure, given), covered), len(units), say, "evaluate", "parts")
    rows = sorted(done, key=lambda row: row[PART])  # so that resampling draws the same users again
    users = sum(row["users"] for row in rows)
    if users == 0:
        raise UserError(
            f"{layout.targets}: no held-out events; set data.split to leave_one_out or time and prepare again"
        )
    figures = _figures(rows, covered, asked, settings.evaluate, len(buckets.catalogue_ids(layout.items)), now)
    decided = [conditions.decide(condition, figures[condition.metric]) for condition in asked]
    ranked = sum(row["ranked"] for row in rows)
    return Gated(run_id, shown, table, users, ranked, all(d.holds for d in decided), decided)


def _covering(rows: Iterable[dict[str, Any]], covered: dict[str, set[str]]) -> Iterator[dict[str, Any]]:
    """The rows without the items that each covers, which are gathered by their column: of all parts they are many."""
    for row in rows:
        for name in [name for name in row if COVERAGE in name]:
            covered[name].update(row.pop(name))
        yield row


def _figures(
    rows: Sequence[Mapping[str, Any]], covered: Mapping[str, set[str]], asked: Sequence[Condition],
    settings: config.Evaluate, catalogue: int, now: Snapshot | None,
) -> dict[str, Figure]:  # fmt: skip
    found = {}
    for metric in {condition.metric for condition in asked}:
        both = [f"{run} {metric}" for run in (STAGED, PUBLISHED)]
        if metric.split("@")[0] in conditions.PER_USER:
            staged, published = (np.concatenate([row[name] for row in rows]) for name in both)
            # Equal values have equal means only if they are summed in the same order.
            means = float(staged.mean()), float(published.mean())
            low, high = bootstrap.interval(staged - published, settings.bootstrap, settings.seed)
            found[metric] = Figure(means[0], means[1], low, high) if now else Figure(means[0], None, None, None)
        else:
            shares = [len(covered[name]) / catalogue for name in both]
            found[metric] = Figure(shares[0], shares[1] if now else None, None, None)
    return found


def _measure(
    batch: pa.Table, table: str, shown: str | None, cutoffs: list[int], parts: int, truth: Mapping[int, str],
    staged: Mapping[int, str], buckets_shown: int, share: float,
) -> pa.Table:  # fmt: skip
    """Per-user metrics of both runs over some users, of a share of all who have held-out events, and which items each
    shows in all its lists."""
    (unit,) = batch.to_pylist()

    def here(files: Mapping[int, str]) -> list[str]:
        return [uri for bucket, uri in sorted(files.items()) if bucket % parts == unit[PART]]

    held_out = pa.concat_tables([buckets.read_parquet(uri, [USER, ITEMS]) for uri in here(truth)])
    wanted = lists_of(held_out.filter(pa.array(buckets.share_of(held_out[USER], share))))
    columns = [USER, RANK, ITEM]
    both = {STAGED: [buckets.read_parquet(uri, columns) for uri in here(staged)], PUBLISHED: []}
    if shown is not None:
        which = range(unit[PART], buckets_shown, parts)
        both[PUBLISHED].append(rankings.rows(rankings.snapshot(table, shown), which, columns))
    found: dict[str, Any] = {PART: [unit[PART]], "users": [len(wanted)]}
    for name, tables in both.items():
        rows = pa.concat_tables(tables).sort_by([(USER, "ascending"), (RANK, "ascending")]) if tables else None
        best = {} if rows is None else lists_of_rows(rows, max(cutoffs))
        if name == STAGED:
            found["ranked"] = [sum(user in best for user in wanted)]
        for metric, values in metrics.per_user(wanted, best, cutoffs, conditions.PER_USER).items():
            found[f"{name} {metric}"] = [values.tolist()]
        for k in cutoffs:
            items = [] if rows is None else pa.compute.unique(rows.filter(pa.compute.less_equal(rows[RANK], k))[ITEM])
            found[f"{name} {COVERAGE}@{k}"] = [[str(item) for item in pa.array(items).to_pylist()]]
    return pa.table(found)
