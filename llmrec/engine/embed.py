"""embed: the frozen parts of the items' vectors that are dear to compute, once a catalogue.

The items, by ascending id, are cut into shards, and a shard goes to one actor of a pool: rows whose text and encoder
are those of the last table are copied from it, the others are encoded. The graph part is one decomposition of the whole
graph, in one task. A shard that is there already is left alone, so that a job that was cut off does the rest.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch

from llmrec import assets, config, storage
from llmrec.engine import watch
from llmrec.engine.prompts import own_columns, told
from llmrec.engine.watch import Beating
from llmrec.layout import Layout
from llmrec.ranker.card import model_version
from llmrec.ranker.graph import spectral_embedding
from llmrec.ranker.sentence import SentenceEncoder
from llmrec.ranker.templates import fill
from llmrec.schema import ITEM
from llmrec.tables import buckets, embeddings
from llmrec.tables.embeddings import GRAPH, MARK, TEXT, Description, Shard

GRAPH_CPUS = 1


@dataclass(frozen=True)
class Embedded:
    """What embed did. encoded: texts that the encoder read; unchanged: items whose text's vector was there before;
    with_part: items that have each part; dimensions: of each part; shards_written: those that were not there;
    texts_per_second: of all actors while they encode. table: None where there is nothing to embed.
    """

    items: int
    encoded: int
    unchanged: int
    with_part: dict[str, int]
    dimensions: dict[str, int]
    shards: int
    shards_written: int
    texts_per_second: float | None
    encoder: str
    revision: str
    version: str
    table: str | None


@dataclass(frozen=True)
class _Job:
    """What every actor needs. revision: empty without an encoder."""

    items: config.Items
    table: str
    revision: str


@dataclass(frozen=True)
class _Unit:
    """A shard to write. rows, graph: references to its ids, marks and texts, and to its graph vectors, None if there
    are none or the earlier shards have them; earlier: those with rows to copy; copied: the parts that they may have.
    """

    shard: Shard
    rows: Any
    graph: Any
    earlier: list[str]
    copied: tuple[str, ...]


def wanted(settings: config.Config) -> bool:
    """Whether there is a part to compute."""
    of_items = settings.model.items == "token" and bool(settings.items.encoder or settings.data.edges)
    compared = bool({"text", "query"} & set(settings.recall.merge)) or settings.rerank.by_text
    return of_items or (compared and bool(settings.items.encoder))


def embed(settings: config.Config, layout: Layout, say: Callable[[str], None]) -> Embedded:
    """Write the table of embeddings, or nothing if no item needs one.

    Raises:
        UserError: the encoder cannot be loaded, the template names an unknown column, or nothing moves for
            cluster.no_progress_seconds.
    """
    if not wanted(settings):
        return _nothing(settings, layout, say)
    items, table = settings.items, layout.embeddings
    prompt = settings.prompt if items.encoder else settings.prompt.model_copy(update={"item": ""})
    catalogue = _catalogue(layout, prompt)
    ids = catalogue[ITEM].combine_chunks()
    # A wrong name is told before actors start.
    directory = assets.resolve_model(items.encoder) if items.encoder else ""
    revision = model_version(directory) if directory and Path(directory).is_dir() else directory
    there = {uri for uri, _ in storage.list_files(table, ".arrow")}
    before = embeddings.describe(table)
    if before is not None and not {storage.join(table, shard.path) for shard in before.shards} <= there:
        before = None  # somebody has deleted some of it
    graph, graph_mark, graph_of = _graph(settings, layout, ids, before, say)
    copied = _parts_to_copy(before, revision, items.max_tokens, graph_of)

    shards, units = [], []
    for number, start in enumerate(range(0, len(ids), items.shard)):
        rows = _rows(catalogue.slice(start, items.shard), settings, revision)
        shard = _shard(number, rows, graph_mark)
        shards.append(shard)
        if storage.join(table, shard.path) not in there:
            here = None if graph is None else _put(graph[start : start + items.shard])
            units.append(_Unit(shard, _put(rows), here, _earlier(before, shard, table) if copied else [], copied))
    del catalogue
    say(f"{len(ids):,} items in {len(shards)} shards, {len(shards) - len(units)} of them there already")
    job = _Job(items, table, revision)
    done = _run(job, units, settings.cluster.no_progress_seconds, say) if units else []
    found = _facts(table, shards, done, before)
    shards = [Shard(**{**asdict(s), "present": {p: n for p, (_, n) in found[s.path].items()}}) for s in shards]
    dimensions = {part: d for part, (d, _) in found[shards[0].path].items()}
    version = embeddings.version_of(shards, revision, items.max_tokens, graph_mark)
    embeddings.publish(
        table,
        Description(
            version, items.encoder, revision, items.max_tokens, graph_mark, graph_of, dimensions, len(ids), shards
        ),
    )
    encoded, seconds = sum(row["encoded"] for row in done), sum(row["seconds"] for row in done)
    return Embedded(
        items=len(ids),
        encoded=encoded,
        unchanged=len(ids) - encoded if items.encoder else 0,
        with_part={part: sum(s.present[part] for s in shards) for part in dimensions},
        dimensions=dimensions,
        shards=len(shards),
        shards_written=len(units),
        texts_per_second=encoded / seconds * _actors(items, len(units)) if encoded else None,
        encoder=items.encoder,
        revision=revision,
        version=version,
        table=table,
    )


def _nothing(settings: config.Config, layout: Layout, say: Callable[[str], None]) -> Embedded:
    if settings.model.items == "token":
        say("items.encoder and data.edges are empty: there is nothing to embed")
        storage.delete(layout.embeddings)  # or a part that nobody asks for would still be found
    else:
        say("model.items = text: items are read as text, there is nothing to embed")
    return Embedded(0, 0, 0, {}, {}, 0, 0, None, "", "", "", None)


def _catalogue(layout: Layout, prompt: config.Prompt) -> pa.Table:
    """The ids, ascending, and the columns that the template of items names, those that other tables tell included."""
    columns = list(dict.fromkeys((ITEM, *own_columns(prompt, layout))))
    items = told(buckets.read_parquet(layout.items, columns), prompt, layout)
    return items.take(pa.compute.sort_indices(items, sort_keys=[(ITEM, "ascending")])).combine_chunks()


def _rows(items: pa.Table, settings: config.Config, revision: str) -> pa.Table:
    """item_id, mark and, with an encoder, the text of some items; without one a mark is 0."""
    if not settings.items.encoder:
        return pa.table({ITEM: items[ITEM], MARK: np.zeros(items.num_rows, np.uint64)})
    texts = fill(settings.prompt.item, items, "item")
    marks = embeddings.marks(texts, revision, settings.items.max_tokens)
    return pa.table({ITEM: items[ITEM], MARK: marks, TEXT: pa.array(texts, pa.large_string())})


def _shard(number: int, rows: pa.Table, graph: str) -> Shard:
    ids = rows[ITEM].combine_chunks()
    path = embeddings.shard_path(number, ids, rows[MARK].to_numpy(), graph)
    return Shard(path, len(ids), ids[0].as_py(), ids[-1].as_py(), {})


def _graph(
    settings: config.Config, layout: Layout, ids: pa.Array, before: Description | None, say: Callable[[str], None]
) -> tuple[np.ndarray | None, str, str]:
    """The graph vectors, None if there is no graph or the table of before has them; a hash of them, and one of what
    they are made from, both empty without a graph."""
    import ray

    if not settings.data.edges:
        return None, "", ""
    dimensions = settings.items.graph_dimensions
    content = [str(dimensions), *(tag for _, _, tag in storage.manifest(layout.edges))]
    made_of = _hash("\n".join(content).encode() + embeddings.id_bytes(ids))
    if before is not None and before.graph_of == made_of:
        return None, before.graph, made_of
    say("decomposing the graph")
    task = ray.remote(_spectral).options(num_cpus=GRAPH_CPUS)
    found = ray.get(task.remote(layout.edges, ray.put(ids), dimensions))
    if not found.shape[1]:
        say("no two items share a relation and a tail: the graph says nothing of them, and its part is left out")
    return found, _hash(found.tobytes()), made_of


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _spectral(edges: str, ids: pa.Array, dimensions: int) -> np.ndarray:
    return spectral_embedding(buckets.read_parquet(edges), ids, dimensions)


def _parts_to_copy(before: Description | None, revision: str, max_tokens: int, graph_of: str) -> tuple[str, ...]:
    """Parts of which the table of before may have rows that are still right."""
    if before is None:
        return ()
    same = {
        TEXT: (before.revision, before.max_tokens) == (revision, max_tokens) and revision != "",
        GRAPH: before.graph_of == graph_of and graph_of != "",
    }
    return tuple(part for part in before.dimensions if same[part])


def _earlier(before: Description | None, shard: Shard, table: str) -> list[str]:
    """The shards of before that may hold ids of this one."""
    if before is None or type(before.shards[0].first) is not type(shard.first):
        return []
    return [
        storage.join(table, old.path)
        for old in before.shards
        if old.first <= shard.last and old.last >= shard.first
    ]  # fmt: skip


def _put(value: Any) -> Any:
    import ray

    return ray.put(value)


def _actors(items: config.Items, units: int) -> int:
    return max(1, min(items.actors, units))


def _run(job: _Job, units: Sequence[_Unit], limit: float, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Write the shards by a pool of actors; what each one counted."""
    import ray

    context = ray.data.DataContext.get_current()
    # A shard may take as long as it needs; what does not move at all is found by the pulse.
    context.execution_no_progress_timeout_s = -1
    actors = _actors(job.items, len(units))
    # After the loss of a node a pool that may shrink goes on with the actors that are left.
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors)
    pulse = watch.start_pulse()
    done = ray.data.from_items(
        [{"unit": i} for i in range(len(units))], override_num_blocks=min(len(units), 10_000)
    ).map_batches(
        EncoderActor, batch_size=1, compute=pool, fn_constructor_args=(job, list(units), pulse),
        batch_format="pyarrow", num_cpus=job.items.cpus_per_actor, num_gpus=job.items.gpus_per_actor,
    )  # fmt: skip

    def line(shards: int, texts: int) -> str:
        ready = f"{texts:,} texts encoded" if texts or shards else "actors get ready"
        return f"{shards} of {len(units)} shards, {ready}"

    return watch.collected(done.iter_rows(), pulse, limit, "items.actors", say, line)


