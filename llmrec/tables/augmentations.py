"""Texts that a language model wrote: every one ever, by content hash, and the tables of those that are in use.

generated/<kind>/<16 hex digits>.parquet                   content_hash, text, reason, detail; files are only added
tables/item_augmentations/item_augmentations.parquet       by ascending item id
tables/user_augmentations/bucket-00000.parquet             in the users' buckets
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec import storage
from llmrec.ranker.templates import placeholders
from llmrec.schema import CONTENT_HASH, DETAIL, ITEM, TEXT, USER
from llmrec.tables import buckets

AUGMENTATION, INTERESTS = "augmentation", "interests"
GENERATED = pa.schema([
    (CONTENT_HASH, pa.string()), (TEXT, pa.string()), ("reason", pa.string()), (DETAIL, pa.string()),
])  # fmt: skip
# Daily runs leave small files; so many are put together, into files of so many rows.
SMALL_FILES, SMALL_ROWS, MERGED_ROWS = 32, 4096, 65_536


@dataclass(frozen=True)
class Generated:
    """Where each generated text lies. files: URIs, and rows: how many texts each has; hashes: binary(16)[n], content
    hashes; file: int32[n], which of the files has each."""

    files: tuple[str, ...]
    rows: tuple[int, ...]
    hashes: pa.Array
    file: np.ndarray

    def has(self, hashes: Sequence[str]) -> np.ndarray:
        """bool[n]"""
        asked = _binary(hashes)
        known = self.hashes.filter(pa.compute.is_in(self.hashes, asked))
        found: np.ndarray = pa.compute.is_in(asked, known).to_numpy(zero_copy_only=False)
        return found

    def look_up(self, hashes: Sequence[str]) -> pa.Table:
        """A row of GENERATED of each hash, nulls for one that was never generated. Reads the files that have some."""
        here = pa.compute.is_in(self.hashes, _binary(hashes)).to_numpy(zero_copy_only=False)
        asked = pa.array(hashes, pa.string())
        tables = [GENERATED.empty_table()]
        for number in np.unique(self.file[here]).tolist():
            rows = buckets.read_parquet(self.files[number])
            tables.append(rows.filter(pa.compute.is_in(rows[CONTENT_HASH], asked)).select(GENERATED.names))
        found = pa.concat_tables(tables).combine_chunks()
        return found.take(pa.compute.index_in(asked, pa.array(found[CONTENT_HASH].to_pylist(), pa.string())))


def _binary(hashes: Sequence[str]) -> pa.Array:
    return pa.array([bytes.fromhex(h) for h in hashes], pa.binary(16))


def generated(uri: str) -> Generated:
    """What lies under a folder of generated texts."""
    files = [file for file, _ in storage.list_files(uri, ".parquet")]
    hashes = [
        _binary(table[CONTENT_HASH].to_pylist())
        for table in storage.each(lambda file: buckets.read_parquet(file, [CONTENT_HASH]), files)
    ]
    rows = [len(of) for of in hashes]
    which = np.repeat(np.arange(len(files), dtype=np.int32), rows)
    return Generated(tuple(files), tuple(rows), pa.concat_arrays([_binary([]), *hashes]), which)


def file_of(uri: str, hashes: Sequence[str]) -> str:
    """The file of the texts with these content hashes, in this order."""
    return storage.join(uri, f"{hashlib.sha256('|'.join(hashes).encode()).hexdigest()[:16]}.parquet")


def add(uri: str, rows: pa.Table) -> str:
    """Write generated texts, rows of GENERATED, as a file of their own; its URI."""
    file = file_of(uri, rows[CONTENT_HASH].to_pylist())
    buckets.write_parquet(rows.select(GENERATED.names), file)
    return file


def tidy(uri: str, known: Generated) -> int:
    """Put small files together, if there are many; how many were. A text may be there twice if this is cut off, which
    no reader minds."""
    small = [file for file, rows in zip(known.files, known.rows, strict=True) if rows < SMALL_ROWS]
    if len(small) < SMALL_FILES:
        return 0
    rows = pa.concat_tables(buckets.read_parquet(file) for file in small)
    kept = {add(uri, rows.slice(start, MERGED_ROWS)) for start in range(0, rows.num_rows, MERGED_ROWS)}
    for file in small:
        if file not in kept:
            storage.delete(file)
    return len(small)


def with_augmentation(items: pa.Table, written: pa.Table) -> pa.Table:
    """The items with the column `augmentation`, empty where nothing was written. written: item_augmentations."""
    return items.append_column(AUGMENTATION, _column(items[ITEM], written, ITEM))


def with_interests(users: pa.Table | None, written: pa.Table | None) -> pa.Table | None:
    """The users, those without attributes too, with the column `interests`; None if nothing is known of anybody.

    written: a user_augmentations table.
    """
    if written is None or not written.num_rows:
        return users if users is None else users.append_column(INTERESTS, pa.array([""] * users.num_rows, pa.string()))
    if users is None:
        users = written.select([USER])
    else:
        known = users[USER].combine_chunks()
        more = written.filter(pa.compute.invert(pa.compute.is_in(written[USER], known))).select([USER])
        users = pa.concat_tables([users, more], promote_options="default").combine_chunks()
    return users.append_column(INTERESTS, _column(users[USER], written, USER))


def _column(ids: pa.ChunkedArray, written: pa.Table, key: str) -> pa.Array:
    place = pa.compute.index_in(ids.combine_chunks(), written[key].combine_chunks())
    return written[TEXT].combine_chunks().take(place).fill_null("")


def item_texts_read(template: str) -> bool:
    """Whether a template of items reads augmentations."""
    return AUGMENTATION in placeholders(template)


def interests_read(template: str) -> bool:
    """Whether a template of users reads their interests."""
    return INTERESTS in placeholders(template)


def table(
    key: str, ids: pa.Array, texts: pa.Array, hashes: Sequence[str], schema: pa.Schema, source: dict[str, Any]
) -> pa.Table:
    """Rows of `schema.augmentations`, source: what all of them share, by column."""
    columns = {key: ids, TEXT: texts, CONTENT_HASH: pa.array(hashes, pa.string())}
    shared = {name: pa.array([value] * len(ids), schema.field(name).type) for name, value in source.items()}
    return pa.table({**columns, **shared}).select(schema.names).cast(schema)
