"""recall: candidates for every user from each generator and their merge, bucket by bucket."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from llmrec import config, schema
from llmrec.engine import recall_models
from llmrec.engine.recall_bucket import MERGED, recall_bucket
from llmrec.engine.retrieve import retrieve
from llmrec.engine.units import each, reporting
from llmrec.layout import Layout
from llmrec.schema import BUCKET, ITEM
from llmrec.tables import buckets


@dataclass(frozen=True)
class Recalled:
    """What recall did: users, candidates per user of each source and of the merge, users who got fewer than asked."""

    users: int
    per_user: dict[str, float]
    short_lists: int
    table: str


def recall(settings: config.Recall, layout: Layout, say: Callable[[str], None], attention: str = "auto") -> Recalled:
    """Write candidates/<source>, candidates/merged and popularity under the root, candidates bucketed like histories.

    attention: how a ranker that retrieves attends.

    Raises:
        UserError: prepare has not written its tables, or what a source needs is not there.
    """
    import ray

    files = buckets.bucket_files(layout.histories)
    say(f"learning from the users of {len(files)} buckets: {', '.join(settings.merge)}")
    models = recall_models.fit(settings, layout)
    popularity = pa.table({ITEM: models.ids, schema.USERS: models.popularity.astype(np.int64)})
    buckets.write_parquet(popularity, layout.popularity)
    if settings.retrieve.top:
        retrieve(settings, layout, attention, say)
    units = [{BUCKET: bucket, "uri": uri} for bucket, uri in files.items()]
    arguments = {"models": ray.put(models), "settings": settings, "layout": layout}
    rows = reporting(each(units, recall_bucket, arguments), len(units), say, "recall")
    users = sum(row["users"] for row in rows)
    names = [*settings.merge, MERGED]
    for name in names:
        buckets.delete_others(layout.candidates(name), files)
    totals = np.sum([row["counts"] for row in rows], axis=0) / max(users, 1)
    return Recalled(
        users=users,
        per_user={name: round(float(n), 1) for name, n in zip(names, totals, strict=True)},
        short_lists=sum(row["short"] for row in rows),
        table=layout.candidates(MERGED),
    )