class EncoderActor:
    """A member of the actor pool: writes one shard after the other; the encoder is loaded for the first new text."""

    def __init__(self, job: _Job, units: list[_Unit], pulse: Any) -> None:
        self.job, self.units, self.beating = job, units, Beating(pulse)
        self.encoder: SentenceEncoder | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        import ray

        unit = self.units[batch["unit"][0].as_py()]
        with self.beating.meanwhile():
            rows = ray.get(unit.rows)
            graph = None if unit.graph is None else ray.get(unit.graph)
            earlier = [embeddings.read_shard(uri) for uri in unit.earlier]
            if TEXT in rows.column_names and not self.encoder and _new(rows, earlier, unit.copied).any():
                self.encoder = _load(self.job.items)
        started = time.monotonic()
        columns: dict[str, Any] = {ITEM: rows[ITEM], MARK: rows[MARK]}
        encoded = 0
        if TEXT in rows.column_names:
            new = _new(rows, earlier, unit.copied)
            encoded = int(new.sum())
            columns[TEXT] = embeddings.as_column(self._texts(rows, new, earlier))
        seconds = time.monotonic() - started
        with self.beating.meanwhile():
            if graph is None and GRAPH in unit.copied:
                graph = _copy(rows, np.ones(rows.num_rows, bool), earlier, GRAPH)
            if graph is not None and graph.shape[1]:
                columns[GRAPH] = embeddings.as_column(graph)
            table = pa.table(columns)
            embeddings.write_shard(table, storage.join(self.job.table, unit.shard.path))
        found = [{"part": part, "d": d, "present": n} for part, (d, n) in embeddings.facts(table).items()]
        return pa.Table.from_pylist(
            [{"path": unit.shard.path, "encoded": encoded, "seconds": seconds, "facts": found}], schema=_WRITTEN
        )

    def _texts(self, rows: pa.Table, new: np.ndarray, earlier: list[pa.Table]) -> np.ndarray:
        """float32[n, d]: copied where they are not new, encoded where they are."""
        copied = None if new.all() else _copy(rows, ~new, earlier, TEXT)
        if not new.any():
            assert copied is not None
            return copied
        assert self.encoder is not None
        texts = rows[TEXT].filter(pa.array(new)).to_pylist()
        encoded = self.encoder.encode(texts, self.job.items.batch_size, self.beating)
        if copied is None:
            return encoded
        copied[new] = encoded
        return copied


