"""Freshness by hand; what the settings of rerank make of an items table, and what they refuse."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llmrec import config
from llmrec.engine import rerank
from llmrec.errors import UserError
from llmrec.fusion import rules
from llmrec.fusion.diversity import Categories
from llmrec.layout import Layout
from llmrec.tables import buckets, embeddings
from llmrec.tables.embeddings import Description, Shard

DAY = 86_400
IDS = pa.array(["a", "b", "c", "d"])
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Items in no order, and two buckets of histories of which the newest event is at ten days."""
    found = Layout(str(tmp_path))
    items = pa.table({
        "item_id": ["c", "a", "d", "b"], "title": ["C", "A", "D", "B"],
        "genres": ["Action|Drama", "Drama | Comedy", None, "Action|Action"], "brand": ["x", "x", "y", ""],
        "tags": pa.array([["t"], ["t", "u"], [], None]), "year": [1999, 1999, 2001, 2001],
        "born": [10 * DAY, 7 * DAY, None, 12 * DAY], "made": pa.array([NOON] * 4, pa.timestamp("us", "UTC")),
        "where": [{"x": 1}] * 4,
    })  # fmt: skip
    buckets.write_parquet(items, found.items)
    for bucket, at in enumerate(([[DAY, 9 * DAY], []], [[10 * DAY], [3]])):
        table = pa.table({"user_id": [2 * bucket, 2 * bucket + 1], "timestamps": pa.array(at, pa.list_(pa.int64()))})
        buckets.write_parquet(table, buckets.bucket_file(found.histories, bucket))
    return found


def made(layout: Layout, **settings: Any) -> rerank.OfItems:
    return rerank.of_items(config.build({"root": layout.root, "rerank": settings}).reranking, layout, IDS)


def test_an_item_counts_half_after_a_half_life() -> None:
    times = np.asarray([100.0, 93.0, 86.0, np.nan, 120.0]) * DAY
    factor = np.exp(rules.freshness(times, 100.0 * DAY, 7.0).astype(float))
    np.testing.assert_allclose(factor, [1, 0.5, 0.25, 1, 1], rtol=1e-6)


def test_ages_count_from_the_newest_event(layout: Layout) -> None:
    found = made(layout, freshness={"column": "born", "half_life_days": 3}).bonus
    assert found is not None
    np.testing.assert_allclose(np.exp(found), [0.5, 1, 1, 1], rtol=1e-6)
    found = made(layout, freshness={"column": "born", "half_life_days": 2, "reference": 14 * DAY}).bonus
    assert found is not None
    np.testing.assert_allclose(np.exp(found), [2**-3.5, 2**-1, 2**-2, 1], rtol=1e-6)


def test_timestamps_are_times(layout: Layout) -> None:
    reference = int(NOON.timestamp()) + 5 * DAY
    found = made(layout, freshness={"column": "made", "half_life_days": 5, "reference": reference}).bonus
    assert found is not None
    np.testing.assert_allclose(np.exp(found), [0.5] * 4, rtol=1e-6)


