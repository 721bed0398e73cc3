"""Tables in buckets: all rows of a user lie in one file, chosen by a stable hash of the user's id.

The bucket is the unit of parallelism, retry, resume and audit. A bucketed table is a directory of
`bucket-00042.parquet` files; histories, candidates and targets with the same number of buckets join file by file.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import xxhash

from llmrec import schema, storage
from llmrec.errors import StoreError, UserError
from llmrec.schema import ITEM, ITEMS, USER

UNFINISHED = "_UNFINISHED"


def user_hash(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """uint64[n]: xxhash64 of each id's decimal or UTF-8 text, the same on every machine and in every version."""
    texts = ids.cast(pa.string()).fill_null("None").cast(pa.binary()).to_pylist()
    return np.fromiter(map(xxhash.xxh64_intdigest, texts), dtype=np.uint64, count=len(ids))


def bucket_of(ids: pa.Array | pa.ChunkedArray, buckets: int) -> np.ndarray:
    """int32[n]: user_hash modulo the number of buckets."""
    return (user_hash(ids) % np.uint64(buckets)).astype(np.int32)


def share_of(ids: pa.Array | pa.ChunkedArray, share: float) -> np.ndarray:
    """bool[n]: a stable choice of this share of users, independent of their buckets."""
    high = (user_hash(ids) >> np.uint64(32)).astype(np.float64) / 2.0**32
    return high < share


def share_for(files: Iterable[str], most: int) -> tuple[float, int]:
    """The `share_of` users that are about so many at most, and how many there are. files: of a table with a row a user.

    Raises:
        UserError: one is no readable Parquet file.
    """
    users = sum(storage.each(rows_in, files))
    return min(1.0, most / max(users, 1)), users


def bucket_file(table: str, bucket: int) -> str:
    return storage.join(table, f"bucket-{bucket:05d}.parquet")


