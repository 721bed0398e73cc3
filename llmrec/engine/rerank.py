"""What the settings of rerank make of the catalogue, once a run, and what of it is mapped where lists are chosen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec import config, schema, storage
from llmrec.engine.text_vectors import text_vectors
from llmrec.errors import UserError
from llmrec.fusion import rules
from llmrec.fusion.diversity import Categories, Vectors
from llmrec.fusion.rerank import Floor, Quota, Rerank
from llmrec.layout import Layout
from llmrec.ranker.item_features import texts
from llmrec.schema import ITEM, TIMESTAMPS
from llmrec.tables import buckets

SETTING = "rerank"


@dataclass(frozen=True)
class OfItems:
    """bonus: float32[n_items], the logarithm of what an item's probability is multiplied by for its age, None where
    that does not count; rerank: None where lists are the best candidates, without the texts' vectors else; columns:
    list<string>[n_items] each, that it reads of items; vectors: float32[n_items, d], mapped, None where it takes none.
    """

    bonus: np.ndarray | None
    rerank: Rerank | None
    columns: list[pa.Array]
    vectors: np.ndarray | None


def of_items(settings: config.Rerank, layout: Layout, ids: pa.Array) -> OfItems:
    """settings: as `Config.reranking` gives them; ids: of the catalogue, ascending.

    Raises:
        UserError: a column is missing or of another type, or there are no vectors of the items' texts.
    """
    bonus = _freshness(settings.freshness, layout, ids) if settings.freshness.column else None
    if not settings.chooses:
        return OfItems(bonus, None, [], None)
    by = settings.by if settings.compares else ()
    assert settings.separator is not None
    columns = _columns({*by, *settings.quotas, *settings.least}, settings.separator, layout, ids)
    rerank = Rerank(
        settings.window,
        settings.method if settings.compares else None,
        settings.trade,
        Categories(rules.coded([columns[name] for name in by])) if by else None,
        tuple(Quota(rules.coded([columns[name]]), most) for name, most in sorted(settings.quotas.items())),
        tuple(
            floor(columns[name], name, value, share, layout)
            for name, of in sorted(settings.least.items()) for value, share in sorted(of.items())
        ),
    )  # fmt: skip
    vectors = text_vectors(layout, ids, SETTING) if settings.by_text else None
    return OfItems(bonus, rerank, [columns[name] for name in sorted(columns)], vectors)


def floor(column: pa.Array, name: str, value: str, share: float, layout: Layout) -> Floor:
    """column: list<string>[n_items].

    Raises:
        UserError: no item has the value.
    """
    items = rules.having(column, value)
    if not items.any():
        raise UserError(f"{layout.items}: no item has '{value}' in column '{name}', which rerank.least names")
    return Floor(items, share)


def ready(rerank: Rerank | None, settings: config.Rerank, layout: Layout, ids: pa.Array) -> Rerank | None:
    """With the vectors of the items' texts, if it compares by them: mapped here, since they do not travel."""
    if rerank is None or not settings.by_text:
        return rerank
    return replace(rerank, alike=Vectors(text_vectors(layout, ids, SETTING)))


def _columns(names: Iterable[str], separator: str, layout: Layout, ids: pa.Array) -> dict[str, pa.Array]:
    """list<string>[n_items] of each column, by item id."""
    items = _read(dict.fromkeys(sorted(names), "anything"), layout, ids)
    return {name: texts(items[name], name, separator, SETTING) for name in sorted(names)}


def _freshness(settings: config.Freshness, layout: Layout, ids: pa.Array) -> np.ndarray:
    times = _read({settings.column: "time"}, layout, ids)[settings.column]
    if pa.types.is_timestamp(times.type):
        times = times.cast(pa.timestamp("s"), safe=False).cast(pa.int64())
    seconds = times.cast(pa.float64()).to_numpy()
    reference = settings.reference if settings.reference is not None else _newest_event(layout)
    return rules.freshness(np.where(np.isfinite(seconds), seconds, np.nan), reference, settings.half_life_days)


def _newest_event(layout: Layout) -> int:
    files = buckets.bucket_files(layout.histories).values()
    found = [at for at in storage.each(lambda uri: buckets.largest(uri, TIMESTAMPS), files) if at is not None]
    if not found:
        raise UserError(
            f"{layout.histories}: no event from whose time items' ages could count; set rerank.freshness.reference"
        )
    return max(found)


def _read(wanted: dict[str, str], layout: Layout, ids: pa.Array) -> pa.Table:
    """Columns of the items, in the order of their ids. wanted: see `schema.require`."""
    if not wanted:
        return pa.table({})
    schema.require(buckets.schema_of(layout.items), wanted, layout.items)
    items = buckets.read_parquet(layout.items, list(dict.fromkeys([ITEM, *wanted])))
    return items.take(pa.compute.index_in(ids, items[ITEM].combine_chunks()))