def test_the_largest_number_is_told_with_and_without_a_footers_statistics(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    for values, wanted in (([[3, 7], [], None, [5]], 7), ([[], None], None), ([], None)):
        table = pa.table({"user_id": range(len(values)), "at": pa.array(values, pa.list_(pa.int64()))})
        for statistics in (True, False):
            uri = str(tmp_path / f"{statistics}.parquet")
            pq.write_table(table, uri, write_statistics=statistics, row_group_size=1)
            assert buckets.largest(uri, "at") == wanted


def test_nothing_is_read_for_what_is_off(layout: Layout) -> None:
    found = made(layout)
    assert (found.bonus, found.rerank, found.columns, found.vectors) == (None, None, [], None)
    assert made(layout, method="mmr", trade=0.0).rerank is None


def test_values_are_texts_lists_and_joined_texts(layout: Layout) -> None:
    found = made(layout, quotas={"genres": 2, "tags": 1, "year": 3})
    assert found.rerank is not None and found.rerank.method is None and found.rerank.alike is None
    genres, tags, year = (quota.of for quota in found.rerank.quotas)
    assert [quota.most for quota in found.rerank.quotas] == [2, 1, 3]

    def shares(of: Any) -> list[list[int]]:
        """How many values each item has in common with each."""
        return [[len(set(of[i].tolist()) & set(of[j].tolist())) for j in range(4)] for i in range(4)]

    # a: Drama, Comedy; b: Action; c: Action, Drama; d: none.
    assert shares(genres) == [[2, 0, 1, 0], [0, 1, 1, 0], [1, 1, 2, 0], [0, 0, 0, 0]]
    assert shares(tags) == [[2, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert shares(year) == [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]


def test_values_of_two_columns_are_not_the_same(layout: Layout) -> None:
    found = made(layout, method="mmr", by=("brand", "tags"))
    assert found.rerank is not None
    alike = found.rerank.alike
    assert isinstance(alike, Categories)
    # a: x of brand, t and u of tags; b: none; c: x, t; d: y.
    assert alike.of.lengths.tolist() == [3, 0, 2, 1]
    np.testing.assert_allclose(alike.among(np.asarray([[0, 1, 2, 3]]))(np.asarray([2])), [[2 / 3, 0, 1, 0]])


def test_texts_are_compared_by_the_vectors_that_embed_left(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))
    vectors = np.asarray([[1, 0], [0.6, 0.8], [0, 0], [0, 1]], np.float32)
    table = pa.table({
        "item_id": IDS, embeddings.MARK: pa.array([1, 2, 3, 4], pa.uint64()),
        embeddings.TEXT: embeddings.as_column(vectors),
    })  # fmt: skip
    shard = Shard("shard-00000-0.arrow", 4, "a", "d", {embeddings.TEXT: 3})
    embeddings.write_shard(table, f"{layout.embeddings}/{shard.path}")
    embeddings.publish(layout.embeddings, Description("v", "enc", "r", 96, "", "", {embeddings.TEXT: 2}, 4, [shard]))
    asked = config.build({"root": layout.root, "rerank": {"method": "mmr", "quotas": {"brand": 1}}}).reranking
    found = rerank.of_items(asked, layout, IDS)
    assert found.vectors is not None and len(found.columns) == 1
    assert found.rerank is not None and found.rerank.alike is None, "vectors travel with the rules"
    how = rerank.ready(found.rerank, asked, layout, IDS)
    assert how is not None and how.alike is not None and (how.method, how.trade, how.window) == ("mmr", 0.3, 50)
    to = how.alike.among(np.asarray([[0, 1, 2, 3]]))
    np.testing.assert_allclose(to(np.asarray([1])), [[0.6, 1, 0, 0.8]], rtol=1e-6)
    with pytest.raises(UserError, match="has no text vectors of the items"):
        rerank.of_items(asked, layout, pa.array(["a", "b", "c", "e"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quotas": {"colour": 1}}, "column 'colour' is missing (it has: item_id, title, genres"),
        ({"method": "mmr", "by": ("genres", "shape")}, "column 'shape' is missing"),
        ({"quotas": {"where": 1}}, "column 'where' is struct<x: int64>; rerank takes texts or lists of texts"),
        ({"method": "dpp"}, "rerank: {root}/tables/embeddings has no text vectors of the items"),
        ({"freshness": {"column": "age"}}, "column 'age' is missing"),
        ({"freshness": {"column": "title"}}, "column 'title' has type string, which is no time"),
    ],
)  # fmt: skip
def test_what_items_lack_is_named(layout: Layout, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        made(layout, **settings)
    told = str(caught.value)
    assert message.replace("{root}", layout.root) in told and "\n" not in told


def test_ages_need_an_event_or_a_reference(layout: Layout) -> None:
    for bucket in range(2):
        table = pa.table({"user_id": [bucket], "timestamps": pa.array([[]], pa.list_(pa.int64()))})
        buckets.write_parquet(table, buckets.bucket_file(layout.histories, bucket))
    with pytest.raises(UserError, match=r"no event .* set rerank\.freshness\.reference"):
        made(layout, freshness={"column": "born"})
