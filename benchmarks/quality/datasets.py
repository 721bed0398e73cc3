"""Data sets as a catalogue and one history a user, oldest event first."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from benchmarks.quality.settings import CONTEXTS, NOISY
from llmrec import assets
from llmrec.data import context, movielens
from llmrec.errors import UserError
from llmrec.ranker.ragged import Ragged, offsets_of
from llmrec.schema import HEAD, ITEM, RELATION, TAIL, TIMESTAMP, USER
from llmrec.tables.catalogue import rows_of

MOVIELENS = "ml-100k"
ORDER, LINE = "order", "line"
EDGES_FILE = "kg.parquet"
MIN_EVENTS = 3  # one to score from, one to validate on, one to test on


@dataclass(frozen=True)
class Dataset:
    """items: item_id ascending, a row's place is the item's number; all columns that the source has. users: arrow[n]
    of ids. histories: items per user, oldest first, none twice. digest: changes with any of these. edges: head,
    relation and tail of a knowledge graph, if the source has one. contexts: columns of texts, a row an event of
    `histories`, as `settings.CONTEXTS` names them."""

    name: str
    items: pa.Table
    users: pa.Array
    histories: Ragged
    digest: str
    edges: pa.Table | None = None
    contexts: pa.Table | None = None


def read(source: str) -> Dataset:
    """The data set named by `source`: `ml-100k`, or a folder with interactions.parquet and items.parquet.

    `:5core` after either leaves out items and users with fewer than 5 events until none is left; `:noise10` after that
    puts random items in place of a tenth of each user's events, see `noisy`. Events are ordered by
    the column `order` within the user, else by `timestamp`; ties, or all where there is neither, by their place in the
    file.

    Raises:
        UserError: a folder, file or column that is missing, or an event of an item that the catalogue lacks.
    """
    match = re.fullmatch(r"(.*?)(?::(\d+)core)?(?::noise(\d+))?", source)
    assert match
    place, core, noise = match[1], int(match[2] or 0), int(match[3] or 0)
    if place == MOVIELENS:
        tables = movielens.tables(assets.fetch(MOVIELENS))
        items, events = (pl.DataFrame(tables[kind]) for kind in ("items", "interactions"))
    else:
        items, events = (_parquet(Path(place) / f"{kind}.parquet") for kind in ("items", "interactions"))
    name = Path(place).resolve().name + (f"-{core}core" if core else "")
    found, edges = of_tables(name, items, events, core, CONTEXTS.get(name, ())), Path(place) / EDGES_FILE
    if edges.is_file():
        table = pq.read_table(edges, columns=[HEAD, RELATION, TAIL])
        found = replace(found, edges=table, digest=_digested(found.digest, json.dumps(table.to_pydict(), default=str)))
    return noisy(found, noise) if noise else found


def noisy(dataset: Dataset, percent: int) -> Dataset:
    """With an item drawn at random, of those that the user never had, in place of each event with this probability, but
    for a user's last two, which are asked for."""
    rng, histories = np.random.default_rng(percent), dataset.histories
    values = histories.values.copy()
    for user in range(len(histories)):
        here = slice(histories.offsets[user], histories.offsets[user + 1] - 2)
        places = np.arange(here.start, here.stop)[rng.random(here.stop - here.start) < percent / 100]
        others = np.setdiff1d(np.arange(dataset.items.num_rows), histories[user])
        values[places] = rng.choice(others, min(len(places), len(others)), replace=False)[: len(places)]
    changed = Ragged(values, histories.offsets)
    return replace(
        dataset, name=f"{dataset.name}{NOISY}{percent}", histories=changed,
        digest=_digested(dataset.digest, changed.values.tobytes().hex()),
    )  # fmt: skip


def of_tables(
    name: str, items: pl.DataFrame, events: pl.DataFrame, core: int = 0, contexts: Sequence[str] = ()
) -> Dataset:
    """items: item_id and any other columns; events: user_id, item_id, contexts and what orders them, see `read`.

    An item that a user had before is no recommendation, so only his first event of it counts. Users with fewer than 3
    items are left out, and with `core` items without events, too.
    """
    for table, columns, what in ((items, [ITEM], "items"), (events, [USER, ITEM], "interactions")):
        for column in columns:
            if column not in table.columns:
                raise UserError(f"{name}: {what} have no column '{column}' (they have: {', '.join(table.columns)})")
            if table[column].null_count():
                raise UserError(f"{name}: {what} have rows without '{column}'; give each one or leave them out")
    if items[ITEM].is_duplicated().any():
        raise UserError(f"{name}: items have the same '{ITEM}' more than once; leave one row of each")
    by = next((c for c in (ORDER, TIMESTAMP) if c in events.columns and not events[c].null_count()), LINE)
    events = events.with_row_index(LINE).sort(USER, by, LINE).unique([USER, ITEM], keep="first", maintain_order=True)
    if core:
        events = in_core(events, core)
        items = items.filter(pl.col(ITEM).is_in(events[ITEM].unique().implode()))
    events = events.filter(pl.len().over(USER) >= MIN_EVENTS)
    if events.is_empty():
        raise UserError(f"{name}: no user has {MIN_EVENTS} items")
    catalogue = items.sort(ITEM).to_arrow()
    ids, users = (_ids(column) for column in (catalogue[ITEM], events[USER].unique(maintain_order=True).to_arrow()))
    catalogue = catalogue.set_column(catalogue.schema.get_field_index(ITEM), ITEM, ids)
    rows = rows_of(_ids(events[ITEM].to_arrow()), ids)
    if (rows < 0).any():
        raise UserError(f"{name}: item '{events[ITEM][int(np.argmin(rows))]}' has events but is not among the items")
    lengths = events.group_by(USER, maintain_order=True).len()["len"].to_numpy()
    histories = Ragged(rows.astype(np.int32), offsets_of(lengths))
    digest = _digest(catalogue, users, histories)
    if not contexts:
        return Dataset(name, catalogue, users, histories, digest)
    seconds = pl.Series([None] * len(events), dtype=pl.Int64)
    told = pl.DataFrame(context.values(events.to_arrow(), seconds, contexts, name)).to_arrow()
    told = told.rename_columns(list(contexts)).cast(pa.schema([(column, pa.string()) for column in contexts]))
    digest = _digested(digest, json.dumps(told.to_pylist()))
    return Dataset(name, catalogue, users, histories, digest, contexts=told)


def in_core(events: pl.DataFrame, count: int) -> pl.DataFrame:
    """The events of users and items that have at least `count` among them."""
    while True:
        left = events.filter((pl.len().over(USER) >= count) & (pl.len().over(ITEM) >= count))
        if left.height == events.height:
            return left
        events = left


def _parquet(file: Path) -> pl.DataFrame:
    if not file.is_file():
        raise UserError(f"data set '{file.parent}': there is no {file.name}; give a folder that has it, or {MOVIELENS}")
    return pl.read_parquet(file)


def _ids(column: Any) -> pa.Array:
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return column.cast(pa.int64() if pa.types.is_integer(column.type) else pa.string())


def _digested(digest: str, more: str) -> str:
    return str(xxhash.xxh3_128((digest + more).encode()).hexdigest())


def _digest(items: pa.Table, users: pa.Array, histories: Ragged) -> str:
    found = xxhash.xxh3_128(json.dumps([items.to_pylist(), users.to_pylist()], default=str).encode())
    found.update(histories.values.tobytes())
    found.update(histories.offsets.tobytes())
    return str(found.hexdigest())
