"""The contexts in a histories table: of each event, and what a user is asked about in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec.errors import UserError
from llmrec.schema import CONTEXT, NOW, TRAIN_LENGTH
from llmrec.tables.histories import flatten


def names_of(found: pa.Schema) -> list[str]:
    """The names of the contexts that a histories table holds, in its order."""
    return [name.removeprefix(NOW) for name in found.names if name.startswith(NOW)]


def columns_of(names: Sequence[str], training_only: bool) -> list[str]:
    """The columns that `now` reads."""
    return [CONTEXT + name for name in names] + [TRAIN_LENGTH] if training_only else [NOW + name for name in names]


def check(found: pa.Schema, names: Sequence[str], source: str) -> None:
    """
    Raises:
        UserError: a context that prompt.context names is not there.
    """
    there = names_of(found)
    for name in names:
        if name not in there:
            raise UserError(
                f"{source}: no context '{name}', which prompt.context names (it has: {', '.join(there) or 'none'}); "
                "name it in data.context and run jobs/prepare.py again"
            )


def of_events(histories: pa.Table) -> dict[str, pa.Array]:
    """By its name, each context of all events back to back: string[total]."""
    return {
        name.removeprefix(CONTEXT): flatten(histories[name])[0]
        for name in histories.column_names
        if name.startswith(CONTEXT)
    }


def now(histories: pa.Table, names: Sequence[str], training_only: bool) -> pa.Table:
    """A column string[n] of each of these contexts: what users are asked about in, null where nothing is known.

    training_only: who is asked as if his validation events had not happened yet is asked in the context of the first
    of these.
    """
    if not training_only:
        return pa.table({name: histories[NOW + name] for name in names})
    found = {}
    for name in names:
        flat, offsets = flatten(histories[CONTEXT + name])
        first = offsets[:-1] + histories[TRAIN_LENGTH].to_numpy()
        there = first < offsets[1:]
        found[name] = flat.take(pa.array(np.where(there, first, 0), mask=~there))
    return pa.table(found)
