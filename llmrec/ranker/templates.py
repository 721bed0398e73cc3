"""Templates of items and users, filled from the rows of a table."""

from __future__ import annotations

import string
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from llmrec.errors import UserError


def placeholders(template: str) -> list[str]:
    """The column names that a template uses.

    Raises:
        UserError: the template is malformed, or has a placeholder that is not a plain column name.
    """
    try:
        fields = [(name, form) for _, name, form, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(f"prompt template {template!r}: {error}") from None
    for name, form in fields:
        if not name.isidentifier() or form:
            raise UserError(f"prompt template {template!r}: placeholder '{{{name}}}' must be a column name and no more")
    return [name for name, _ in fields]


def fill(template: str, table: pa.Table, kind: str) -> list[str]:
    """The template filled from each row; a null counts as an empty text, a list is joined by commas.

    Raises:
        UserError: the template names a column that the table lacks.
    """
    names = placeholders(template)
    for name in names:
        if name not in table.column_names:
            raise UserError(
                f"prompt.{kind} uses '{{{name}}}', but the {kind}s table has: {', '.join(table.column_names)}"
            )
    columns = [[_text(v) for v in table.column(name).to_pylist()] for name in names]
    if not names:
        return [template.format()] * table.num_rows
    return [template.format(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(str(v) for v in value)
    return str(value)
