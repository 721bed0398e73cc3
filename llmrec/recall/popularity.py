"""Popularity by what users had lately, and by the group that a user belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute
from scipy import sparse

from llmrec.errors import UserError
from llmrec.ranker.ragged import Ragged
from llmrec.recall.item_item import distinct
from llmrec.recall.scores import Grouped

SECONDS_A_DAY = 86_400.0


def recent(
    histories: Ragged,
    times: np.ndarray,
    newest: int,
    half_life_days: float | None,
    window_days: float | None,
    n_items: int,
) -> np.ndarray:
    """float64[n_items]: users who had each item, one who had it an age ago counting 0.5 ** (age / half_life_days), or
    nothing if that is longer than window_days. Adds up over any partition of the users.

    Of several events of a user and an item the newest counts. None: no half-life, and no window. histories: item rows
    per user, oldest first; times: int64[total], seconds; newest: from which ages are counted.
    """
    items, at = distinct(histories)
    days = (newest - times[at]) / SECONDS_A_DAY
    weight = np.ones(len(days)) if half_life_days is None else np.exp2(-days / half_life_days)
    if window_days is not None:
        weight[days > window_days] = 0
    return np.bincount(items.values, weight, n_items)


def group_keys(users: pa.Table, columns: Sequence[str], source: str) -> pa.Array:
    """string[n]: equal for users of the same values in these columns, null where one of them is null or not a number.

    Raises:
        UserError: a column is missing, or holds lists or the like.
    """
    texts = []
    for name in columns:
        if name not in users.column_names:
            raise UserError(f"recall.segment.columns names '{name}', but {source} has: {', '.join(users.column_names)}")
        values = users[name].combine_chunks()
        if pa.types.is_nested(values.type) or pa.types.is_binary(values.type) or pa.types.is_null(values.type):
            raise UserError(f"{source}: column '{name}' has type {values.type}; recall.segment groups by plain values")
        if pa.types.is_floating(values.type):
            values = pa.compute.if_else(pa.compute.is_nan(values), None, values)
        texts.append(values.cast(pa.string()))
    lengths = [pa.compute.binary_length(text).cast(pa.string()) for text in texts]  # or "a b", "c" would be "a", "b c"
    return pa.compute.binary_join_element_wise(*lengths, *texts, " ")


@dataclass(frozen=True)
class Groups:
    """Users by group and item. keys: string[g], ascending; counts: float32[g + 1, n_items], users of each who had an
    item, last of no group; sizes: float64[g + 1], users of each who had any; share: float64[n_items], of all users who
    had any, who had the item."""

    keys: pa.Array
    counts: sparse.csr_matrix
    sizes: np.ndarray
    share: np.ndarray

    def scores(self, keys: pa.Array, prior: float) -> Grouped:
        """What `scores.Grouped` says of users with these keys (string[n], null for none): of one of no group, or of one
        of whom nothing was learned, what all users had."""
        group = pa.compute.index_in(keys, self.keys).fill_null(len(self.keys)).to_numpy(zero_copy_only=False)
        return Grouped(self.counts, self.sizes, self.share, prior, group.astype(np.int64))


def group_counts(keys: pa.Array, histories: Ragged, n_items: int) -> tuple[pa.Array, sparse.csr_matrix, np.ndarray]:
    """Of some users: the keys of their groups, users of each who had each item, and users of each who had any.

    keys: string[n], null for a user of no group.
    """
    items, _ = distinct(histories)
    encoded = keys.dictionary_encode()
    group = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    known = group >= 0
    mine = np.repeat(group, items.lengths)
    inside = mine >= 0
    shape = (len(encoded.dictionary), n_items)
    ones = np.ones(int(inside.sum()), np.float32)
    counts = sparse.coo_matrix((ones, (mine[inside], items.values[inside])), shape=shape).tocsr()
    sizes = np.bincount(group[known & (items.lengths > 0)], minlength=shape[0]).astype(np.float64)
    return encoded.dictionary, counts, sizes


def grouped(
    parts: Sequence[tuple[pa.Array, sparse.csr_matrix, np.ndarray]], popularity: np.ndarray, users: int
) -> Groups:
    """All of `group_counts`. popularity: float[n_items], users who had each; users: how many had any."""
    n_items = len(popularity)
    names = pa.concat_arrays([pa.array([], pa.string()), *(keys for keys, _, _ in parts)])
    keys = pa.array(sorted(names.unique().to_pylist()), pa.string())
    place = pa.compute.index_in(names, keys).to_numpy(zero_copy_only=False)
    onto = sparse.csr_matrix(
        (np.ones(len(place), np.float32), (place, np.arange(len(place)))), shape=(len(keys) + 1, len(place))
    )
    stacked = sparse.vstack([sparse.csr_matrix((0, n_items), dtype=np.float32), *(c for _, c, _ in parts)])
    sizes = onto @ np.concatenate([np.empty(0), *(s for _, _, s in parts)])
    share = popularity.astype(np.float64) / max(users, 1)
    return Groups(keys, (onto @ stacked).tocsr(), sizes, share)
