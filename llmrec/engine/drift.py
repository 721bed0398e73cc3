"""drift: what the inputs and the scores look like now, against when the rankings were last published."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec import config, storage
from llmrec.engine.publish import complete
from llmrec.engine.units import each, reporting
from llmrec.errors import UserError
from llmrec.evaluation import drift
from llmrec.evaluation.drift import Drift
from llmrec.layout import Layout
from llmrec.schema import ITEM, ITEMS, SCORE, SOURCE, TIMESTAMPS, TITLE
from llmrec.tables import buckets
from llmrec.tables.histories import flatten

TEXT_LENGTH, ACTIVITY, ITEM_MIX, SCORES, SOURCE_MIX, SHOWN_MIX = (
    "text_length", "activity", "item_mix", "scores", "source_mix", "shown_mix",
)  # fmt: skip
OF_INPUTS, OF_SCORES = (TEXT_LENGTH, ACTIVITY, ITEM_MIX), (SCORES, SOURCE_MIX, SHOWN_MIX)
OWN_SCORES = "own_scores"
MIXES = (ITEM_MIX, SHOWN_MIX)  # of which the most frequent items are told apart
WATCHED = 100
SAMPLE = 2000  # scores of a bucket, by which the edges of their groups are chosen
DAY = 86_400


@dataclass(frozen=True)
class Profile:
    """Counts by the name of a distribution and of its groups. newest_event: unix seconds, None if there is no event;
    edges: between the groups of scores; run_id: whose scores, None if it has none yet. Scores of a profile that was
    taken to be compared with another are in the other's groups; of one that is kept in tenths of its own."""

    counts: dict[str, dict[str, float]]
    newest_event: int | None
    edges: list[float]
    run_id: str | None


@dataclass(frozen=True)
class Drifted:
    """What drift found. reference_run: when it was published the reference was taken, None if there is none;
    event_age_hours: since the newest event; stale: it is older than drift.max_event_age_hours; stop: something has
    moved, or aged, so far that nothing should be published."""

    reference_run: str | None
    drifts: list[Drift]
    event_age_hours: float | None
    stale: bool
    stop: bool

    def reasons(self) -> str:
        found = [f"{of.of} has moved by a PSI of {of.psi:.3f}" for of in self.drifts if of.level == "stop"]
        if self.stale:
            found.append(f"the newest event is {self.event_age_hours:,.1f} hours old")
        return ", ".join(found)


def reference(layout: Layout, readable: bool = True) -> Profile | None:
    """What was kept when the rankings were last published by the pipeline, or accepted. readable: it has to be; else
    None for what is not.

    Raises:
        UserError: it is not.
    """
    found = storage.read_if_there(layout.profile)
    if found is None:
        return None
    try:
        return Profile(**storage.read_json(layout.profile))
    except (TypeError, ValueError):
        if not readable:
            return None
        raise UserError(
            f"{layout.profile}: not a profile of this version; delete it, or llmrec drift --accept"
        ) from None


def keep(profile: Profile, layout: Layout) -> None:
    """What is compared with from now on; of the items of a mix, its own most frequent alone are told apart."""
    mixes = {name: drift.watched(profile.counts[name], (), WATCHED) for name in MIXES if name in profile.counts}
    storage.write_json(layout.profile, asdict(replace(profile, counts=profile.counts | mixes)))


def profile_inputs(
    settings: config.Drift, layout: Layout, before: Profile | None, say: Callable[[str], None]
) -> Profile:
    """Of the tables that prepare wrote: lengths of titles, users' numbers of events, and which items the events of the
    newest days are of."""
    units = [{"uri": uri} for uri in buckets.bucket_files(layout.histories).values()]
    newest = max((n for n in storage.each(_newest, [u["uri"] for u in units]) if n is not None), default=None)
    given = {"since": None if newest is None else newest - int(settings.window_days * DAY)}
    rows = reporting(each(units, _histories, given), len(units), say, "drift")
    titles = pa.compute.utf8_length(buckets.read_parquet(layout.items, [TITLE])[TITLE].cast(pa.string()))
    counts: dict[str, dict[str, float]] = {
        TEXT_LENGTH: dict(drift.by_size(titles.to_numpy())),
        ACTIVITY: _added(rows, ACTIVITY), ITEM_MIX: _watched(_added(rows, ITEM_MIX), ITEM_MIX, before),
    }  # fmt: skip
    return Profile(counts, newest, [], None)


