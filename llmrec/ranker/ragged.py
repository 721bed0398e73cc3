"""Many integer sequences of different lengths as two flat arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

    def joined(self, other: Ragged) -> Ragged:
        """Each sequence followed by that of another n."""
        first, second = self.lengths, other.lengths
        offsets = offsets_of(first + second)
        values = np.empty(offsets[-1], np.result_type(self.values, other.values))
        values[np.repeat(offsets[:-1], first) + within(first)] = self.values
        values[np.repeat(offsets[:-1] + first, second) + within(second)] = other.values
        return Ragged(values, offsets)


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """int64[n + 1] running sums that start at 0."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def within(lengths: np.ndarray) -> np.ndarray:
    """0..length-1 for each length, one after another: int64[sum of lengths]."""
    offsets = offsets_of(lengths)
    return np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)


def like_lengths(lengths: np.ndarray, cells: int = 1 << 16) -> Iterator[np.ndarray]:
    """The sequences that are not empty, ascending int64[m] row numbers at a time, none shorter than half the longest.

    `padded` makes a rectangle of about `cells` of each, or of one sequence that is longer: numpy works on many
    sequences of any lengths at once, in a core's cache.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    falling = -lengths[longest_first]
    at, end = 0, int(np.searchsorted(falling, 0))
    while at < end:
        longest = -int(falling[at])
        half = int(np.searchsorted(falling, -(longest + 1) // 2, side="right"))
        to = min(half, at + max(1, cells // longest))
        yield np.sort(longest_first[at:to])
        at = to


def padded(values: np.ndarray, offsets: np.ndarray, rows: np.ndarray, fill: float) -> np.ndarray:
    """[m, longest]: the sequences of these rows, one below the other, `fill` on their right.

    values: one an element of all sequences; offsets: int64[n + 1]; rows: int64[m], at least one.
    """
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    width = int(lengths.max())
    if lengths.min() == width and np.array_equal(starts, np.arange(len(rows)) * width + starts[0]):
        return values[starts[0] : starts[0] + len(rows) * width].reshape(len(rows), width)  # without a copy
    column = np.arange(width)
    place = np.minimum(starts[:, None] + column, len(values) - 1)
    return np.where(column < lengths[:, None], values[place], values.dtype.type(fill))
