"""embed: the frozen parts of the items' vectors that are dear to compute, once a catalogue.

The items, by ascending id, are cut into shards, and a shard goes to one actor of a pool: rows whose text, or picture's
name, and encoder are those of the last table are copied from it, the others are encoded. The graph part is one
decomposition of the whole graph, in one task. A shard that is there already is left alone, so that a job that was cut
off does the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec import config, schema, storage
from llmrec.engine import watch
from llmrec.engine.embed_pool import EncoderActor, Job, Unit
from llmrec.engine.prompts import own_columns, told
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.ranker.card import model_revision
from llmrec.ranker.graph import spectral_embedding
from llmrec.ranker.templates import fill
from llmrec.schema import ITEM
from llmrec.tables import buckets, embeddings
from llmrec.tables.embeddings import GRAPH, IMAGE, IMAGE_MARK, IMAGE_PROBLEM, MARK, TEXT, Description, Shard

GRAPH_CPUS = 1


@dataclass(frozen=True)
class Embedded:
    """What embed did. encoded, images_encoded: texts and pictures that an encoder read; unchanged, images_unchanged:
    items whose vector was there before; images_unreadable: pictures that could not be read; with_part: items that have
    each part; dimensions: of each part; shards_written: those that were not there; texts_per_second,
    images_per_second: of all actors while they encode. table: None where there is nothing to embed.
    """

    items: int
    encoded: int
    unchanged: int
    images_encoded: int
    images_unchanged: int
    images_unreadable: int
    with_part: dict[str, int]
    dimensions: dict[str, int]
    shards: int
    shards_written: int
    texts_per_second: float | None
    images_per_second: float | None
    encoder: str
    revision: str
    image_encoder: str
    version: str
    table: str | None


def wanted(settings: config.Config) -> bool:
    """Whether there is a part to compute."""
    parts = (settings.items.encoder, settings.items.images, settings.data.edges)
    of_items = settings.model.items == "token" and any(parts)
    compared = bool(settings.recall.by_text) or settings.rerank.by_text
    return of_items or (compared and bool(settings.items.encoder))


def embed(settings: config.Config, layout: Layout, say: Callable[[str], None]) -> Embedded:
    """Write the table of embeddings, or nothing if no item needs one.

    Raises:
        UserError: an encoder cannot be loaded, the template or items.images names an unknown column, more pictures
            than items.max_bad_images cannot be read, or nothing moves for cluster.no_progress_seconds.
    """
    if not wanted(settings):
        return _nothing(settings, layout, say)
    items, table = settings.items, layout.embeddings
    prompt = settings.prompt if items.encoder else settings.prompt.model_copy(update={"item": ""})
    catalogue = _catalogue(layout, prompt, items.images)
    ids = catalogue[ITEM].combine_chunks()
    # A wrong name is told before actors start.
    revision, image_revision = model_revision(items.encoder), model_revision(items.image_encoder)
    there = {uri for uri, _ in storage.list_files(table, ".arrow")}
    before = embeddings.describe(table)
    if before is not None and not {storage.join(table, shard.path) for shard in before.shards} <= there:
        before = None  # somebody has deleted some of it
    graph, graph_mark, graph_of = _graph(settings, layout, ids, before, say)
    copied = _parts_to_copy(before, revision, items.max_tokens, image_revision, graph_of)

    shards, units = [], []
    for number, start in enumerate(range(0, len(ids), items.shard)):
        rows = _rows(catalogue.slice(start, items.shard), settings, revision, image_revision)
        shard = _shard(number, rows, graph_mark)
        shards.append(shard)
        if storage.join(table, shard.path) not in there:
            here = None if graph is None else _put(graph[start : start + items.shard])
            units.append(Unit(shard, _put(rows), here, _earlier(before, shard, table) if copied else [], copied))
    del catalogue
    say(f"{len(ids):,} items in {len(shards)} shards, {len(shards) - len(units)} of them there already")
    done = _run(Job(items, table), units, settings.cluster.no_progress_seconds, say) if units else []
    dimensions, shards = _facts(table, shards, done, before)
    unreadable = sum(shard.unreadable for shard in shards)
    with_part = {part: sum(shard.present[part] for shard in shards) for part in dimensions}
    images = unreadable + with_part.get(IMAGE, 0)
    if unreadable > items.max_bad_images * images:
        raise UserError(_too_many(unreadable, images, done, table, items))
    version = embeddings.version_of(shards, revision, items.max_tokens, graph_mark, image_revision)
    embeddings.publish(
        table,
        Description(
            version, items.encoder, revision, items.max_tokens, graph_mark, graph_of, dimensions, len(ids), shards,
            items.image_encoder, image_revision,
        ),
    )  # fmt: skip
    encoded, images_encoded = (sum(row[what] for row in done) for what in ("encoded", "images_encoded"))

    def rate(count: int, seconds: str) -> float | None:
        return count / sum(row[seconds] for row in done) * _actors(items, len(units)) if count else None

    return Embedded(
        items=len(ids),
        encoded=encoded,
        unchanged=len(ids) - encoded if items.encoder else 0,
        images_encoded=images_encoded,
        images_unchanged=with_part.get(IMAGE, 0) - images_encoded,
        images_unreadable=unreadable,
        with_part=with_part,
        dimensions=dimensions,
        shards=len(shards),
        shards_written=len(units),
        texts_per_second=rate(encoded, "seconds"),
        images_per_second=rate(images_encoded, "images_seconds"),
        encoder=items.encoder,
        revision=revision,
        image_encoder=items.image_encoder,
        version=version,
        table=table,
    )


def _nothing(settings: config.Config, layout: Layout, say: Callable[[str], None]) -> Embedded:
    if settings.model.items == "token":
        say("items.encoder, items.images and data.edges are empty: there is nothing to embed")
        storage.delete(layout.embeddings)  # or a part that nobody asks for would still be found
    else:
        say("model.items = text: items are read as text, there is nothing to embed")
    return Embedded(0, 0, 0, 0, 0, 0, {}, {}, 0, 0, None, None, "", "", "", "", None)


def _catalogue(layout: Layout, prompt: config.Prompt, images: str = "") -> pa.Table:
    """The ids, ascending, the columns that the template of items names, those that other tables tell included, and the
    one of pictures."""
    found = buckets.schema_of(layout.items)
    if images:
        schema.require(found, {images: "text"}, "items, items.images")
    columns = list(dict.fromkeys((ITEM, *own_columns(prompt, layout), *((images,) if images else ()))))
    items = told(buckets.read_parquet(layout.items, columns), prompt, layout)
    return items.take(pa.compute.sort_indices(items, sort_keys=[(ITEM, "ascending")])).combine_chunks()


def _rows(items: pa.Table, settings: config.Config, revision: str, image_revision: str = "") -> pa.Table:
    """item_id, mark and, with an encoder, the text of some items; without one a mark is 0. With pictures their marks
    and where they lie, too, null for none."""
    rows = {ITEM: items[ITEM], MARK: np.zeros(items.num_rows, np.uint64)}
    if settings.items.encoder:
        texts = fill(settings.prompt.item, items, "item")
        marks = embeddings.marks(texts, revision, settings.items.max_tokens)
        rows |= {MARK: marks, TEXT: pa.array(texts, pa.large_string())}
    if settings.items.images:
        uris = _uris(items[settings.items.images].to_pylist(), settings.items.image_root)
        marks = embeddings.image_marks(uris, image_revision)
        rows |= {IMAGE_MARK: marks, IMAGE: pa.array(uris, pa.large_string())}
    return pa.table(rows)


def _uris(names: list[str | None], root: str) -> list[str | None]:
    """Where pictures lie, for actors in other directories; null for a name that is missing or blank."""
    root = storage.absolute(root) if root else ""
    there = [name and name.strip() for name in names]
    return [_uri(name, root) if name else None for name in there]


def _uri(name: str, root: str) -> str:
    """A name that can lie nowhere stays as it is: who is to read it says what is wrong."""
    if root and (joined := storage.under(root, name)) != name:
        return joined
    try:
        return storage.absolute(name)
    except UserError:
        return name


def _shard(number: int, rows: pa.Table, graph: str) -> Shard:
    ids = rows[ITEM].combine_chunks()
    images = rows[IMAGE_MARK].to_numpy() if IMAGE_MARK in rows.column_names else None
    path = embeddings.shard_path(number, ids, rows[MARK].to_numpy(), graph, images)
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


def _parts_to_copy(
    before: Description | None, revision: str, max_tokens: int, image_revision: str, graph_of: str
) -> tuple[str, ...]:
    """Parts of which the table of before may have rows that are still right."""
    if before is None:
        return ()
    same = {
        TEXT: (before.revision, before.max_tokens) == (revision, max_tokens) and revision != "",
        IMAGE: before.image_revision == image_revision != "",
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


def _run(job: Job, units: Sequence[Unit], limit: float, say: Callable[[str], None]) -> list[dict[str, Any]]:
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

    def line(shards: int, encoded: int) -> str:
        ready = f"{encoded:,} texts and pictures encoded" if encoded or shards else "actors get ready"
        return f"{shards} of {len(units)} shards, {ready}"

    return watch.collected(done.iter_rows(), pulse, limit, "items.actors", say, line)


def _too_many(unreadable: int, images: int, done: list[dict[str, Any]], table: str, items: config.Items) -> str:
    first = next((row["problem"] for row in done if row["problem"]), None)
    where = f"the first: {first}" if first else f"see the column {IMAGE_PROBLEM} of {table}"
    return (
        f"items.images: {unreadable} of {images} pictures cannot be read, more than items.max_bad_images = "
        f"{items.max_bad_images:g} allows; {where}"
    )


def _facts(
    table: str, shards: Sequence[Shard], done: list[dict[str, Any]], before: Description | None
) -> tuple[dict[str, int], list[Shard]]:
    """Dimensions of each part, and the shards with what is in them, read only where a job was cut off after it wrote
    one."""
    found = {
        row["path"]: ({f["part"]: (f["d"], f["present"]) for f in row["facts"]}, row["unreadable"]) for row in done
    }
    if before is not None:
        for shard in before.shards:
            there = {part: (d, shard.present[part]) for part, d in before.dimensions.items()}
            found.setdefault(shard.path, (there, shard.unreadable))
    for shard in shards:
        if shard.path not in found:
            rows = embeddings.read_shard(storage.join(table, shard.path))
            found[shard.path] = embeddings.facts(rows), embeddings.unreadable(rows)
    full = [
        replace(s, present={part: n for part, (_, n) in found[s.path][0].items()}, unreadable=found[s.path][1])
        for s in shards
    ]
    return {part: d for part, (d, _) in found[shards[0].path][0].items()}, full
