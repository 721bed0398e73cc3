"""Item-item and popularity on MovieLens-100k against figures that were computed elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from llmrec import assets
from llmrec.config import Data
from llmrec.data import movielens as source
from llmrec.data.split import split_events
from llmrec.evaluation.metrics import per_user
from llmrec.ranker.ragged import Ragged
from llmrec.recall import item_item
from llmrec.recall.candidates import most_popular, top
from llmrec.tables.histories import item_rows

pytestmark = pytest.mark.skipif(
    not assets.location("ml-100k").is_dir(), reason="ml-100k is not in the cache (llmrec assets get ml-100k)"
)


@pytest.fixture(scope="module")
def tables() -> dict[str, pa.Table]:
    return source.tables(assets.location("ml-100k"))


@pytest.fixture(scope="module")
def held_out(tables: dict[str, pa.Table]) -> tuple[Ragged, np.ndarray, int]:
    """Histories and targets as item rows, and the number of items."""
    log = pl.from_arrow(tables["interactions"])
    assert isinstance(log, pl.DataFrame)
    events = (
        log.select("user_id", "item_id", "timestamp").with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    )
    found = split_events(events, Data(), None, pa.int64(), pa.int64())
    assert found.set_aside.is_empty()
    ids = tables["items"]["item_id"].combine_chunks().sort()
    return item_rows(found.histories["item_ids"], ids), item_rows(found.targets["item_ids"], ids).values, len(ids)


def quality(found: Ragged, wanted: np.ndarray) -> tuple[float, float]:
    truth = {str(u): [str(item)] for u, item in enumerate(wanted)}
    values = per_user(truth, {str(u): [str(i) for i in found[u]] for u in range(len(found))}, [10])
    return float(values["ndcg@10"].mean()), float(values["recall@10"].mean())


def test_tables(tables: dict[str, pa.Table]) -> None:
    assert {name: t.shape for name, t in tables.items()} == {
        "items": (1682, 4), "interactions": (100_000, 4), "users": (943, 4),
    }  # fmt: skip
    assert tables["interactions"].slice(0, 1).to_pylist() == [
        {"user_id": 196, "item_id": 242, "timestamp": 881250949, "value": 3.0}
    ]
    items: dict[Any, Any] = {row["item_id"]: row for row in tables["items"].to_pylist()}
    assert (items[1]["title"], items[1]["year"]) == ("Toy Story", 1995)
    assert len(items) == 1682 and None not in {row["title"] for row in items.values()}
    assert set(tables["users"]["gender"].to_pylist()) == {"male", "female"}
    assert tables["users"].schema.field("user_id").type == pa.int64()


def test_item_item_reaches_the_published_figure(held_out: tuple[Ragged, np.ndarray, int]) -> None:
    histories, wanted, n_items = held_out
    similar = item_item.neighbours(item_item.cooccurrence(histories, n_items), 200, 10.0)
    found = top(item_item.score(histories, similar, 0.85), histories, 10)
    ndcg, recall = quality(found.items, wanted)
    assert ndcg == pytest.approx(0.0996, abs=0.0005)
    assert recall == pytest.approx(0.184, abs=1 / len(wanted))


def test_popularity_reaches_the_published_figure(held_out: tuple[Ragged, np.ndarray, int]) -> None:
    histories, wanted, n_items = held_out
    popularity = item_item.cooccurrence(histories, n_items).diagonal().astype(np.float32)
    found = most_popular(popularity, len(histories), histories, 10)
    assert quality(found.items, wanted)[0] == pytest.approx(0.0443, abs=0.001)
