"""What evaluate knows of the catalogue and asks of users' attributes before it looks at a ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute
from scipy import sparse

from llmrec import config, schema
from llmrec.engine.counts import training_events
from llmrec.errors import StoreError, UserError
from llmrec.evaluation import beyond, segments
from llmrec.evaluation.segments import Grouping
from llmrec.fusion.rerank import Rerank
from llmrec.layout import Layout
from llmrec.ranker.item_features import read_features
from llmrec.schema import ITEM
from llmrec.tables import buckets
from llmrec.tables.histories import flatten
from llmrec.tables.requests import Rules

HISTORY, EVENTS, POPULARITY = "history_length", "item_events", "popularity"
OF_USERS, OF_ITEMS = "users.", "items."


@dataclass(frozen=True)
class Catalogue:
    """n items.

    ids: arrow[n], ascending; texts: string[n], the same as text; facts: float64[n, 3] of `beyond.item_facts`; true:
    what true items are grouped by; shown: groups whose share of what is shown is measured; categories: float32[n,
    values] of `beyond.unit_categories`, None where diversity goes by the items' text vectors; rules: which candidates
    the run scored; rerank: how the run's
    lists were chosen, without the texts' vectors, None where they are the best candidates; bonus: float32[n], what was
    added to scores, None for nothing.
    """

    ids: pa.Array
    texts: pa.Array
    facts: np.ndarray
    true: tuple[Grouping, ...]
    shown: tuple[Grouping, ...]
    categories: sparse.csr_matrix | None
    rules: Rules
    rerank: Rerank | None = None
    bonus: np.ndarray | None = None


def catalogue(settings: config.Evaluate, separator: str, rules: Rules, layout: Layout) -> Catalogue:
    """
    separator: parts joined texts (items.separator); rules: which candidates were scored.

    Raises:
        UserError: a column is not there, or can neither be put in bins nor in groups.
    """
    ids = rules.ids
    events, users = training_events(layout.histories, ids)
    table = buckets.read_parquet(layout.popularity)
    place = pa.compute.index_in(ids, table[ITEM].combine_chunks())
    had = table[schema.USERS].combine_chunks().take(place).fill_null(0).to_numpy(zero_copy_only=False)
    columns = _named(settings.segments, OF_ITEMS)
    wanted = list(dict.fromkeys((*columns, *settings.diversity_by)))
    _check_columns(buckets.schema_of(layout.items), wanted, layout.items)
    items = buckets.read_parquet(layout.items, [ITEM, *wanted])
    items = items.take(pa.compute.index_in(ids, items[ITEM].combine_chunks()))
    of_columns = tuple(_grouped(items, name, settings, separator) for name in columns)
    return Catalogue(
        ids=ids,
        texts=ids.cast(pa.string()),
        facts=beyond.item_facts(had, users),
        true=((segments.by_counts(EVENTS, events),) if EVENTS in settings.segments else ()) + of_columns,
        shown=(segments.by_popularity(POPULARITY, had), *of_columns),
        categories=beyond.unit_categories([_texts(items, name, separator) for name in settings.diversity_by])
        if settings.diversity_by else None,
        rules=rules,
    )  # fmt: skip


def attributes(settings: config.Evaluate, layout: Layout) -> tuple[str, ...]:
    """The columns of the users table that segments name.

    Raises:
        UserError: there is no users table, or a column is not there or can neither be put in bins nor in groups.
    """
    columns = _named(settings.segments, OF_USERS)
    if columns:
        try:
            uri = next(iter(buckets.bucket_files(layout.users).values()))
        except StoreError:
            raise
        except UserError:
            raise UserError(
                f"evaluate.segments names '{OF_USERS}{columns[0]}', but there are no users' attributes in "
                f"{layout.users}; set data.users and run jobs/prepare.py again"
            ) from None
        found = buckets.schema_of(uri)
        _check_columns(found, columns, layout.users)
        for name in columns:
            if pa.types.is_nested(found.field(name).type):
                raise _of_no_use(layout.users, name, found.field(name).type)
    return tuple(columns)


def of_attribute(name: str, values: pa.ChunkedArray, settings: config.Evaluate) -> Grouping:
    """Users by a column of theirs."""
    by = OF_USERS + name
    if is_number(values.type):
        return segments.by_numbers(by, _numbers(values), settings.bins, settings.edges.get(by, ()))
    return segments.by_texts(by, values.combine_chunks(), settings.groups)


def _grouped(items: pa.Table, name: str, settings: config.Evaluate, separator: str) -> Grouping:
    by = OF_ITEMS + name
    if is_number(items[name].type):
        return segments.by_numbers(by, _numbers(items[name]), settings.bins, settings.edges.get(by, ()))
    texts, offsets = flatten(_texts(items, name, separator))
    return segments.by_texts(by, texts, settings.groups, np.diff(offsets))


def _texts(items: pa.Table, name: str, separator: str) -> pa.Array:
    wanted = config.Items(categories=(name,), separator=separator)
    return read_features(items[ITEM].combine_chunks(), items, wanted, {}, {}).categories[name]


def _numbers(values: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(values.cast(pa.float64()).fill_null(np.nan).to_numpy())


def _named(names: Sequence[str], prefix: str) -> list[str]:
    return list(dict.fromkeys(name.removeprefix(prefix) for name in names if name.startswith(prefix)))


def _check_columns(found: pa.Schema, names: Sequence[str], table: str) -> None:
    schema.require(found, dict.fromkeys(names, "anything"), table)
    for name in names:
        kind = found.field(name).type
        if not (is_number(kind) or _is_text(kind) or (pa.types.is_list(kind) and _is_text(kind.value_type))):
            raise _of_no_use(table, name, kind)


def _of_no_use(table: str, name: str, kind: pa.DataType) -> UserError:
    return UserError(
        f"{table}: column '{name}' has type {kind}; evaluate.segments takes numbers, texts and, of items, lists of "
        "texts, and evaluate.diversity_by texts and lists of texts"
    )


def is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        or pa.types.is_boolean(kind) or pa.types.is_null(kind)
    )  # fmt: skip