def profile_scores(
    inputs: Profile, layout: Layout, run_id: str, before: Profile | None, say: Callable[[str], None]
) -> tuple[Profile, Profile]:
    """`inputs` and, of a run that is staged or published: its scores, the sources of what it shows, and which items.
    Twice: scores in the groups of `before`, to be compared with it, and in tenths of their own, to be kept.

    Raises:
        UserError: the run is unknown or incomplete.
    """
    run, entries = complete(layout, run_id)
    units = [{"uri": storage.join(run["output"], entry.path)} for entry in entries.values() if entry.rows]
    sampled = [row[SCORE] for row in each(units, _sample, {})]
    own = drift.deciles(np.concatenate([np.empty(0), *sampled]))
    edges = before.edges if before is not None and before.edges else own
    rows = reporting(each(units, _rankings, {"edges": edges, "own": own}), len(units), say, "drift")
    counts = inputs.counts | {
        SCORES: _added(rows, SCORES), SOURCE_MIX: _added(rows, SOURCE_MIX),
        SHOWN_MIX: _watched(_added(rows, SHOWN_MIX), SHOWN_MIX, before),
    }  # fmt: skip
    kept = counts | {SCORES: _added(rows, OWN_SCORES)}
    return Profile(counts, inputs.newest_event, edges, run_id), Profile(kept, inputs.newest_event, own, run_id)


def compare(
    settings: config.Drift, now: Profile, before: Profile | None, names: Sequence[str], at: float | None = None
) -> Drifted:
    """What has moved of the named distributions. at: unix seconds now, None for this moment."""
    drifts = []
    for name in names if before is not None else ():
        assert before is not None
        if name not in before.counts or name not in now.counts:
            continue
        a, b = before.counts[name], now.counts[name]
        b = drift.of_watched(a, b) if name in MIXES else b
        stop = settings.stop if name in settings.stop_on else None
        drifts.append(drift.compare(name, a, b, settings.warn, stop))
    age = None if now.newest_event is None else ((at or time.time()) - now.newest_event) / 3600
    limit = settings.max_event_age_hours
    stale = limit is not None and age is not None and age > limit
    stop_now = stale or any(of.level == "stop" for of in drifts)
    return Drifted(None if before is None else before.run_id, drifts, age, stale, stop_now)


def _watched(counts: dict[str, float], name: str, before: Profile | None) -> dict[str, float]:
    return drift.watched(counts, before.counts.get(name, {}) if before is not None else (), WATCHED)


def _newest(uri: str) -> int | None:
    found = buckets.bounds(uri, TIMESTAMPS)
    return None if found is None else int(found[1])


def _histories(batch: pa.Table, since: int | None) -> pa.Table:
    """How many events the users of a bucket have, and of which items those after `since` are."""
    (unit,) = batch.to_pylist()
    table = buckets.read_parquet(unit["uri"], [ITEMS, TIMESTAMPS])
    lengths = pa.compute.list_value_length(table[ITEMS]).to_numpy()
    items = flatten(table[ITEMS])[0]
    if since is not None:
        items = items.filter(pa.compute.greater(flatten(table[TIMESTAMPS])[0], since))
    return _table({ACTIVITY: drift.by_size(lengths), ITEM_MIX: _tally(items)})


def _sample(batch: pa.Table) -> pa.Table:
    (unit,) = batch.to_pylist()
    scores = buckets.read_parquet(unit["uri"], [SCORE])[SCORE].to_numpy()
    return pa.table({SCORE: [scores[:: max(1, len(scores) // SAMPLE)]]})


def _rankings(batch: pa.Table, edges: list[float], own: list[float]) -> pa.Table:
    (unit,) = batch.to_pylist()
    table = buckets.read_parquet(unit["uri"], [ITEM, SCORE, SOURCE])
    scores = table[SCORE].to_numpy()
    return _table({
        SCORES: drift.by_edges(scores, edges), OWN_SCORES: drift.by_edges(scores, own),
        SOURCE_MIX: _tally(table[SOURCE]), SHOWN_MIX: _tally(table[ITEM]),
    })  # fmt: skip


def _tally(values: pa.Array | pa.ChunkedArray) -> dict[str, int]:
    found = pa.compute.value_counts(values.cast(pa.string()).fill_null("none"))
    found = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
    return dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True))


def _table(counts: Mapping[str, Mapping[str, int]]) -> pa.Table:
    columns: dict[str, Any] = {}
    for name, of in counts.items():
        columns[f"{name} groups"] = pa.array([list(of)], pa.list_(pa.string()))
        columns[f"{name} counts"] = pa.array([list(of.values())], pa.list_(pa.int64()))
    return pa.table(columns)


def _added(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    total: Counter[str] = Counter()
    for group, count in _pairs(rows, name):
        total[group] += int(count)
    return dict(total)


def _pairs(rows: Sequence[Mapping[str, Any]], name: str) -> Iterator[tuple[str, int]]:
    for row in rows:
        yield from zip(row[f"{name} groups"], row[f"{name} counts"], strict=True)
