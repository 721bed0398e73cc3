"""A bucket's candidates from every source, with models as they come out of shared memory; no cluster."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llmrec import config, schema
from llmrec.engine import counts, recall_bucket, recall_models
from llmrec.engine.recall_bucket import recall_unit
from llmrec.engine.recall_models import Models
from llmrec.layout import Layout
from llmrec.ranker.graph import incidence
from llmrec.ranker.ragged import Ragged
from llmrec.recall import als, ease, item_item, popularity
from llmrec.recall.graph import Entities, entity_vectors
from llmrec.recall.neighbours import by_column, by_users, by_vectors
from llmrec.tables import buckets, queries
from llmrec.tables.embeddings import as_column

N, USERS, TOP = 40, 25, 6
SOURCES = ("segment", "recent", "item_item", "graph", "als", "ease", "text", "popularity")
RNG = np.random.default_rng(3)
# Item 38 is new: nobody had it. Items 39 and 37 are not in the graph. The last two users have no history.
PAST = [RNG.permutation(N - 2)[: RNG.integers(1, 9)].tolist() for _ in range(USERS - 2)] + [[], []]
IDS = pa.array([f"i{i:02}" for i in range(N)])
VECTORS = RNG.standard_normal((N, 4)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
VECTORS[5] = 0


def settings(merge: tuple[str, ...] = SOURCES, **more: Any) -> config.Recall:
    tops = {name: {"top": TOP} for name in SOURCES}
    tops["segment"] |= {"columns": ["job"], "prior": 2}
    tops["als"] |= {"factors": 4, "iterations": 2}
    return config.Recall(**tops | {"merge": merge, "candidates": 15, "closeness": {"weight": 0.5}} | more)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(str(tmp_path))
    table = pa.table(
        [
            [f"u{u:02}" for u in range(USERS)],
            [[f"i{i:02}" for i in past] for past in PAST],
            [[86_400 * (u + k) for k in range(len(past))] for u, past in enumerate(PAST)],
            [len(past) for past in PAST],
        ],
        schema=schema.histories(pa.string(), pa.string()),
    )
    buckets.write_parquet(table, buckets.bucket_file(found.histories, 0))
    people = pa.table({"user_id": [f"u{u:02}" for u in range(0, USERS, 2)], "job": ["x", "y", None, "z"] * 3 + ["x"]})
    buckets.write_parquet(people, buckets.bucket_file(found.users, 0))
    return found


def models(layout: Layout) -> Models:
    histories = Ragged.of(PAST)
    x = item_item.interaction_matrix(histories, N)
    xt = x.T.tocsr()
    had = np.asarray(x.sum(axis=0)).ravel()
    rows = [(f"i{i:02}", "of", f"t{t}", 1.0) for i in range(N - 1) if i != 37 for t in {i % 5, i % 7}]
    edges = pa.table([list(column) for column in zip(*rows, strict=True)], schema=schema.edges(pa.string()))
    graph = incidence(edges, IDS)
    vectors = entity_vectors(graph, 100)
    times = np.concatenate([86_400 * (u + np.arange(len(past))) for u, past in enumerate(PAST)])
    users = pa.array([f"u{u:02}" for u in range(USERS)])
    keys = recall_models.keys_of(users, buckets.bucket_file(layout.users, 0), ("job",))
    known = np.flatnonzero(had > 1)
    return Models(
        IDS, had,
        recent=popularity.recent(histories, times, int(times.max()), 5.0, None, N).astype(np.float32),
        groups=popularity.grouped([popularity.group_counts(keys, histories, N)], had, USERS - 2),
        similar=by_column([by_users(xt, x, slice(0, N), 10, 1.0)], 20),
        linked=by_column([by_vectors(vectors, vectors.T.tocsr(), slice(0, N), 10)], 20),
        linear=(known, ease.weights(ease.counts(x, known), 5.0)),
        factors=als.item_factors(x, settings().als),
        entities=Entities.of(graph, 1.0),
    )  # fmt: skip


def out_of_shared_memory(found: Models) -> Models:
    """With arrays that cannot be written."""
    parts: list[pickle.PickleBuffer] = []
    data = pickle.dumps(found, protocol=5, buffer_callback=parts.append)
    copy: Models = pickle.loads(data, buffers=[bytes(part.raw()) for part in parts])  # noqa: S301 - our own bytes
    assert not copy.popularity.flags.writeable and not copy.similar.data.flags.writeable  # type: ignore[union-attr]
    return copy


def unit(layout: Layout) -> dict[str, Any]:
    return {
        "bucket": 0, "uri": buckets.bucket_file(layout.histories, 0), "users": buckets.bucket_file(layout.users, 0)
    }  # fmt: skip


@pytest.mark.parametrize("cells", [1, 1 << 24])
def test_every_source_lists_the_best_of_what_it_says(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, cells: int
) -> None:
    """However users are cut into blocks; seen items are left out, and lists and columns tell the same."""
    monkeypatch.setattr(recall_bucket, "CELLS_AT_ONCE", cells)
    monkeypatch.setattr(recall_bucket, "text_vectors", lambda layout, ids, setting: VECTORS)
    found = out_of_shared_memory(models(layout))
    told = recall_unit(unit(layout), found, settings(), layout).to_pylist()[0]
    assert (told["users"], told["none"]) == (USERS, 0)
    merged = buckets.read_parquet(buckets.bucket_file(layout.candidates(), 0)).to_pylist()
    labels = [source for row in merged for source in row["sources"]]
    assert told["brought"] == [labels.count(name) for name in SOURCES]
    for place, name in enumerate(SOURCES):
        rows = buckets.read_parquet(buckets.bucket_file(layout.candidates(name), 0)).to_pylist()
        assert told["counts"][place] == sum(len(row["item_ids"]) for row in rows) > 0
        for past, row, all_ in zip(PAST, rows, merged, strict=True):
            assert not {f"i{i:02}" for i in past} & set(row["item_ids"])
            best = list(zip(row["recall_scores"], row["item_ids"], strict=True))
            assert best == sorted(best, key=lambda pair: (-pair[0], pair[1]))
            column = dict(zip(all_["item_ids"], all_[f"recall_score_{name}"], strict=True))
            mine = dict(zip(row["item_ids"], row["recall_scores"], strict=True))
            for item in column.keys() & mine.keys():
                assert column[item] == pytest.approx(mine[item], rel=1e-4, abs=1e-6)
            # What the source does not list, though there is room or it is among the merged, it scores no higher.
            least = row["recall_scores"][-1] if len(mine) == TOP else -np.inf if name in ("als", "text", "ease") else 0
            others = [s for item, s in column.items() if item not in mine and s is not None]
            assert all(score <= least + 1e-4 for score in others)
    # Without a history a user still gets what all had, lately, and in his group.
    assert {s for row in merged[-2:] for s in row["sources"]} <= {"segment", "recent", "popularity"}
    assert all(len(row["item_ids"]) >= 6 for row in merged[-2:])
    assert all(row["recall_score_closeness"] == [None] * len(row["item_ids"]) for row in merged[-2:])
    near = [score for row in merged[:-2] for score in row["recall_score_closeness"]]
    assert min(s for s in near if s is not None) < -0.4 and max(s for s in near if s is not None) < 0
    # The new item is brought by its edges, and by its text, alone.
    brought = {
        name for name in SOURCES
        if any("i38" in one for one in buckets.read_parquet(layout.candidates(name))["item_ids"].to_pylist())
    }  # fmt: skip
    assert brought <= {"graph", "text", "als"} and "graph" in brought


def test_the_new_item_is_brought_to_the_users_nearest_to_it(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall_bucket, "text_vectors", lambda layout, ids, setting: VECTORS)
    wanted = settings(("new", "popularity"), new={"top": 1, "users": 3, "decay": 1.0}, quotas={"new": 1})
    unit_ = unit(layout) | {"buckets": 1}
    told = recall_unit(unit_, out_of_shared_memory(models(layout)), wanted, layout).to_pylist()[0]
    untaken = [i for i in range(N) if not any(i in past for past in PAST) and VECTORS[i].any()]
    assert 38 in untaken and told["counts"][0] == 3 * len(untaken)
    merged = buckets.read_parquet(buckets.bucket_file(layout.candidates(), 0)).to_pylist()
    near = [VECTORS[past].sum(axis=0) @ VECTORS[38] / np.linalg.norm(VECTORS[past].sum(axis=0)) for past in PAST[:-2]]
    got = {u for u, row in enumerate(merged) if "i38" in row["item_ids"]}
    if untaken == [38]:
        assert got == set(np.argsort(near)[-3:].tolist())
    for u in got:
        assert merged[u]["sources"][0] == "new" and merged[u]["item_ids"][0] == "i38"
        assert merged[u]["recall_score_new"][0] == pytest.approx(near[u], abs=1e-5)
    assert not got & {USERS - 2, USERS - 1}, "nothing is known of these"


def test_clusters_all_of_which_are_looked_in_find_what_exact_search_does(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And say so; what they read is made once a machine, anew when the vectors change."""
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(recall_bucket, "text_vectors", lambda layout, ids, setting: VECTORS)
    monkeypatch.setattr(recall_bucket, "described", lambda layout, setting: SimpleNamespace(version="texts"))
    found, versions = {}, []
    for method in ("exact", "clusters"):
        asked = settings(("als", "text"), search={"method": method, "probes": 1000, "checked": 7}, closeness={})
        for version in ("one", "one", "two"):
            known = dataclasses.replace(models(layout), factors_version=version)
            told = recall_unit(unit(layout), known, asked, layout).to_pylist()[0]
            versions.append({f.parent.name for f in tmp_path.rglob("als/*/index.faiss")})
        found[method] = buckets.read_parquet(buckets.bucket_file(layout.candidates(), 0)).to_pydict()
    assert found["exact"]["item_ids"] == found["clusters"]["item_ids"]
    assert {name: told[f"best_{name}"] for name in ("als", "text")} == {"als": 7 * TOP, "text": 7 * TOP}
    assert told["hit_als"] == told["best_als"] and told["hit_text"] == told["best_text"]
    assert versions[:3] == [set()] * 3 and versions[3] == versions[4] != versions[5]
    assert all(len(of) == 1 for of in versions[3:])


