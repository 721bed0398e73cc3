"""Templates of items and users, filled from the rows of a table."""

from __future__ import annotations

import math
import string
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from llmrec.errors import UserError


def placeholders(template: str) -> list[str]:
    """The column names that a template uses; of a graph's edges of one relation, `edges:<relation>`.

    Raises:
        UserError: the template is malformed, or has a placeholder that is not a plain column name.
    """
    return [name for _, name in _parsed(template) if name is not None]


def _parsed(template: str) -> list[tuple[str, str | None]]:
    """Plain text and the column that follows it, if one does."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"prompt template {template!r}: {error}") from None
    found = []
    for text, name, form, conversion in parts:
        if name is not None and (not name or set(".[") & set(name) or conversion or (form and name != "edges")):
            shown = name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            raise UserError(
                f"prompt template {template!r}: placeholder '{{{shown}}}' must be a column name and no more"
            )
        found.append((text, f"{name}:{form}" if form else name))
    return found


def fill(template: str, table: pa.Table, kind: str) -> list[str]:
    """The template filled from each row; a null counts as an empty text, a list is joined by commas.

    Raises:
        UserError: the template names a column that the table lacks, or one whose values have no text.
    """
    parts = _parsed(template)
    names = [name for _, name in parts if name is not None]
    for name in names:
        if name not in table.column_names:
            raise UserError(
                f"prompt.{kind} uses '{{{name}}}', but the {kind}s table has: {', '.join(table.column_names)}"
            )
        if not _has_text(found := table.schema.field(name).type):
            raise UserError(
                f"prompt.{kind} uses '{{{name}}}', a column of type {found}: give it as text, a number, a date or a "
                "list of these"
            )
    if not names:
        return ["".join(text for text, _ in parts)] * table.num_rows
    columns = {name: [as_text(v) for v in table.column(name).to_pylist()] for name in names}
    none = [""] * table.num_rows
    told = [(text, none if name is None else columns[name]) for text, name in parts]
    return ["".join(text + values[row] for text, values in told) for row in range(table.num_rows)]


def _has_text(kind: pa.DataType) -> bool:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    plain = kind.value_type if listed else kind
    return not (pa.types.is_nested(plain) or pa.types.is_binary(plain) or pa.types.is_large_binary(plain))


def as_text(value: Any) -> str:
    """A cell as a template shows it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):  # as pandas writes what is missing
        return ""
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(str(v) for v in value)
    return str(value)
