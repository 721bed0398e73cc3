"""What is known of items beside their tokens: the frozen parts that an item encoder reads. Plain numpy and arrow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec.config import Items
from llmrec.errors import UserError
from llmrec.ranker.ragged import offsets_of


@dataclass(frozen=True)
class ItemFeatures:
    """n items, in the catalogue's order.

    ids: arrow array[n], ascending. vectors: float32[n, d] by the part's name, rows of zeros where `present`, bool[n],
    is false. categories: list<string>[n] by column. numbers: float32[n] by column, NaN where missing.
    revisions: of the encoder that made a part, by the part's name.
    """

    ids: pa.Array
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)
    present: Mapping[str, np.ndarray] = field(default_factory=dict)
    categories: Mapping[str, pa.Array] = field(default_factory=dict)
    numbers: Mapping[str, np.ndarray] = field(default_factory=dict)
    revisions: Mapping[str, str] = field(default_factory=dict)


def columns_of(settings: Items) -> list[str]:
    """The columns of the items table that `settings` names."""
    return list(dict.fromkeys((*settings.vectors, *settings.categories, *settings.numbers)))


def check_columns(found: Sequence[str], settings: Items) -> None:
    """Are the columns that `settings` names among these of the items table?

    Raises:
        UserError: one is not.
    """
    for name in columns_of(settings):
        if name not in found:
            raise UserError(f"items: no column '{name}', which items.* names; there are: {', '.join(found)}")


def read_features(
    ids: pa.Array,
    items: pa.Table,
    settings: Items,
    vectors: Mapping[str, np.ndarray],
    present: Mapping[str, np.ndarray],
    revisions: Mapping[str, str] | None = None,
) -> ItemFeatures:
    """Features from computed vectors and the columns that `settings` names.

    items: rows in the order of `ids`. A null, a list with a value that is not finite and a number that is not finite
    count as missing.

    Raises:
        UserError: a column is not there or of another type, or a column's vectors differ in length.
    """
    check_columns(items.column_names, settings)
    vectors, present = dict(vectors), dict(present)
    for name in settings.vectors:
        if name in vectors:
            raise UserError(f"items.vectors: '{name}' is the name of a part already; rename the column")
        vectors[name], present[name] = _vectors(items[name], name)
    return ItemFeatures(
        ids=ids,
        vectors=vectors,
        present=present,
        categories={name: texts(items[name], name, settings.separator) for name in settings.categories},
        numbers={name: _numbers(items[name], name) for name in settings.numbers},
        revisions=revisions or {},
    )


def _vectors(column: pa.ChunkedArray, name: str) -> tuple[np.ndarray, np.ndarray]:
    if not _is_list(column.type) or not pa.types.is_floating(column.type.value_type):
        raise UserError(f"items: column '{name}' is {column.type}; items.vectors takes lists of floats")
    lists = column.combine_chunks().cast(pa.list_(pa.float32()))
    lengths = pa.compute.list_value_length(lists)
    sizes = pa.compute.unique(lengths.drop_null()).to_pylist()
    if len(sizes) != 1 or sizes[0] == 0:
        raise UserError(f"items: vectors in column '{name}' differ in length or are empty ({sorted(sizes)[:5]})")
    (size,) = sizes
    there = lists.is_valid().to_numpy(zero_copy_only=False)
    found = np.zeros((len(lists), size), np.float32)
    found[there] = lists.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, size)
    finite = np.isfinite(found).all(axis=1)
    found[~finite] = 0
    return found, there & finite


def texts(column: pa.ChunkedArray, name: str, separator: str, setting: str = "items.categories") -> pa.Array:
    """list<string>: text is split at the separator, and each value is stripped.

    Raises:
        UserError: the column holds something else; `setting` is what named it.
    """
    array = column.combine_chunks()
    try:
        if not _is_list(array.type):
            text = array.cast(pa.string())
            array = pa.compute.split_pattern(text, separator) if separator else _single(text)
        lists = array.cast(pa.list_(pa.string()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(f"items: column '{name}' is {column.type}; {setting} takes texts or lists of texts") from None
    lengths = pa.compute.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    values = pa.compute.utf8_trim_whitespace(lists.flatten())
    return pa.ListArray.from_arrays(pa.array(offsets_of(lengths), pa.int32()), values)


def _single(text: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(np.arange(len(text) + 1), pa.int32()), text)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _numbers(column: pa.ChunkedArray, name: str) -> np.ndarray:
    try:
        found = column.combine_chunks().cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(f"items: column '{name}' is {column.type}; items.numbers takes numbers") from None
    return np.where(np.isfinite(found), found, np.nan).astype(np.float32)
