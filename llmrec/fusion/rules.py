"""What a list must hold to, and what makes items count more, as numbers of the catalogue's items."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec.ranker.ragged import Ragged, offsets_of

SECONDS_A_DAY = 86_400.0


def freshness(times: np.ndarray, reference: float, half_life_days: float) -> np.ndarray:
    """float32[n]: the logarithm of 2^(-age / half life), by which an item's probability is multiplied.

    times: float64[n], unix seconds, NaN where unknown, which changes nothing; an item that is younger than `reference`
    is of age 0.
    """
    age = np.maximum(reference - times, 0.0) / SECONDS_A_DAY
    return np.where(np.isnan(age), 0.0, -np.log(2.0) * age / half_life_days).astype(np.float32)


def coded(columns: list[pa.Array]) -> Ragged:
    """The values of each item as numbers, none twice: equal numbers are equal texts of the same column.

    columns: list<string>[n] each; null values and empty texts count as none.
    """
    items, codes, known = [], [], 0
    for lists in columns:
        lengths = pa.compute.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
        texts = lists.flatten().dictionary_encode()
        code = texts.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        empty = pa.compute.index(texts.dictionary, "").as_py()
        some = (code >= 0) & (code != empty if empty >= 0 else True)
        items.append(np.repeat(np.arange(len(lists)), lengths)[some])
        codes.append(code[some] + known)
        known += len(texts.dictionary)
    pairs = np.unique(np.concatenate(items) * max(known, 1) + np.concatenate(codes))
    item, code = np.divmod(pairs, max(known, 1))
    return Ragged(code.astype(np.int32), offsets_of(np.bincount(item, minlength=len(columns[0]))))


def having(column: pa.Array, value: str) -> np.ndarray:
    """bool[n]: the items with a value among theirs. column: list<string>[n]."""
    lengths = pa.compute.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    equal = pa.compute.equal(column.flatten(), value).fill_null(False).to_numpy(zero_copy_only=False)
    return np.bincount(np.repeat(np.arange(len(column)), lengths)[equal], minlength=len(column)) > 0
