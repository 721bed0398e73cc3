"""What a method may see of a data set, and what it is asked: leave-one-out by time."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import xxhash

from benchmarks.quality.datasets import Dataset
from llmrec.ranker.ragged import Ragged, within
from llmrec.schema import ITEM
from llmrec.tables.histories import keep

VALIDATION, VALIDATION_4, TEST, COLD, COLD_ONLY = "validation", "validation-4", "test", "cold", "cold-only"
SPLITS = (VALIDATION, VALIDATION_4, TEST, COLD, COLD_ONLY)
COLD_SHARE, COLD_SEED = 0.1, 0


@dataclass(frozen=True)
class Split:
    """training: histories of all users, to fit on. Of m targets: users: int64[m], the rows of whose they are;
    known: what is scored from; seen: what is masked; target: int32[m], the true item, not among those seen. candidates:
    bool[n_items]. events: int64[total], places of the training events among the data set's, and asked: int64[m], those
    of the targets, to look up contexts by; none of a split made of histories alone."""

    training: Ragged
    users: np.ndarray
    known: Ragged
    seen: Ragged
    target: np.ndarray
    candidates: np.ndarray
    events: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    asked: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


def split(dataset: Dataset, name: str) -> Split:
    """validation: all but the last two events are for training, the last but one is the target.
    validation-4: all but the last five are for training; each of the four before the last is a target, of users with
    more events than these, known what came before it.
    test: all but the last are for training, the last is the target.
    cold: as test, but a tenth of the items has no events in training; users whose target is one of these.
    cold-only: as cold, among these items alone.
    """
    everything, histories = np.ones(dataset.items.num_rows, bool), dataset.histories
    places = Ragged(np.arange(len(histories.values)), histories.offsets)
    if name == VALIDATION_4:
        users = np.flatnonzero(histories.lengths > 5)
        whose, back = np.tile(users, 4), np.repeat(np.arange(2, 6), len(users))
        known = without_last(histories.take(whose), back)
        asked, events = histories.offsets[whose + 1] - back, without_last(places, 5).values
        return Split(
            without_last(histories, 5), whose, known, known, histories.values[asked], everything, events, asked
        )
    held_out = 2 if name == VALIDATION else 1
    training, events = (without_last(of, held_out) for of in (histories, places))
    asked = histories.offsets[1:] - held_out
    target = histories.values[asked]
    users = np.arange(len(training))
    if name in (VALIDATION, TEST):
        return Split(training, users, training, training, target, everything, events.values, asked)
    cold = cold_items(dataset.items[ITEM], COLD_SHARE, COLD_SEED)
    users = np.flatnonzero(cold[target])
    warm, events = (keep(of, ~cold[training.values]) for of in (training, events))
    candidates = cold if name == COLD_ONLY else everything
    return Split(
        warm, users, warm.take(users), training.take(users), target[users], candidates, events.values, asked[users]
    )


def fitted_as(name: str) -> str:
    """The split whose training histories this one has, too: what is fitted for one serves the other."""
    return COLD if name == COLD_ONLY else name


def without_last(histories: Ragged, count: int | np.ndarray) -> Ragged:
    """count: of all, or int64[n]."""
    lengths = histories.lengths
    return keep(histories, within(lengths) < np.repeat(lengths - count, lengths))


def cold_items(ids: pa.ChunkedArray, share: float, seed: int) -> np.ndarray:
    """bool[n]: by a hash of the id, so that an item is cold or not whatever else the catalogue has."""
    hashes = np.array([xxhash.xxh3_64_intdigest(f"{seed} {i}".encode()) for i in ids.to_pylist()], np.uint64)
    return hashes < np.uint64(share * 2**64)
