"""Every candidate's score parts: as the run has them, as a table beside it, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from llmrec.fusion.parts import Parts
from llmrec.schema import ITEMS, SCORE, SCORES, USER
from llmrec.tables import buckets
from llmrec.tables.histories import as_lists, flatten
from llmrec.tables.requests import Work

RANKER, RECALL, RETRIEVE, ITEM_ITEM = "ranker", "recall", "retrieve", "item_item"
PART = f"{SCORE}_"


def of_work(work: Work, ranker: np.ndarray) -> Parts:
    """The ranker's scores (float32[total]) and what each source says; of candidates that do not tell the sources apart,
    the recall score that they have."""
    values: Mapping[str, np.ndarray] = {RANKER: ranker, **work.parts}
    if not work.parts and np.isfinite(work.recall_scores).any():
        values = {RANKER: ranker, RECALL: work.recall_scores}
    return Parts(tuple(values), np.stack(list(values.values()), axis=1), work.candidates.offsets)


def groups(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What is left out together to see what it adds: each source by itself, all that the ranker says, and all that
    item-item says by several decays."""
    found: dict[str, tuple[str, ...]] = {RANKER: (RANKER, RETRIEVE)}
    for name in names:
        if name not in found[RANKER]:
            group = ITEM_ITEM if name.startswith(f"{ITEM_ITEM}_") else name
            found[group] = (*found.get(group, ()), name)
    return found


def table(work: Work, parts: Parts, scores: np.ndarray, ids: pa.Array) -> pa.Table:
    """One row a user: user_id, item_ids, scores (what ranks them, float32[total]) and a list `score_<part>` of each."""
    lists = {ITEMS: ids.take(pa.array(work.candidates.values)), SCORES: pa.array(scores.astype(np.float32))}
    for name, values in zip(parts.names, parts.values.T, strict=True):
        lists[PART + name] = pa.array(np.ascontiguousarray(values), mask=np.isnan(values))
    return pa.table({USER: work.users} | {k: as_lists(v, parts.offsets) for k, v in lists.items()})


def read(uri: str) -> tuple[pa.Table, Parts]:
    """What `table` made: its users, items and scores, and the parts.

    Raises:
        UserError: no such file.
    """
    found = buckets.read_parquet(uri)
    names = [name for name in found.column_names if name.startswith(PART)]
    offsets = flatten(found[ITEMS])[1]
    values = [flatten(found[name])[0].to_numpy(zero_copy_only=False) for name in names]
    return found.drop_columns(names), Parts(
        tuple(name.removeprefix(PART) for name in names), np.stack(values, axis=1), offsets
    )