def bucket_files(table: str) -> dict[int, str]:
    """Bucket number -> URI of the files that are there.

    Raises:
        UserError: the directory holds none, or a job that was `rewriting` it has not come to its end.
    """
    files = [uri for uri, _ in storage.list_files(table)]
    if any(uri.endswith(f"/{UNFINISHED}") for uri in files):
        raise UserError(f"{table}: half-written; the job that writes it still runs, or was cut off: run it again")
    found = {int(match[1]): uri for uri in files if (match := re.search(r"/bucket-(\d{5})\.parquet$", uri))}
    if not found:
        raise UserError(
            f"{table}: no bucketed table there (bucket-00000.parquet ...); run the job that writes it first"
        )
    return found


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as one Parquet file; the same rows give the same bytes."""
    buffer = io.BytesIO()
    # Dictionaries of numbers cost time and, where these do not repeat, size; the ids in lists do.
    flat = not any(pa.types.is_nested(f.type) for f in table.schema)
    texts = [f.name for f in table.schema if not pa.types.is_primitive(f.type)] if flat else True
    pq.write_table(table, buffer, compression="zstd", row_group_size=1 << 17, use_dictionary=texts)
    return buffer.getvalue()


def write_parquet(table: pa.Table, uri: str) -> int:
    """Write one Parquet file in one piece; its size in bytes."""
    data = parquet_bytes(table)
    storage.write_bytes(uri, data)
    return len(data)


def read_parquet(
    uri: str, columns: list[str] | None = None, dictionaries: Iterable[str] = (), without: str = ""
) -> pa.Table:
    """One Parquet file or a directory of them as one table.

    dictionaries: columns of texts, or of lists of texts, that stay dictionaries where they are some in the file;
    without: columns whose names begin so are not read.

    Raises:
        UserError: nothing there, no Parquet, or a truncated file; named.
    """
    files = [f for f, _ in storage.list_files(uri) if not f.rsplit("/", 1)[-1].startswith(("_", "."))]
    if not files:
        raise UserError(f"{uri}: no such table")
    return read_files(files, uri, columns, dictionaries, without)


def read_files(
    files: Sequence[str], uri: str, columns: list[str] | None = None, dictionaries: Iterable[str] = (),
    without: str = "",
) -> pa.Table:  # fmt: skip
    """`read_parquet` of these files, one at least. uri: what they are of.

    Raises:
        UserError: one is no Parquet, or truncated, or they disagree on columns; named.
    """
    fs, _path = storage.filesystem(uri)
    tables = []
    for file in files:
        try:
            inner = file.removeprefix("s3://")
            wanted, texts = columns, None
            if dictionaries or without:
                footer = pq.read_metadata(inner, filesystem=fs)
                texts = _dictionaries(footer, set(dictionaries))
                if without:
                    wanted = [n for n in footer.schema.to_arrow_schema().names if not n.startswith(without)]
            tables.append(
                pq.read_table(
                    inner, filesystem=fs, columns=wanted, partitioning=None, read_dictionary=texts, use_threads=False
                )
            )
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{file}: not a readable Parquet file ({str(error).splitlines()[0][:120]})") from None
    try:
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(f"{uri}: its files disagree on columns ({str(error).splitlines()[0][:120]})") from None


def pairs_in(uri: str) -> int:
    """Candidates of a file of either form, by its footer; a user without any counts as one.

    Raises:
        UserError: no readable Parquet file.
    """
    footer, found = _footer(uri), 0
    for group in range(footer.num_row_groups):
        columns = [footer.row_group(group).column(i) for i in range(footer.num_columns)]
        found += sum(c.num_values for c in columns if c.path_in_schema.split(".")[0] in (ITEM, ITEMS))
    return found


def rows_in(uri: str) -> int:
    """Rows of a Parquet file, by its footer.

    Raises:
        UserError: no readable Parquet file.
    """
    return int(_footer(uri).num_rows)


def largest(uri: str, column: str) -> int | None:
    """The largest number of a column, or of the lists in it, by the file's footer if that tells; None if there is none.

    Raises:
        UserError: no readable Parquet file, or no such column.
    """
    footer = _footer(uri)
    schema.require(footer.schema.to_arrow_schema(), {column: "anything"}, uri)
    told = _ends(footer, column)
    if None in told:
        flat = read_parquet(uri, [column])[column].combine_chunks()
        flat = flat.flatten() if pa.types.is_nested(flat.type) else flat
        at: int | None = pa.compute.max(flat).as_py()
        return at
    return max((ends[1] for ends in told if ends is not None), default=None)


def bounds(uri: str, column: str) -> tuple[Any, Any] | None:
    """The least and the largest value of a column, or in the lists of one, by the footer; None if it tells of none.

    Raises:
        UserError: no readable Parquet file.
    """
    told = [ends for ends in _ends(_footer(uri), column) if ends is not None]
    return (min(ends[0] for ends in told), max(ends[1] for ends in told)) if told else None


def _ends(footer: pq.FileMetaData, column: str) -> list[tuple[Any, Any] | None]:
    """The least and the largest value of a column, or in the lists of one, in each row group; None where the footer
    does not tell."""
    found = list[tuple[Any, Any] | None]()
    for group in range(footer.num_row_groups):
        for leaf in map(footer.row_group(group).column, range(footer.num_columns)):
            if leaf.path_in_schema.split(".")[0] == column:
                told = leaf.statistics
                found.append((told.min, told.max) if told is not None and told.has_min_max else None)
    return found


def schema_of(uri: str) -> pa.Schema:
    """The columns of a Parquet file.

    Raises:
        UserError: no readable Parquet file.
    """
    return _footer(uri).schema.to_arrow_schema()


def _footer(uri: str) -> pq.FileMetaData:
    fs, _ = storage.filesystem(uri)
    try:
        return pq.read_metadata(uri.removeprefix("s3://"), filesystem=fs)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{uri}: not a readable Parquet file ({str(error).splitlines()[0][:120]})") from None


def _dictionaries(footer: pq.FileMetaData, columns: set[str]) -> list[str]:
    """Paths of the text columns among these, or in lists among these, that are dictionaries throughout the file.

    Plain text takes four bytes for its length alone, so that fewer bytes a value mean a dictionary.
    """
    sizes: Counter[str] = Counter()
    for group in range(footer.num_row_groups):
        for leaf in range(footer.num_columns):
            found = footer.row_group(group).column(leaf)
            if found.physical_type == "BYTE_ARRAY" and found.path_in_schema.split(".")[0] in columns:
                sizes[found.path_in_schema] += found.total_uncompressed_size - 4 * found.num_values
    return [path for path, spare in sizes.items() if spare < 0]


def delete_others(table: str, keep: Iterable[int]) -> None:
    """Delete bucket files that are not among `keep`, left by an earlier run with more buckets."""
    kept = set(keep)
    try:
        files = bucket_files(table)
    except StoreError:
        raise
    except UserError:
        return
    for bucket, uri in files.items():
        if bucket not in kept:
            storage.delete(uri)


@contextlib.contextmanager
def rewriting(table: str) -> Iterator[None]:
    """Replace a bucketed table: write a mark, delete the old files, let new ones be written inside, delete the mark.

    While the mark lies there, `bucket_files` refuses the table, so that half of it is never taken for the whole. It
    comes before the first deletion and goes after the last write; a job that fails or is killed leaves it until it has
    been run again. Every old file is gone before a new one comes, since old and new together would look like one table.
    """
    mark = storage.join(table, UNFINISHED)
    storage.write_bytes(mark, b"This table is being written, or the job that wrote it was cut off.\n")
    for uri, _ in storage.list_files(table):
        if uri != mark:
            storage.delete(uri)
    yield
    storage.delete(mark)


def catalogue_ids(items: str) -> pa.Array:
    """The item ids of an items table, ascending: item row i is ids[i] everywhere."""
    ids = read_parquet(items, [ITEM])[ITEM].combine_chunks()
    if pa.compute.all(pa.compute.less(ids[:-1], ids[1:])).as_py() is False:
        ids = ids.take(pa.compute.sort_indices(ids))
    return ids


def sorted_by_user(table: pa.Table) -> pa.Table:
    return table.take(pa.compute.sort_indices(table, sort_keys=[(USER, "ascending")]))
