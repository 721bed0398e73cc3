"""Some of a bucket's users: those to score, those copied from an earlier run, those set aside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec.ranker.ragged import within
from llmrec.schema import DETAIL, KEY, ORIGIN, QUARANTINE, REASON
from llmrec.tables.requests import Work


def only(work: Work, rows: np.ndarray) -> Work:
    """The work of these users (int64[m], ascending, none twice), its counts unchanged."""
    if len(rows) == len(work.users):
        return work
    pairs = pa.array(pairs_of(work, rows))
    return replace(
        work,
        users=work.users.take(pa.array(rows)),
        histories=work.histories.take(rows),
        candidates=work.candidates.take(rows),
        recall_scores=work.recall_scores[pairs.to_numpy()],
        parts={name: values[pairs.to_numpy()] for name, values in work.parts.items()},
        sources=work.sources.take(pairs),
        openings=None if work.openings is None else work.openings.take(pa.array(rows)),
        contexts=None if work.contexts is None else work.contexts.take(pa.array(rows)),
    )


def pairs_of(work: Work, rows: np.ndarray) -> np.ndarray:
    """int64[m]: where these users' candidates lie among all."""
    lengths = work.candidates.lengths[rows]
    return np.repeat(work.candidates.offsets[rows], lengths) + within(lengths)


def set_aside(work: Work, users: Mapping[int, tuple[str, str]], ids: pa.Array, origin: str) -> Work:
    """The work without some users, one quarantine row for each of their candidates.

    users: number of the user -> (reason code, detail); ids: the catalogue's item ids; origin: the candidates' file.
    """
    if not users:
        return work
    rows = np.asarray(sorted(users), np.int64)
    pairs, lengths = pairs_of(work, rows), work.candidates.lengths[rows]
    of_pair = [users[int(row)] for row in np.repeat(rows, lengths)]
    items = ids.take(pa.array(work.candidates.values[pairs])).cast(pa.string()).to_pylist()
    quarantine = pa.table({
        KEY: work.users.take(pa.array(np.repeat(rows, lengths))).cast(pa.string()),
        REASON: pa.array([reason for reason, _ in of_pair], pa.string()),
        DETAIL: pa.array([f"item={item}: {why}" for item, (_, why) in zip(items, of_pair, strict=True)], pa.string()),
        ORIGIN: pa.array([origin] * len(pairs), pa.string()),
    }, schema=QUARANTINE)  # fmt: skip
    counts = dict(work.counts)
    counts["to_score"] -= len(pairs)
    counts["quarantined"] += len(pairs)
    left = only(work, np.setdiff1d(np.arange(len(work.users)), rows))
    return replace(left, counts=counts, quarantine=quarantine)
