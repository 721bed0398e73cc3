"""Pairs of users and items with labels: read, shared out among buckets, and scored by the parts that a run kept."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute

from llmrec import schema, storage
from llmrec.config import Privacy
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.schema import ITEM, ITEMS, SCORES, USER
from llmrec.tables import buckets, pseudonyms

LABEL = "label"


def by_bucket(uri: str, privacy: Privacy, layout: Layout, run_id: str) -> dict[int, pa.Table]:
    """The pairs of each bucket that has some: user_id, item_id, label (bool). The file is held whole.

    Raises:
        UserError: the run kept no parts, the file is not what evaluate.labelled takes, or the key of pseudonyms is
            missing or another than that of the tables.
    """
    if not storage.exists(layout.score_parts(run_id)):
        raise UserError(
            f"evaluate.labelled: run {run_id} kept no scores of its candidates; set score.keep_parts = true and run "
            "jobs/score.py again"
        )
    pairs = pseudonyms.replaced(buckets.read_parquet(uri), USER, pseudonyms.brought(privacy, layout), uri)
    histories = buckets.bucket_files(layout.histories)
    kinds = {
        USER: buckets.schema_of(next(iter(histories.values()))).field(USER).type,
        ITEM: buckets.schema_of(layout.items).field(ITEM).type,
    }
    ids = []
    for column, kind in kinds.items():
        found = schema.id_type(pairs.schema, column, uri)
        if found != kind:
            raise UserError(f"{uri}: column '{column}' holds {found} ids, the prepared tables hold {kind}")
        if pairs[column].null_count:
            raise UserError(f"{uri}: column '{column}' has {pairs[column].null_count:,} nulls; leave such rows out")
        ids.append(schema.as_ids(pairs, column, uri))
    table = pa.table({USER: ids[0], ITEM: ids[1], LABEL: _labels(pairs, uri)})
    which = buckets.bucket_of(table[USER], len(histories))
    return {int(b): table.filter(pa.array(which == b)) for b in np.unique(which)}


def _labels(pairs: pa.Table, uri: str) -> pa.ChunkedArray:
    schema.require(pairs.schema, {LABEL: "anything"}, uri)
    kind = pairs.schema.field(LABEL).type
    if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise UserError(f"{uri}: column '{LABEL}' has type {kind}; labels are 0 or 1")
    values = pairs[LABEL].cast(pa.float64())
    good = pa.compute.is_in(values, pa.array([0.0, 1.0])).to_numpy()
    if not good.all():
        bad = pairs[LABEL][int(np.flatnonzero(~good)[0])].as_py()
        raise UserError(f"{uri}: column '{LABEL}' holds {'null' if bad is None else bad}; labels are 0 or 1")
    return values.cast(pa.bool_())


def scored(pairs: pa.Table, parts: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int64[n]: the pair's user, from 0 without gaps; float32[n]: the score by which the run ranked it, NaN if it was
    no candidate; bool[n]: its label.

    parts: where the bucket's score parts are.
    """
    kept = pl.DataFrame(pl.from_arrow(buckets.read_parquet(parts, [USER, ITEMS, SCORES])))
    flat = kept.explode(ITEMS, SCORES).rename({ITEMS: ITEM})
    asked = pl.DataFrame(pl.from_arrow(pairs)).with_columns(at=pl.col(USER).rank("dense").cast(pl.Int64) - 1)
    found = asked.join(flat, on=[USER, ITEM], how="left", maintain_order="left")
    scores = found[SCORES].cast(pl.Float32).fill_null(float("nan")).to_numpy()
    return found["at"].to_numpy(), scores, found[LABEL].to_numpy()