def test_what_users_typed_is_looked_for_in_clusters_without_another_source_that_is(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(recall_bucket, "text_vectors", lambda layout, ids, setting: VECTORS)
    monkeypatch.setattr(recall_bucket, "described", lambda layout, setting: SimpleNamespace(version="texts"))
    typed = VECTORS[RNG.permutation(N)[:USERS]] + np.float32(0.1)
    users = buckets.read_parquet(unit(layout)["uri"])["user_id"]
    queries.write(users, typed, buckets.bucket_file(layout.queries, 0))
    for method in ("exact", "clusters"):
        search = {"method": method, "probes": 1000, "checked": USERS}
        asked = settings(("query",), query={"top": TOP}, search=search, closeness={}, exclude_seen=False)
        told = recall_unit(unit(layout), models(layout), asked, layout).to_pylist()[0]
        found = buckets.read_parquet(buckets.bucket_file(layout.candidates(), 0))["item_ids"].to_pylist()
        best = np.argsort(-(typed @ VECTORS.T), axis=1, kind="stable")[:, :TOP]
        assert found == [[f"i{i:02}" for i in row] for row in best.tolist()], method
    assert told["hit_query"] == told["best_query"] == USERS * TOP


def test_item_item_says_by_further_decays_what_it_would_say_by_each_alone(layout: Layout) -> None:
    def columns(**item_item: Any) -> dict[str, Any]:
        asked = settings(("item_item", "popularity"), item_item={"top": TOP, **item_item}, closeness={})
        recall_unit(unit(layout), models(layout), asked, layout)
        return buckets.read_parquet(buckets.bucket_file(layout.candidates(), 0)).to_pydict()

    several = columns(decays=(0.3, 1.0))
    for decay in (0.3, 1.0):
        alone = columns(decay=decay)
        for user in range(USERS - 2):  # the last two have no history
            mine = dict(zip(several["item_ids"][user], several[f"recall_score_item_item_{decay:g}"][user], strict=True))
            own = dict(zip(alone["item_ids"][user], alone["recall_score_item_item"][user], strict=True))
            assert mine.keys() & own.keys()
            assert all(mine[i] == pytest.approx(own[i], rel=1e-5) for i in mine.keys() & own.keys())
    assert several["recall_score_item_item_0.3"] != several["recall_score_item_item_1"]
    with pytest.raises(ValueError, match=r"item_item\.decays are for a merge that names item_item"):
        config.Recall(merge=("popularity",), item_item=config.ItemItem(decays=(0.5,)))


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_items_that_require_others_take_no_places(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, exclude_seen: bool
) -> None:
    """Every source fills its places with what is open to a user: the best that it has without the rule, less what is
    locked. Users in blocks of one as all at once."""
    monkeypatch.setattr(recall_bucket, "text_vectors", lambda layout, ids, setting: VECTORS)
    needs = {i: RNG.choice(N, RNG.integers(1, 4), replace=False).tolist() for i in RNG.permutation(N)[:15].tolist()}
    requires = Ragged.of([needs.get(i, []) for i in range(N)])
    locked = [{f"i{i:02}" for i, of in needs.items() if not set(of) <= set(past)} for past in PAST]
    more: dict[str, dict[str, Any]] = {name: {} for name in SOURCES}
    more["segment"], more["als"] = {"columns": ["job"], "prior": 2}, {"factors": 4, "iterations": 2}
    new = {"top": 2, "users": 3, "max_events": 1}
    merge = (*SOURCES, "new")

    def lists(known: Models, top: int) -> tuple[dict[str, Any], dict[str, list[list[str]]]]:
        tops = {name: {"top": top} | of for name, of in more.items()}
        asked = settings(merge, **tops, new=new, exclude_seen=exclude_seen)
        told = recall_unit(unit(layout) | {"buckets": 1}, known, asked, layout).to_pylist()[0]
        names = (*merge, "merged")
        found = {name: buckets.read_parquet(buckets.bucket_file(layout.candidates(name), 0)) for name in names}
        return told, {name: table["item_ids"].to_pylist() for name, table in found.items()}

    free, ruled = models(layout), dataclasses.replace(models(layout), requires=requires)
    _, everything = lists(free, N)
    for cells in (1, 1 << 24):
        monkeypatch.setattr(recall_bucket, "CELLS_AT_ONCE", cells)
        told, found = lists(out_of_shared_memory(ruled), TOP)
        assert told["locked"] == sum(map(len, locked)) > 0
        for name in SOURCES:
            for shut, mine, all_ in zip(locked, found[name], everything[name], strict=True):
                assert mine == [item for item in all_ if item not in shut][:TOP], name
        for name in ("new", "merged"):
            assert not any(shut & set(mine) for shut, mine in zip(locked, found[name], strict=True)), name
        assert any(found["new"])
        assert any(set(items) & {f"i{i:02}" for i in needs} for items in found["merged"])  # unlocked by a history


def test_users_without_candidates_are_set_aside_and_counted(layout: Layout) -> None:
    told = recall_unit(unit(layout), models(layout), settings(("item_item",), closeness={}), layout).to_pylist()[0]
    assert (told["none"], told["counts"][0]) == (2, told["counts"][1])
    aside = buckets.read_parquet(buckets.bucket_file(layout.quarantine("recall"), 0)).to_pylist()
    assert [(row["key"], row["reason_code"], row["detail"]) for row in aside] == [
        (f"u{u}", "no_candidates", "events=0 sources=item_item") for u in (23, 24)
    ]


def test_events_in_shared_memory_are_not_sorted_there() -> None:
    values = np.asarray([2, 0, 1], np.int32)
    values.setflags(write=False)
    found = counts.matrix(Ragged(values, np.asarray([0, 2, 3])), 3)
    assert found.toarray().tolist() == [[1, 0, 1], [0, 1, 0]]


def test_vectors_come_back_of_length_one_or_null() -> None:
    """What embed writes is what text recall takes as it is."""
    assert as_column(VECTORS).is_null().to_pylist() == [i == 5 for i in range(N)]


def test_a_bucket_without_users_is_written_by_clusters_too(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall_bucket, "text_vectors", lambda layout, ids, setting: VECTORS)
    monkeypatch.setattr(recall_bucket, "_clusters", lambda *asked: {})
    empty = buckets.read_parquet(unit(layout)["uri"]).slice(0, 0)
    buckets.write_parquet(empty, unit(layout)["uri"])
    asked = settings(("text", "als"), search={"method": "clusters"}, closeness={})
    told = recall_unit(unit(layout), models(layout), asked, layout).to_pylist()[0]
    assert (told["users"], told["none"], told["best_text"], told["hit_text"]) == (0, 0, 0, 0)


def test_where_no_context_is_known_popularity_is_recalled(layout: Layout) -> None:
    told = recall_unit(unit(layout), models(layout), settings(("context",), context={"top": TOP}, closeness={}), layout)
    assert told.to_pylist()[0]["none"] == 0
    first = buckets.read_parquet(buckets.bucket_file(layout.candidates(), 0)).to_pylist()[-1]  # without a history
    had = models(layout).popularity
    assert {had[int(item[1:])] for item in first["item_ids"]} == set(np.sort(had)[-TOP:].tolist())


def test_a_source_that_has_no_place_is_told_from_one_that_brings_nothing_else(layout: Layout) -> None:
    """Popularity first: with as many places as it has, item-item is left out; with the whole catalogue of each, it adds
    nothing, and nothing of it is left out."""

    def told(top: int, candidates: int) -> dict[str, Any]:
        found = {"popularity": {"top": top}, "item_item": {"top": top}, "candidates": candidates}
        asked = settings(("popularity", "item_item"), closeness={}, **found)
        return recall_unit(unit(layout), models(layout), asked, layout).to_pylist()[0]

    crowded, whole = told(4, 4), told(N, 2 * N)
    assert crowded["brought"][1] == 0 and crowded["left_out"][1] > 0
    assert whole["brought"][1] == 0 and whole["left_out"] == [0, 0]
