"""Items' frozen vectors: shards of the catalogue as `embed` writes them, and mapped into memory where they are used.

    tables/embeddings/_embeddings.json                    what there is; written last
    tables/embeddings/shard-00000-<12 hex digits>.arrow   item_id, mark, text, image_mark, image, image_problem, graph;
                                                          ascending ids throughout

A shard's name holds a hash of what its rows are made from, so that a shard that is there need not be written again, and
a new table comes beside the old one until `_embeddings.json` names it.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import xxhash

from llmrec import storage
from llmrec.errors import UserError
from llmrec.schema import ITEM

DESCRIPTION = "_embeddings.json"
MARK, TEXT, GRAPH = "mark", "text", "graph"
IMAGE, IMAGE_MARK, IMAGE_PROBLEM = "image", "image_mark", "image_problem"
PARTS = (TEXT, IMAGE, GRAPH)
IDS_FILE = "ids.arrow"


@dataclass(frozen=True)
class Shard:
    """A file of the table. path: relative to it; first, last: the least and the greatest id in it; present: how many of
    its items have each part; unreadable: pictures that could not be read."""

    path: str
    rows: int
    first: Any
    last: Any
    present: dict[str, int]
    unreadable: int = 0


@dataclass(frozen=True)
class Description:
    """What `_embeddings.json` says. version: equal for equal items, texts, pictures' names, encoders and graph; graph:
    a hash of the graph part; graph_of: of what it is made from; dimensions: of each part that there is. encoder,
    revision, graph, graph_of, image_encoder, image_revision are empty without the part.
    """

    version: str
    encoder: str
    revision: str
    max_tokens: int
    graph: str
    graph_of: str
    dimensions: dict[str, int]
    rows: int
    shards: list[Shard]
    image_encoder: str = ""
    image_revision: str = ""


@dataclass(frozen=True)
class Embeddings:
    """The table in memory. Row i of everything is item ids[i], ids ascending.

    ids: arrow[n]; parts: name -> float32[n, d], mapped from a file and read-only, zeros where an item lacks the part;
    present: name -> bool[n], which items have it; version, encoder: see `Description`; revisions: of the encoder that
    made a part, by the part's name.
    """

    ids: pa.Array
    parts: dict[str, np.ndarray]
    present: dict[str, np.ndarray]
    version: str
    encoder: str
    revisions: dict[str, str]


def marks(texts: list[str], revision: str, max_tokens: int) -> np.ndarray:
    """uint64[n]: equal for texts that this encoder makes the same vector of."""
    rule = f"mean {revision} {max_tokens} ".encode()
    found = (xxhash.xxh64_intdigest(rule + text.encode("utf-8", "surrogatepass")) for text in texts)
    return np.fromiter(found, np.uint64, len(texts))


def image_marks(uris: list[str | None], revision: str) -> np.ndarray:
    """uint64[n]: equal for pictures of the same name that this encoder is to make a vector of; 0 for none."""
    rule = f"image {revision} ".encode()
    found = (0 if uri is None else xxhash.xxh64_intdigest(rule + uri.encode("utf-8", "surrogatepass")) for uri in uris)
    return np.fromiter(found, np.uint64, len(uris))


def id_bytes(ids: pa.Array) -> bytes:
    """Equal for equal ids of a type."""
    if pa.types.is_integer(ids.type):
        return ids.to_numpy().tobytes()
    lengths = pa.compute.binary_length(ids).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths.tobytes() + "".join(ids.to_pylist()).encode("utf-8", "surrogatepass")


def shard_path(number: int, ids: pa.Array, marks: np.ndarray, graph: str, images: np.ndarray | None = None) -> str:
    """The name of a shard of these rows. marks, images: uint64[n], of texts and, if there are any, of pictures."""
    digest = hashlib.sha256(f"{ids.type} {graph} ".encode() + marks.tobytes())
    if images is not None:
        digest.update(b"images" + images.tobytes())
    digest.update(id_bytes(ids))
    return f"shard-{number:05d}-{digest.hexdigest()[:12]}.arrow"


def version_of(shards: list[Shard], revision: str, max_tokens: int, graph: str, image_revision: str = "") -> str:
    """16 hex digits over the shards, in order, and what besides their names their vectors depend on."""
    what = [revision, str(max_tokens), graph, *(shard.path for shard in shards)]
    if image_revision:  # of a shard written anew under its name, more pictures may have been there to read
        what += [image_revision, *(str(shard.unreadable) for shard in shards)]
    return hashlib.sha256("\n".join(what).encode()).hexdigest()[:16]


def as_column(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """float32[n, d] as a column; a row of zeros is null."""
    n, d = vectors.shape
    values = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(n * d))
    return pa.FixedSizeListArray.from_arrays(values, d, mask=pa.array(~vectors.any(axis=1)))


def as_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """The inverse of `as_column`."""
    lists = column.combine_chunks()
    d = lists.type.list_size
    found = lists.values.to_numpy(zero_copy_only=False)[lists.offset * d : (lists.offset + len(lists)) * d]
    return np.where(_valid(column)[:, None], found.reshape(len(lists), d), np.float32(0))


def write_shard(table: pa.Table, uri: str) -> None:
    """Write one uncompressed Arrow IPC file of one batch."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table.combine_chunks(), max_chunksize=max(table.num_rows, 1))
    storage.write_bytes(uri, sink.getvalue().to_pybytes())


