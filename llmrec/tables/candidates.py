"""Candidates as users bring them, in any order: which columns they may have, and a user's rows put together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec import schema
from llmrec.errors import UserError
from llmrec.ranker.ragged import offsets_of
from llmrec.schema import (
    DETAIL,
    ITEM,
    ITEMS,
    KEY,
    ORIGIN,
    QUARANTINE,
    REASON,
    RECALL_SCORE,
    RECALL_SCORES,
    SOURCE,
    SOURCES,
    USER,
)
from llmrec.tables.histories import as_lists, flatten


def common_schema(files: Mapping[str, pa.Schema], user: pa.DataType, item: pa.DataType, table: str) -> pa.Schema:
    """The columns that all files of a candidates table are brought to, in the order in which they first appear.

    files: what each file has, by its URI. user, item: the types of the prepared ids. A column that only some files have
    is kept. Types lose what is a matter of storage (dictionaries, 64-bit offsets).

    Raises:
        UserError: a column is missing or of the wrong type, or files disagree on the form or on a column.
    """
    merged, first, lists = pa.schema([]), "", False
    for uri, found in files.items():
        columns = pa.schema([(f.name, _plain(f.type)) for f in found])
        in_lists = _check_ids(columns, user, item, uri)
        if first and in_lists != lists:
            raise UserError(f"{uri}: '{ITEM}' here and '{ITEMS}' there: {first} is in the other form; bring one form")
        first, lists = first or uri, in_lists
        if columns != merged:
            try:
                merged = pa.unify_schemas([merged, columns], promote_options="permissive")
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise UserError(
                    f"{uri}: its columns do not fit those of {first} ({str(error).splitlines()[0][:120]})"
                ) from None
    kinds = {RECALL_SCORES: "number", SOURCES: "text"} if lists else {RECALL_SCORE: "number", SOURCE: "text"}
    schema.require(_flat(merged), {c: kind for c, kind in kinds.items() if c in merged.names}, table)
    ids = {USER: user, ITEMS: pa.list_(item)} if lists else {USER: user, ITEM: item}
    return pa.schema([(f.name, ids.get(f.name, f.type)) for f in merged])


def fitted(rows: pa.Table, columns: pa.Schema, source: str) -> pa.Table:
    """Rows of one file with exactly these columns; those that the file lacks are null, in lists as long as `item_ids`.

    Raises:
        UserError: a list column's lengths differ from those of `item_ids`, or a value does not fit its column's type.
    """
    found = {}
    for name in rows.column_names:
        if pa.types.is_null(rows.schema.field(name).type) and name not in (USER, ITEMS):
            continue  # nothing is in it, whatever its type would be
        kind = columns.field(name).type
        try:
            found[name] = rows[name].cast(kind)
        except pa.ArrowInvalid as error:
            told = str(error).splitlines()[0][:120]
            raise UserError(f"{source}: column '{name}' does not fit {kind} ({told})") from None
    absent = {f.name: pa.nulls(rows.num_rows, f.type) for f in columns if f.name not in found}
    if ITEMS in found:
        _, offsets = flatten(found[ITEMS])
        for name, lists in found.items():
            if name != USER and not np.array_equal(flatten(lists)[1], offsets):
                raise UserError(f"{source}: lists in '{name}' differ in length from those in '{ITEMS}'")
        absent = {name: as_lists(pa.nulls(offsets[-1], a.type.value_type), offsets) for name, a in absent.items()}
    return pa.table({name: (found | absent)[name] for name in columns.names}, schema=columns)


def by_user(rows: pa.Table) -> pa.Table:
    """Rows ordered by user, the rows of a user in the order in which they came; in list form joined to one."""
    rows = rows.take(pa.compute.sort_indices(rows, sort_keys=[(USER, "ascending")])).combine_chunks()  # stable
    if ITEMS not in rows.column_names:
        return rows
    users, starts = _runs(rows)
    joined = []
    for name in rows.column_names:
        if name == USER:
            joined.append(users)
        else:
            values, offsets = flatten(rows[name])
            joined.append(as_lists(values, offsets[starts]))
    return pa.table(joined, schema=rows.schema)


def pairs_per_user(rows: pa.Table) -> np.ndarray:
    """int64[n_users]: the candidates of each user of a table from `by_user`."""
    if ITEMS in rows.column_names:
        return np.diff(flatten(rows[ITEMS])[1])
    return np.diff(_runs(rows)[1])


def without_user(rows: pa.Table, source: str) -> pa.Table:
    """Rows whose user is null, as the quarantine holds them; the detail names their items."""
    detail = [
        f"items={','.join(map(_text, row or []))}" if ITEMS in rows.column_names else f"item={_text(row)}"
        for row in rows[ITEMS if ITEMS in rows.column_names else ITEM].to_pylist()
    ]
    n = rows.num_rows
    columns = {KEY: [None] * n, REASON: ["null_id"] * n, DETAIL: detail, ORIGIN: [source] * n}
    return pa.table(columns, schema=QUARANTINE)


def _check_ids(columns: pa.Schema, user: pa.DataType, item: pa.DataType, uri: str) -> bool:
    """Whether a file is in list form, once its ids are what they must be."""
    names = columns.names
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{uri}: column '{twice[0]}' is there twice")
    if USER not in names or not {ITEM, ITEMS} & set(names):
        missing = f"'{USER}'" if USER not in names else f"'{ITEM}' (or '{ITEMS}', lists)"
        raise UserError(f"{uri}: column {missing} is missing (it has: {', '.join(names)}); rename it in the input")
    lists = ITEMS in names
    for field in columns if lists else ():
        if field.name != USER and not (pa.types.is_list(field.type) or pa.types.is_null(field.type)):
            raise UserError(
                f"{uri}: column '{field.name}' has type {field.type}; beside '{ITEMS}' every column but '{USER}' holds "
                "lists of the same length, since a user's rows become one; drop it, or bring long form"
            )
    for column, wanted in ((USER, user), (ITEMS if lists else ITEM, item)):
        if pa.types.is_null(_flat(columns).field(column).type):
            continue  # a file without rows, or with nulls alone
        found = schema.id_type(_flat(columns), column, uri)
        if found != wanted:
            raise UserError(f"{uri}: column '{column}' holds {found} ids, the prepared tables hold {wanted}")
    return lists


def _flat(columns: pa.Schema) -> pa.Schema:
    """The types of single values: a list's values stand for the list."""
    return pa.schema([(f.name, f.type.value_type if pa.types.is_list(f.type) else f.type) for f in columns])


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    return kind


def _runs(rows: pa.Table) -> tuple[pa.Array, np.ndarray]:
    """The users of rows ordered by user, and int64[n_users + 1]: where each one's rows start."""
    codes = rows[USER].combine_chunks().dictionary_encode()
    lengths = np.bincount(codes.indices.to_numpy(), minlength=len(codes.dictionary))
    return codes.dictionary, offsets_of(lengths)


def _text(value: object) -> str:
    return "null" if value is None else str(value)
