"""Many integer sequences of different lengths as two flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """`n` sequences stored back to back.

    values: int32[sum of lengths]; offsets: int64[n + 1], where sequence i is values[offsets[i]:offsets[i + 1]].
    """

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """int64[n]."""
        return np.diff(self.offsets)

    @staticmethod
    def of(sequences: Sequence[Sequence[int]] | Sequence[np.ndarray] | np.ndarray) -> Ragged:
        """Ragged from a list of sequences, empty ones included."""
        lengths = np.fromiter((len(s) for s in sequences), dtype=np.int64, count=len(sequences))
        values = [np.empty(0, np.int32), *(np.asarray(s, dtype=np.int32) for s in sequences)]
        return Ragged(np.concatenate(values), offsets_of(lengths))

    def take(self, rows: np.ndarray) -> Ragged:
        """The sequences at `rows` (int[m], repeats allowed), in that order, without a Python loop."""
        lengths = self.lengths[rows]
        offsets = offsets_of(lengths)
        return Ragged(
            self.values[np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])], offsets
        )


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """int64[n + 1] running sums that start at 0."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def within(lengths: np.ndarray) -> np.ndarray:
    """0..length-1 for each length, one after another: int64[sum of lengths]."""
    offsets = offsets_of(lengths)
    return np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
