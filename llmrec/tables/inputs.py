"""Tables that users bring: a Parquet file, or a directory of them, in folders too."""

from __future__ import annotations

import re

import pyarrow as pa

from llmrec import storage
from llmrec.errors import UserError
from llmrec.tables import buckets


def found(source: str) -> dict[str, int]:
    """The Parquet files of an input in name order, and their bytes; empty if there are none.

    Of a directory those whose names end in .parquet. Files and folders whose names start with _ or . are not read:
    other tools keep marks and unfinished files there.

    Raises:
        UserError: it is a Delta table, or the store does not answer.
    """
    source = storage.absolute(source)
    listed = dict(storage.list_files(source))
    names = {uri: uri[len(source) :] for uri in listed}
    if any("/_delta_log/" in name for name in names.values()):
        raise UserError(f"{source}: a Delta table, whose folder keeps old rows too; write its rows to Parquet files")
    return {
        uri: size
        for uri, size in listed.items()
        if uri == source or (uri.endswith(".parquet") and not re.search(r"/[_.]", names[uri]))
    }


def files(source: str) -> dict[str, int]:
    """`found`, of which there is one at least.

    Raises:
        UserError: there is none, or as `found`.
    """
    there = found(source)
    if not there:
        raise UserError(f"{source}: no Parquet files there")
    return there


def read(source: str) -> pa.Table:
    """The whole input as one table; values in folder names (`day=1/`) are no columns.

    Raises:
        UserError: as `files`, one is not readable, or they disagree on columns.
    """
    return buckets.read_files(list(files(source)), source)
