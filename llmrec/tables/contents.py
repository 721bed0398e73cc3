"""What the files under a prefix hold, as texts, and whether some values are among it: for those who want to know what
has got where, whatever wrote it."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmrec import storage

CHUNK, OVERLAP = 4 << 20, 1 << 10  # bytes of files that are no tables; a value across two chunks is shorter than that
INSIDE = "the file"


@dataclass(frozen=True)
class Texts:
    """Texts of one place in a file, each once. where: a column, or `INSIDE`."""

    where: str
    values: pl.Series


def texts(uri: str, numbers: Callable[[str], bool] = lambda column: True) -> Iterator[Texts]:
    """All that a file holds: Parquet and Arrow tables column by column, with names and metadata; JSON string by string,
    keys too, numbers not; of any other file its bytes, read as UTF-8, and as HTML.

    numbers: whether those of a column of a table are asked for; numbers with a fraction are no texts.
    """
    name = uri.rsplit("/", 1)[-1]
    if name.endswith(".parquet"):
        yield from _of_parquet(uri, numbers)
    elif name.endswith(".arrow"):
        table = pa.ipc.open_file(storage.read_bytes(uri)).read_all()
        yield from of_table(table, numbers)
    elif name.endswith(".json"):
        yield _strings(storage.read_bytes(uri).decode(errors="replace"))
    else:
        yield from _of_bytes(uri)


def _of_parquet(uri: str, numbers: Callable[[str], bool]) -> Iterator[Texts]:
    fs, path = storage.filesystem(uri)
    with pq.ParquetFile(path, filesystem=fs) as file:
        about = [f"{k!r} {v!r}" for k, v in (file.metadata.metadata or {}).items() if k != b"ARROW:schema"]
        yield Texts("metadata", pl.Series(values=[*file.schema_arrow.names, *about], dtype=pl.String))
        for group in range(file.num_row_groups):
            yield from of_table(file.read_row_group(group, use_threads=False), numbers)


def of_table(table: pa.Table, numbers: Callable[[str], bool] = lambda column: True) -> Iterator[Texts]:
    """Of each column, or what its lists and structs are made of, each text once."""
    for name in table.column_names:
        for values in _leaves(table[name].combine_chunks()):
            kind = values.type
            if (pa.types.is_floating(kind) or pa.types.is_integer(kind)) and not numbers(name):
                continue
            if pa.types.is_floating(kind):
                whole = pc.and_(pc.is_finite(values), pc.equal(values, pc.floor(values)))
                values = values.filter(pc.and_(whole, pc.less(pc.abs(values), 2.0**53))).cast(pa.int64())
            different = values.unique()
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
                told = [v.decode(errors="replace") for v in different.drop_null().to_pylist()]
                yield Texts(name, pl.Series(values=told, dtype=pl.String))
            else:
                yield Texts(name, pl.Series(values=different.cast(pa.string()), dtype=pl.String))


def _leaves(values: pa.Array) -> Iterator[pa.Array]:
    """The arrays of plain values that lists, structs and dictionaries are made of."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        yield from _leaves(values.cast(kind.value_type))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _leaves(values.flatten())
    elif pa.types.is_struct(kind) or pa.types.is_map(kind):
        for part in values.flatten() if pa.types.is_struct(kind) else (values.keys, values.items):
            yield from _leaves(part)
    else:
        yield values


def _strings(text: str) -> Texts:
    """Of JSON, or of JSON line by line, such as the log of a Delta table."""
    found: dict[str, None] = {}

    def walk(value: Any) -> None:
        if isinstance(value, str):
            found[value] = None
        for part in value.items() if isinstance(value, dict) else value if isinstance(value, list) else ():
            for inner in part if isinstance(part, tuple) else (part,):
                walk(inner)

    try:
        walk(json.loads(text))
    except ValueError:
        for line in text.splitlines():
            try:
                walk(json.loads(line))
            except ValueError:
                found[line] = None
    return Texts(INSIDE, pl.Series(values=list(found), dtype=pl.String))


def _of_bytes(uri: str) -> Iterator[Texts]:
    fs, path = storage.filesystem(uri)
    before = b""
    with fs.open_input_stream(path) as stream:
        while data := stream.read(CHUNK):
            text = (before + data).decode(errors="replace")
            yield Texts(INSIDE, pl.Series(values=[html.unescape(text)], dtype=pl.String))
            before = data[-OVERLAP:]


def found(values: pl.Series, wanted: Sequence[str]) -> set[str]:
    """Which of the wanted texts stand in values by themselves: no letter or digit goes on where they begin and end."""
    if not len(wanted) or not len(values):
        return set()
    hits = values.filter(values.str.contains_any(list(wanted)))
    here: set[str] = set()
    if len(hits):
        hit = pl.col("text").str.extract_many(list(wanted), overlapping=True).alias("hit")
        each = hits.rename("text").to_frame().select("text", hit)
        for text, hit in each.explode("hit").unique().iter_rows():
            if hit not in here and _alone(text, hit):
                here.add(hit)
    return here


def _alone(text: str, wanted: str) -> bool:
    start = text.find(wanted)
    while start >= 0:
        end = start + len(wanted)
        before, after = text[start - 1 : start], text[end : end + 1]
        if not (wanted[0].isalnum() and before.isalnum()) and not (wanted[-1].isalnum() and after.isalnum()):
            return True
        start = text.find(wanted, start + 1)
    return False
