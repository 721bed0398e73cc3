"""feedback: what came of published rankings, as events that make up for the places where they were shown.

Two passes over the impressions. The first counts what was shown and taken, item by item and place by place, from which
comes how much a place counts for; the second writes what was taken as a log of its own, which prepare reads beside the
log. What was shown and not taken only counts in the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from llmrec import schema, storage
from llmrec.config import Data, Feedback, Privacy
from llmrec.data.clean import KIND
from llmrec.data.context import columns_of
from llmrec.data.impressions import POSITION, TAKEN, added, counted, impressions_quarantine, judge_impressions
from llmrec.engine.units import each, reporting
from llmrec.errors import UserError
from llmrec.evaluation import position_bias
from llmrec.layout import Layout
from llmrec.schema import ITEM, REASON, RUN_ID, TIMESTAMP, USER, WEIGHT
from llmrec.tables import buckets, forgotten, inputs, pseudonyms
from llmrec.tables.forgotten import Forgotten
from llmrec.tables.pseudonyms import Pseudonyms

FILE, NUMBER = "file", "number"
UNNAMED = "(no run)"


@dataclass(frozen=True)
class Place:
    """A position from 1 on. examined: how probable it is that it is looked at, the most probable one 1; weight: what
    an outcome there counts. The last one stands for all behind it, too."""

    position: int
    shown: int
    taken: int
    examined: float
    weight: float


@dataclass(frozen=True)
class OfRun:
    """What came of a run. rate: taken of shown; corrected: what the rate would be if every place were looked at as the
    best one is, by inverse propensity."""

    run_id: str
    shown: int
    taken: int
    rate: float
    corrected: float


@dataclass(frozen=True)
class FedBack:
    """What feedback did. impressions = used + the counts in `set_aside`; outcomes: events written; effective: so many
    events of equal weight would say as much; converged: whether the estimate of the places came to rest, None if they
    were given or nothing is corrected."""

    impressions: int
    set_aside: dict[str, int]
    outcomes: int
    effective: float
    converged: bool | None
    places: list[Place]
    runs: list[OfRun]
    table: str
    quarantine: str


def feedback(settings: Feedback, data: Data, privacy: Privacy, layout: Layout, say: Callable[[str], None]) -> FedBack:
    """Write tables/feedback: user_id, item_id, timestamp, weight and, with data.event_weights, event.

    The table has no rows where no impression is usable, or nothing was taken.

    Raises:
        UserError: no impressions lie there, their files disagree on the type of ids, too many are bad, a column is
            missing, or the key of pseudonyms is missing, too short or another than before.
    """
    if not settings.impressions:
        raise UserError("feedback.impressions is not set; give a Parquet file or directory of what users were shown")
    files = list(inputs.files(settings.impressions))
    units = [{FILE: uri, NUMBER: number} for number, uri in enumerate(files)]
    kind = _id_types(settings.impressions, files, data)[data.columns.user]
    names = None
    if privacy.pseudonyms and privacy.brought != "pseudonyms":
        names = pseudonyms.begun(privacy, layout, kind)
    given: dict[str, Any] = {"data": data, "settings": settings, "names": names, "gone": forgotten.read(layout)}
    say(f"counting the impressions of {len(units)} files")
    rows = reporting(each(units, _count, given), len(units), say, "feedback", "files")
    reasons: Counter[str] = Counter()
    for row in rows:
        reasons.update(dict(zip(row["reasons"], row["counts"], strict=True)))
    total = sum(reasons.values())
    bad = total - reasons.pop("good", 0) - reasons[forgotten.REASON]
    if bad > data.max_bad_share * total:
        told = ", ".join(f"{n:,} {reason}" for reason, n in sorted(reasons.items()) if n)
        raise UserError(
            f"{settings.impressions}: of {total:,} impressions {bad:,} are bad ({told}), more than "
            f"data.max_bad_share = {data.max_bad_share} allows; nothing was written"
        )
    counts = added([_frame(row) for row in rows])
    if not counts["taken"].sum():
        say(
            f"nothing was taken of {counts['shown'].sum():,} usable impressions, so that no event comes of them; is "
            f"feedback.outcome = '{settings.outcome}' the right column?"
        )
    examined, converged = _examined(counts, settings)
    storage.delete(layout.quarantine("feedback"))
    storage.delete(layout.feedback)
    say("weighing what was taken")
    given |= {"layout": layout, "examined": examined}
    done = reporting(each(units, _write, given), len(units), say, "feedback", "files")
    sums = np.sum([[row["outcomes"], row["weight"], row["squares"]] for row in done], axis=0)
    of_places = counts.group_by(POSITION).agg(pl.col("shown", "taken").sum()).sort(POSITION)
    return FedBack(
        impressions=total,
        set_aside=dict(sorted(reasons.items())),
        outcomes=int(sums[0]),
        effective=float(sums[1] ** 2 / sums[2]) if sums[2] else 0.0,
        converged=converged,
        places=[
            Place(p, shown, taken, *_of_place(examined, p, settings))
            for p, shown, taken in of_places.iter_rows()
        ],
        runs=_runs([row for found in done for row in found["runs"]]),
        table=layout.feedback,
        quarantine=layout.quarantine("feedback"),
    )  # fmt: skip


def _examined(counts: pl.DataFrame, settings: Feedback) -> tuple[np.ndarray, bool | None]:
    """float64[positions], how probable it is that each is looked at, and whether an estimate came to rest. All alike
    where nothing was taken, which tells nothing of them."""
    if settings.correction == "none" or not (settings.examination or counts["taken"].sum()):
        return np.ones(settings.positions), None
    if settings.examination:
        return np.asarray(settings.examination), None
    items = counts[ITEM].rank("dense").to_numpy().astype(np.int64) - 1
    found = position_bias.examination(
        items, counts[POSITION].to_numpy() - 1, counts["shown"].to_numpy(), counts["taken"].to_numpy()
    )
    return found.relative, found.converged


def _of_place(examined: np.ndarray, position: int, settings: Feedback) -> tuple[float, float]:
    at = np.asarray([position - 1])
    return float(examined[min(position, len(examined)) - 1]), float(
        position_bias.weights(examined, at, settings.max_weight)[0]
    )


def _id_types(impressions: str, files: Sequence[str], data: Data) -> dict[str, pa.DataType]:
    """The types of users' and items' ids, by their columns. Reads footers only."""
    found = {}
    schemas = storage.each(buckets.schema_of, files)
    for column in (data.columns.user, data.columns.item):
        kinds = {schema.id_type(of, column, uri): uri for of, uri in zip(schemas, files, strict=True)}
        if len(kinds) > 1:
            told = ", ".join(sorted(f"{kind} in {uri}" for kind, uri in kinds.items()))
            raise UserError(f"{impressions}: files disagree on the type of ids in column '{column}' ({told})")
        (found[column],) = kinds
    return found


def _read(
    uri: str, data: Data, settings: Feedback, names: Pseudonyms | None, gone: Forgotten | None
) -> tuple[pl.DataFrame, int]:
    """The judged impressions of a file, and how many others are of users who were forgotten."""
    there, columns = buckets.schema_of(uri).names, data.columns
    context = [name for name in columns_of(data.context, columns) if name in there and name != columns.timestamp]
    wanted = (columns.user, columns.item, columns.timestamp, settings.position, settings.outcome, RUN_ID, *context)
    rows = buckets.read_parquet(uri, [name for name in dict.fromkeys(wanted) if name in there])
    rows = pseudonyms.replaced(rows, columns.user, names, uri)
    schema.id_type(rows.schema, columns.user, uri)
    kept = rows if gone is None else gone.without(rows, columns.user)
    judged = judge_impressions(kept, columns, settings, data.min_timestamp, data.max_timestamp, uri, context)
    return judged, rows.num_rows - kept.num_rows


def _count(
    batch: pa.Table, data: Data, settings: Feedback, names: Pseudonyms | None, gone: Forgotten | None
) -> pa.Table:
    """Rows per reason of one file, and `impressions.counted` of the others."""
    (unit,) = batch.to_pylist()
    judged, left_out = _read(unit[FILE], data, settings, names, gone)
    tally = judged.group_by(pl.col(REASON).fill_null("good")).len().sort(REASON)
    found = counted(judged.filter(pl.col(REASON).is_null()), settings.positions)
    return pa.table(
        {
            "reasons": [[*tally[REASON].to_list(), *[forgotten.REASON] * bool(left_out)]],
            "counts": [[*tally["len"].to_list(), *[left_out] * bool(left_out)]],
        }
        | {name: [found[name].to_list()] for name in (ITEM, POSITION, "shown", "taken")}
    )


def _frame(row: dict[str, Any]) -> pl.DataFrame:
    lists = {name: list(row[name]) for name in (ITEM, POSITION, "shown", "taken")}
    return pl.DataFrame(lists)


def _write(
    batch: pa.Table, data: Data, settings: Feedback, names: Pseudonyms | None, gone: Forgotten | None, layout: Layout,
    examined: np.ndarray,
) -> pa.Table:  # fmt: skip
    """Write what was taken of one file; its sums and what came of each run."""
    (unit,) = batch.to_pylist()
    judged, _ = _read(unit[FILE], data, settings, names, gone)
    bad, good = judged.filter(pl.col(REASON).is_not_null()), judged.filter(pl.col(REASON).is_null()).drop(REASON)
    name = f"part-{unit[NUMBER]:05}.parquet"
    if len(bad):
        buckets.write_parquet(
            impressions_quarantine(bad, unit[FILE]), storage.join(layout.quarantine("feedback"), name)
        )
    weight = position_bias.weights(examined, good[POSITION].to_numpy() - 1, settings.max_weight)
    good = good.with_columns(pl.Series(WEIGHT, weight))
    events = good.filter(TAKEN).drop(POSITION, TAKEN, *({RUN_ID} & set(good.columns)))
    if data.event_weights:
        events = events.with_columns(pl.lit(settings.event).alias(KIND))
    buckets.write_parquet(
        events.select(USER, ITEM, TIMESTAMP, pl.all().exclude(USER, ITEM, TIMESTAMP)).to_arrow(),
        storage.join(layout.feedback, name),
    )
    run = pl.col(RUN_ID).fill_null(UNNAMED) if RUN_ID in good.columns else pl.lit(UNNAMED).alias(RUN_ID)
    of_runs = good.group_by(run).agg(
        shown=pl.len().cast(pl.Int64), taken=pl.col(TAKEN).sum().cast(pl.Int64),
        weight=pl.col(WEIGHT).filter(TAKEN).sum().cast(pl.Float64),
    ).filter(pl.col("shown") > 0)  # fmt: skip
    told = events[WEIGHT].cast(pl.Float64)
    return pa.table({
        "outcomes": [len(events)], "weight": [float(told.sum())], "squares": [float((told**2).sum())],
        "runs": [of_runs.sort(RUN_ID).to_dicts()],
    })  # fmt: skip


def _runs(rows: list[dict[str, Any]]) -> list[OfRun]:
    found: dict[str, list[float]] = {}
    for row in rows:
        sums = found.setdefault(row[RUN_ID], [0, 0, 0.0])
        for i, name in enumerate(("shown", "taken", "weight")):
            sums[i] += row[name]
    return [
        OfRun(run, int(shown), int(taken), taken / shown, weight / shown)
        for run, (shown, taken, weight) in sorted(found.items())
    ]