def _load(items: config.Items) -> SentenceEncoder:
    if not items.gpus_per_actor:
        torch.set_num_threads(max(1, round(items.cpus_per_actor)))
    directory = assets.resolve_model(items.encoder)
    return SentenceEncoder(directory, items.max_tokens, "cuda" if items.gpus_per_actor else "cpu")


def _new(rows: pa.Table, earlier: list[pa.Table], copied: tuple[str, ...]) -> np.ndarray:
    """bool[n]: rows whose text has no vector yet."""
    new = np.ones(rows.num_rows, bool)
    if TEXT in copied:
        for old in earlier:
            place, there = _places(rows, old)
            there &= old[MARK].to_numpy()[place] == rows[MARK].to_numpy()
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


def _facts(
    table: str, shards: Sequence[Shard], done: list[dict[str, Any]], before: Description | None
) -> dict[str, dict[str, tuple[int, int]]]:
    """`embeddings.facts` of each shard by its path, read only where a job was cut off after it wrote the shard."""
    found = {row["path"]: {f["part"]: (f["d"], f["present"]) for f in row["facts"]} for row in done}
    if before is not None:
        for shard in before.shards:
            found[shard.path] = {part: (d, shard.present[part]) for part, d in before.dimensions.items()}
    for shard in shards:
        if shard.path not in found:
            found[shard.path] = embeddings.facts(embeddings.read_shard(storage.join(table, shard.path)))
    return found


_WRITTEN = pa.schema([
    ("path", pa.string()), ("encoded", pa.int64()), ("seconds", pa.float64()),
    ("facts", pa.list_(pa.struct({"part": pa.string(), "d": pa.int64(), "present": pa.int64()}))),
])  # fmt: skip