def read_shard(uri: str) -> pa.Table:
    """A shard's rows.

    Raises:
        UserError: it is not there, or is no shard.
    """
    try:
        return pa.ipc.open_file(storage.read_bytes(uri)).read_all()
    except pa.ArrowInvalid as error:
        raise UserError(f"{uri}: not a readable Arrow file ({str(error).splitlines()[0][:120]})") from None


def facts(rows: pa.Table) -> dict[str, tuple[int, int]]:
    """(dimensions, how many rows have it) of each part of a shard."""
    return {
        part: (rows.schema.field(part).type.list_size, rows.num_rows - rows[part].null_count)
        for part in PARTS
        if part in rows.column_names
    }


def unreadable(rows: pa.Table) -> int:
    """How many pictures of a shard could not be read."""
    return rows.num_rows - rows[IMAGE_PROBLEM].null_count if IMAGE_PROBLEM in rows.column_names else 0


def describe(uri: str) -> Description | None:
    """What a table of embeddings holds; None if there is none."""
    where = storage.join(uri, DESCRIPTION)
    if not storage.exists(where):
        return None
    found = storage.read_json(where)
    return Description(**{**found, "shards": [Shard(**shard) for shard in found["shards"]]})


def publish(uri: str, description: Description) -> None:
    """Let readers see the shards that this names, then delete all others."""
    storage.write_json(storage.join(uri, DESCRIPTION), asdict(description))
    named = {storage.join(uri, shard.path) for shard in description.shards}
    for file, _ in storage.list_files(uri, ".arrow"):
        if file not in named:
            storage.delete(file)


def open_embeddings(uri: str, cache: Path) -> Embeddings | None:
    """A table of embeddings from this machine's cache, where it is put first if this version is not there; None if
    there is no table.

    Processes that ask at once wait for the first. Other versions of the same table go; who has one open keeps it.
    cache: a local directory; what one table's versions need lies in a folder of its own there.

    Raises:
        UserError: a shard is missing or is not what `_embeddings.json` says, or the cache cannot be written.
    """
    described = describe(uri)
    if described is None:
        return None
    mine = cache / hashlib.sha256(storage.absolute(uri).encode()).hexdigest()[:16]
    folder = storage.made_once(mine, described.version, lambda folder: _assemble(uri, described, folder))
    return _mapped(folder, described)


def _assemble(uri: str, described: Description, folder: Path) -> None:
    """Put the shards back to back, a file a part."""
    made = {
        part: (
            np.lib.format.open_memmap(folder / f"{part}.npy", "w+", np.float32, (described.rows, d)),
            np.zeros(described.rows, bool),
        )
        for part, d in described.dimensions.items()
    }
    ids, start = [], 0
    for shard in described.shards:
        where = storage.join(uri, shard.path)
        rows = read_shard(where)
        wanted = {ITEM, *described.dimensions}
        if rows.num_rows != shard.rows or not wanted <= set(rows.column_names):
            raise UserError(f"{where}: not the shard that {DESCRIPTION} names; run jobs/embed.py again")
        here = slice(start, start + shard.rows)
        for part, (vectors, present) in made.items():
            vectors[here], present[here] = as_matrix(rows[part]), _valid(rows[part])
        ids.append(rows[ITEM].combine_chunks())
        start += shard.rows
    for part, (vectors, present) in made.items():
        vectors.flush()
        np.save(folder / f"{part}-present.npy", present)
    table = pa.table({ITEM: pa.chunked_array(ids)}).combine_chunks()
    with pa.OSFile(str(folder / IDS_FILE), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table, max_chunksize=max(table.num_rows, 1))


def _mapped(folder: Path, described: Description) -> Embeddings:
    def mapped(name: str) -> np.ndarray:
        found: np.ndarray = np.load(folder / name, mmap_mode="r")
        return found

    return Embeddings(
        ids=pa.ipc.open_file(pa.memory_map(str(folder / IDS_FILE))).read_all()[ITEM].combine_chunks(),
        parts={part: mapped(f"{part}.npy") for part in described.dimensions},
        present={part: mapped(f"{part}-present.npy") for part in described.dimensions},
        version=described.version,
        encoder=described.encoder,
        revisions={TEXT: described.revision, IMAGE: described.image_revision},
    )


def _valid(column: pa.ChunkedArray) -> np.ndarray:
    found: np.ndarray = column.is_valid().to_numpy()
    return found
