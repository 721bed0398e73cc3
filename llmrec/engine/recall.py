"""recall: candidates for every user from each generator and their merge, bucket by bucket."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from llmrec import config, schema, storage
from llmrec.engine import queries, recall_models
from llmrec.engine.recall_bucket import MERGED, QUERY, RETRIEVE, SEARCHED, recall_bucket
from llmrec.engine.retrieve import retrieve
from llmrec.engine.units import each, reporting
from llmrec.layout import Layout
from llmrec.recall import clusters
from llmrec.schema import ITEM
from llmrec.tables import buckets

LOOKING = "looking for candidates"


@dataclass(frozen=True)
class Recalled:
    """What recall did. per_user: candidates of each source and of the merge; merged: those of the merge that each
    source brought, of several the first; short_lists: users who got fewer than asked for; no_candidates: who got none,
    and are in quarantine; locked: per user, items that require what he has not had; queries: users who typed something,
    where that is a source; empty_sources: which found nothing for anybody; found_of_exact: of the sources that look in
    some clusters alone, the share of exact search's best that they found, of the users who were checked."""

    users: int
    per_user: dict[str, float]
    merged: dict[str, float]
    short_lists: int
    no_candidates: int
    locked: float
    queries: int
    empty_sources: list[str]
    found_of_exact: dict[str, float]
    table: str
    quarantine: str


def recall(
    settings: config.Recall,
    layout: Layout,
    say: Callable[[str], None],
    attention: str = "auto",
    requires: str = "",
) -> Recalled:
    """Write candidates/<source>, candidates/merged and popularity under the root, candidates bucketed like histories.

    attention: how a ranker that retrieves attends; requires: a relation of the graph from an item to those that it
    requires: who has not had all of these does not get it as a candidate from any source. Empty for none.

    Raises:
        UserError: prepare has not written its tables, or what a source needs is not there.
    """
    import ray

    if settings.search.method == "clusters":
        clusters.faiss()  # or a task would be the first to tell that it is missing
    units = recall_models.units(settings, layout)
    say(f"learning from the users of {len(units)} buckets: {', '.join(settings.merge)}")
    models = recall_models.fit(settings, layout, requires)
    popularity = pa.table({ITEM: models.ids, schema.USERS: models.popularity.astype(np.int64)})
    buckets.write_parquet(popularity, layout.popularity)
    storage.delete(layout.quarantine("recall"))
    retrieved = retrieve(settings, layout, attention, models.requires, say) if settings.retrieve.top else []
    typed = queries.encode(settings, layout, say) if QUERY in settings.merge else 0
    say(f"{LOOKING} in {len(units)} buckets")
    arguments = {"models": ray.put(models), "settings": settings, "layout": layout}
    rows = reporting(each(units, recall_bucket, arguments), len(units), say, "recall")
    users = sum(row["users"] for row in rows)
    names: list[str] = [*settings.merge, MERGED]
    kept = buckets.bucket_files(layout.histories)
    for name in names:
        buckets.delete_others(layout.candidates(name), kept)
    totals = np.sum([row["counts"] for row in rows], axis=0)
    empty = [name for name, n in zip(names, totals, strict=True) if n == 0 and name != MERGED]
    none = sum(row["none"] for row in rows)
    brought = np.sum([row["brought"] for row in rows], axis=0)
    left_out = np.sum([row["left_out"] for row in rows], axis=0)  # not what earlier sources have as well
    crowded = [name for name, n, out in zip(settings.merge, brought, left_out, strict=True) if n == 0 and out]
    if empty:
        say(f"found nothing for anybody: {', '.join(empty)}")
    if crowded:
        say(
            f"in no merged list, since sources before them fill its {settings.candidates} places: "
            f"{', '.join(crowded)}; raise recall.candidates, or keep places by recall.quotas"
        )
    if none:
        say(f"{none:,} of {users:,} users have no candidates: {layout.quarantine('recall')}")
    return Recalled(
        users=users,
        per_user=_each(names, totals / max(users, 1)),
        merged=_each(settings.merge, brought / max(users, 1)),
        short_lists=sum(row["short"] for row in rows),
        no_candidates=none,
        locked=round(sum(row["locked"] for row in rows) / max(users, 1), 1),
        queries=typed,
        empty_sources=empty,
        found_of_exact=_found_of_exact([*retrieved, *rows]),
        table=layout.candidates(MERGED),
        quarantine=layout.quarantine("recall"),
    )


def _each(names: Sequence[str], of: np.ndarray) -> dict[str, float]:
    return {name: round(float(n), 1) for name, n in zip(names, of, strict=True)}


def _found_of_exact(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of rows with `recall_bucket.tallies`."""
    found = {}
    for name in (*SEARCHED, RETRIEVE):
        best = sum(row.get(f"best_{name}", 0) for row in rows)
        if best:
            found[name] = round(sum(row[f"hit_{name}"] for row in rows if f"hit_{name}" in row) / best, 4)
    return found
