"""The pool that embed encodes with: actors that write one shard of the table of embeddings after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch

from llmrec import assets, config, storage
from llmrec.engine.watch import Beating
from llmrec.errors import StoreError, UserError
from llmrec.ranker.images import ImageEncoder, UnreadableImageError, decoded
from llmrec.ranker.sentence import SentenceEncoder
from llmrec.schema import ITEM
from llmrec.tables import embeddings
from llmrec.tables.embeddings import GRAPH, IMAGE, IMAGE_MARK, IMAGE_PROBLEM, MARK, TEXT, Shard

if TYPE_CHECKING:
    from PIL.Image import Image

MARKS = {TEXT: MARK, IMAGE: IMAGE_MARK}  # of the parts that a model makes


@dataclass(frozen=True)
class Job:
    """What every actor needs."""

    items: config.Items
    table: str


@dataclass(frozen=True)
class Unit:
    """A shard to write. rows, graph: references to its ids, marks, texts and pictures' names, and to its graph vectors,
    None if there are none or the earlier shards have them; earlier: those with rows to copy; copied: the parts that
    they may have.
    """

    shard: Shard
    rows: Any
    graph: Any
    earlier: list[str]
    copied: tuple[str, ...]


class EncoderActor:
    """A member of the actor pool; an encoder is loaded for the first thing that it has to read."""

    def __init__(self, job: Job, units: list[Unit], pulse: Any) -> None:
        self.job, self.units, self.beating = job, units, Beating(pulse)
        if not job.items.gpus_per_actor:
            torch.set_num_threads(max(1, round(job.items.cpus_per_actor)))
        self.device = "cuda" if job.items.gpus_per_actor else "cpu"

    @cached_property
    def sentences(self) -> SentenceEncoder:
        with self.beating.meanwhile():
            directory = assets.resolve_model(self.job.items.encoder)
            return SentenceEncoder(directory, self.job.items.max_tokens, self.device)

    @cached_property
    def pictures(self) -> ImageEncoder:
        with self.beating.meanwhile():
            return ImageEncoder(assets.resolve_model(self.job.items.image_encoder), self.device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        import ray

        unit = self.units[batch["unit"][0].as_py()]
        with self.beating.meanwhile():
            rows = ray.get(unit.rows)
            graph = None if unit.graph is None else ray.get(unit.graph)
            earlier = [embeddings.read_shard(uri) for uri in unit.earlier]
        columns: dict[str, Any] = {ITEM: rows[ITEM], MARK: rows[MARK]}
        counted: dict[str, Any] = {"encoded": 0, "seconds": 0.0, "images_encoded": 0, "images_seconds": 0.0}
        problems = np.full(rows.num_rows, None, object)
        if TEXT in rows.column_names:
            new = _new(rows, earlier, unit.copied, TEXT)
            found, seconds = _made(rows, new, earlier, TEXT, self._encode_texts)
            columns[TEXT] = embeddings.as_column(found)
            counted |= {"encoded": int(new.sum()), "seconds": seconds}
        if IMAGE in rows.column_names:
            new = _new(rows, earlier, unit.copied, IMAGE)
            found, seconds = _made(rows, new, earlier, IMAGE, lambda uris: self._encode_images(uris, problems, new))
            columns |= {IMAGE_MARK: rows[IMAGE_MARK], IMAGE: embeddings.as_column(found)}
            columns[IMAGE_PROBLEM] = pa.array(problems, pa.string())
            counted |= {"images_encoded": int((new & found.any(axis=1)).sum()), "images_seconds": seconds}
        with self.beating.meanwhile():
            if graph is None and GRAPH in unit.copied:
                graph = _copy(rows, np.ones(rows.num_rows, bool), earlier, GRAPH)
            if graph is not None and graph.shape[1]:
                columns[GRAPH] = embeddings.as_column(graph)
            table = pa.table(columns)
            embeddings.write_shard(table, storage.join(self.job.table, unit.shard.path))
        facts = [{"part": part, "d": d, "present": n} for part, (d, n) in embeddings.facts(table).items()]
        bad = np.flatnonzero(problems != None)  # noqa: E711 - of every element
        told = f"{storage.redact(rows[IMAGE][int(bad[0])].as_py())}: {problems[bad[0]]}" if len(bad) else None
        row = {"path": unit.shard.path, "facts": facts, "unreadable": len(bad), "problem": told, **counted}
        return pa.Table.from_pylist([row], schema=_WRITTEN)

    def _encode_texts(self, texts: list[str]) -> np.ndarray:
        return self.sentences.encode(texts, self.job.items.batch_size, self.beating)

    def _encode_images(self, uris: list[str | None], problems: np.ndarray, new: np.ndarray) -> np.ndarray:
        """float32[n, d]; zeros where there is no picture, or none that can be read: `problems` of these rows, which
        `new` marks among all, says why."""
        row_of, encoder = np.flatnonzero(new), self.pictures
        vectors: dict[int, np.ndarray] = {}
        for places, pictures in _opened(uris, self.job.items.batch_size, self.job.table):
            for i, picture in zip(places, pictures, strict=True):
                if isinstance(picture, str):
                    problems[row_of[i]] = picture
            good = [(i, p) for i, p in zip(places, pictures, strict=True) if not isinstance(p, str)]
            if good:
                vectors.update(zip((i for i, _ in good), encoder.encode([p for _, p in good]), strict=True))
            self.beating(len(good))
        found = np.zeros((len(uris), encoder.dimensions), np.float32)
        for i, vector in vectors.items():
            found[i] = vector
        return found


def _opened(uris: Sequence[str | None], at_once: int, table: str) -> Iterator[tuple[list[int], list[Image | str]]]:
    """Places of pictures and these, or what is wrong with them, some at a time; while some are encoded, the next are
    read. table: where this job writes."""
    places = [i for i, uri in enumerate(uris) if uri is not None]
    chunks = [places[start : start + at_once] for start in range(0, len(places), at_once)]
    with ThreadPoolExecutor(storage.READERS) as threads:

        def read(chunk: list[int]) -> list[Any]:
            return [threads.submit(_picture, str(uris[i]), table) for i in chunk]

        ahead = read(chunks[0]) if chunks else []
        for n, chunk in enumerate(chunks):
            here, ahead = ahead, read(chunks[n + 1]) if n + 1 < len(chunks) else []
            yield chunk, [future.result() for future in here]


def _picture(uri: str, table: str) -> Image | str:
    """A picture, or what is wrong with it.

    Raises:
        UserError: the store does not answer, or refuses what this job writes, too: no fault of the picture.
    """
    try:
        data = storage.read_if_there(uri)
    except StoreError:
        raise
    except UserError as problem:
        storage.check(table)
        told = " ".join(str(problem).split())
        return told.removeprefix(f"{uri}: ").removeprefix(f"'{storage.redact(uri)}': ")
    try:
        return "no such file" if data is None else decoded(data)
    except UnreadableImageError as problem:
        return str(problem)


def _made(
    rows: pa.Table, new: np.ndarray, earlier: list[pa.Table], part: str, encode: Callable[[list[Any]], np.ndarray]
) -> tuple[np.ndarray, float]:
    """float32[n, d] and the seconds that it took: copied where they are not new (bool[n]), encoded where they are."""
    started = time.monotonic()
    if not new.any():
        return _copy(rows, ~new, earlier, part), time.monotonic() - started
    encoded = encode(rows[part].filter(pa.array(new)).to_pylist())
    if new.all():
        return encoded, time.monotonic() - started
    found = _copy(rows, ~new, earlier, part)
    found[new] = encoded
    return found, time.monotonic() - started


def _new(rows: pa.Table, earlier: list[pa.Table], copied: tuple[str, ...], part: str) -> np.ndarray:
    """bool[n]: rows whose text or picture has no vector yet. A picture that could not be read is tried again."""
    new = np.ones(rows.num_rows, bool)
    if part not in copied:
        return new
    mark = MARKS[part]
    for old in earlier:
        place, there = _places(rows, old)
        there &= old[mark].to_numpy()[place] == rows[mark].to_numpy()
        if part == IMAGE:
            there &= old[IMAGE_PROBLEM].is_null().to_numpy()[place]
        new &= ~there
    return new


def _copy(rows: pa.Table, which: np.ndarray, earlier: list[pa.Table], part: str) -> np.ndarray:
    """float32[n, d]: a part of these rows (bool[n]) from the shards of before, zeros for the others."""
    found = np.zeros((rows.num_rows, earlier[0].schema.field(part).type.list_size), np.float32)
    for old in earlier:
        place, there = _places(rows, old)
        here = which & there
        found[here] = embeddings.as_matrix(old[part])[place[here]]
    return found


def _places(rows: pa.Table, old: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """int64[n] and bool[n]: where each id stands in a shard of before, if it does."""
    place = pa.compute.index_in(rows[ITEM].combine_chunks(), old[ITEM].combine_chunks()).fill_null(-1)
    found = place.to_numpy(zero_copy_only=False).astype(np.int64)
    return np.maximum(found, 0), found >= 0


_WRITTEN = pa.schema([
    ("path", pa.string()), ("encoded", pa.int64()), ("seconds", pa.float64()), ("images_encoded", pa.int64()),
    ("images_seconds", pa.float64()), ("unreadable", pa.int64()), ("problem", pa.string()),
    ("facts", pa.list_(pa.struct({"part": pa.string(), "d": pa.int64(), "present": pa.int64()}))),
])  # fmt: skip
