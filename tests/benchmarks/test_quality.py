"""The quality benchmark: its protocol by hand and beside ir-measures, its baselines on planted structure and beside
plain numpy, and a cache that measures nothing twice."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from implicit.cpu.als import AlternatingLeastSquares
from scipy.stats import rankdata, zscore
from sklearn.metrics.pairwise import cosine_similarity
from transformers import AutoTokenizer

from benchmarks.quality import (
    cache,
    contextual,
    datasets,
    diversity,
    figures,
    fused,
    fusion,
    linked,
    methods,
    protocol,
    rankers,
    settings,
    splits,
    titles,
    tuning,
)
from benchmarks.quality.__main__ import measure
from benchmarks.quality.baselines import ease, ials, item_item, popularity, sasrec, title_similarity
from benchmarks.quality.command_line import methods_of, options
from benchmarks.quality.datasets import Dataset
from llmrec import assets, config
from llmrec.errors import UserError
from llmrec.evaluation.metrics import per_user
from llmrec.fusion import model
from llmrec.fusion.parts import Parts
from llmrec.ranker.ragged import Ragged
from llmrec.recall.ease import weights
from llmrec.recall.item_item import cooccurrence, interaction_matrix

HERE = Path(__file__).parents[2]
ITEMS = 40
SMALL = {
    "popularity": {},
    "item-item": {"neighbours": 20, "shrinkage": 1, "decay": 0.9},
    "ease": {"l2": 20.0},
    "ials": {"factors": 2, "regularization": 1.0, "alpha": 3.0, "iterations": 10},
    "sasrec": {
        "positions": 20, "width": 16, "heads": 2, "blocks": 1, "dropout": 0.0, "learning_rate": 1e-2, "epochs": 40,
        "patience": 10, "refit": True,
    },
}  # fmt: skip


def checkerboard(users: int = 120, length: int = 12, seed: int = 0) -> Dataset:
    """Even users have even items, odd users odd ones, in random order."""
    rng = np.random.default_rng(seed)
    rows = [
        {"user_id": f"u{u:03d}", "item_id": f"i{2 * i + u % 2:02d}", "order": place}
        for u in range(users)
        for place, i in enumerate(rng.permutation(ITEMS // 2)[:length])
    ]
    catalogue = pl.DataFrame({
        "item_id": [f"i{i:02d}" for i in range(ITEMS)],
        "title": [f"{'even' if i % 2 == 0 else 'odd'} {i}" for i in range(ITEMS)],
    })  # fmt: skip
    return datasets.of_tables("board", catalogue, pl.DataFrame(rows))


@pytest.fixture(scope="module")
def board() -> Dataset:
    return checkerboard()


def table(rows: list[tuple], columns: list[str]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=columns, orient="row")


def test_events_are_in_order_and_ties_in_file_order() -> None:
    items = table([("a", 1), ("b", 2), ("c", 3), ("d", 4)], ["item_id", "year"]).reverse()
    timed = table(
        [("u", "b", 5), ("u", "d", 9), ("u", "a", 5), ("u", "c", 5), ("v", "a", 1), ("v", "b", 1)],
        ["user_id", "item_id", "timestamp"],
    )
    found = datasets.of_tables("hand", items, timed)
    assert found.items["item_id"].to_pylist() == ["a", "b", "c", "d"]
    assert found.items["year"].to_pylist() == [1, 2, 3, 4]
    assert found.users.to_pylist() == ["u"], "v has fewer than 3 items"
    assert found.histories[0].tolist() == [1, 0, 2, 3]
    ordered = timed.with_columns(order=pl.Series([3, 0, 2, 1, 0, 0]))
    assert datasets.of_tables("hand", items, ordered).histories[0].tolist() == [3, 2, 0, 1]
    assert datasets.of_tables("hand", items, timed.drop("timestamp")).histories[0].tolist() == [1, 3, 0, 2]
    again = pl.concat([timed, table([("u", "b", 10)], timed.columns)])
    assert datasets.of_tables("hand", items, again).histories[0].tolist() == [1, 0, 2, 3], "the first event of b counts"
    assert found.digest != datasets.of_tables("hand", items, ordered).digest
    assert found.digest == datasets.of_tables("other", items.reverse(), timed).digest


def test_core_is_what_is_left_when_nothing_more_goes() -> None:
    rng = np.random.default_rng(1)
    events = table([(f"u{u}", f"i{i}") for u, i in rng.integers(0, 25, (260, 2))], ["user_id", "item_id"]).unique()
    left = set(events.iter_rows())
    while True:  # one at a time, by hand
        few = [p for p in left if sum(q[0] == p[0] for q in left) < 6 or sum(q[1] == p[1] for q in left) < 6]
        if not few:
            break
        left.discard(few[0])
    assert 0 < len(left) < len(events)
    assert set(datasets.in_core(events, 6).iter_rows()) == left
    catalogue = pl.DataFrame({"item_id": [f"i{i}" for i in range(25)]})
    found = datasets.of_tables("core", catalogue, events, 6)
    assert found.items["item_id"].to_pylist() == sorted({i for _, i in left})


def test_folders_and_what_is_wrong_with_them(tmp_path: Path) -> None:
    items = table([(f"i{i}", f"t {i}") for i in range(5)], ["item_id", "title"])
    events = table([("u", f"i{i}", 0) for i in range(4)], ["user_id", "item_id", "order"])
    folder = tmp_path / "shop"
    with pytest.raises(UserError, match="shop': there is no items"):
        datasets.read(str(folder))
    folder.mkdir()
    items.write_parquet(folder / "items.parquet")
    events.write_parquet(folder / "interactions.parquet")
    assert datasets.read(str(folder)).name == "shop"
    with pytest.raises(UserError, match="no user has 3 items"):
        datasets.read(f"{folder}:2core")
    for wrong, message in (
        (events.drop("user_id"), "interactions have no column 'user_id'"),
        (events.with_columns(item_id=pl.lit("x")), "item 'x' has events but is not among the items"),
        (events.with_columns(item_id=pl.lit(None, pl.String)), "interactions have rows without 'item_id'"),
    ):
        wrong = pl.concat([events, wrong], how="diagonal") if "user_id" in wrong.columns else wrong
        wrong = wrong if "x" not in message else wrong.with_columns(user_id=pl.lit("u"))
        with pytest.raises(UserError, match=message):
            datasets.of_tables("shop", items, wrong)
    with pytest.raises(UserError, match="more than once"):
        datasets.of_tables("shop", pl.concat([items, items]), events)


def test_splits(board: Dataset) -> None:
    whole = [board.histories[u].tolist() for u in range(len(board.histories))]
    for name, held_out in (("validation", 2), ("test", 1)):
        found = splits.split(board, name)
        assert [found.training[u].tolist() for u in range(len(whole))] == [h[:-held_out] for h in whole]
        assert found.known is found.training and found.seen is found.training
        assert found.target.tolist() == [h[-held_out] for h in whole]
    four = splits.split(board, "validation-4")
    assert [four.training[u].tolist() for u in range(len(whole))] == [h[:-5] for h in whole]
    asked = sorted((u, four.known[i].tolist(), int(four.target[i])) for i, u in enumerate(four.users.tolist()))
    assert asked == sorted((u, h[:-back], h[-back]) for u, h in enumerate(whole) if len(h) > 5 for back in range(2, 6))
    cold = splits.cold_items(board.items["item_id"], 0.1, 0)
    found, only = splits.split(board, "cold"), splits.split(board, "cold-only")
    users = [u for u, h in enumerate(whole) if cold[h[-1]]]
    assert 0 < cold.sum() < 12 and found.users.tolist() == users and users
    assert not cold[found.training.values].any() and not cold[found.known.values].any()
    assert [k.tolist() for k in map(found.known.__getitem__, range(len(users)))] == [
        [i for i in whole[u][:-1] if not cold[i]] for u in users
    ]
    assert [s.tolist() for s in map(found.seen.__getitem__, range(len(users)))] == [whole[u][:-1] for u in users]
    assert found.candidates.all() and np.array_equal(only.candidates, cold)
    ids = board.items["item_id"]
    assert np.array_equal(cold[5:], splits.cold_items(ids[5:], 0.1, 0)), "an item's lot depends on others"
    many = pl.Series([str(i) for i in range(20_000)]).to_arrow()
    assert splits.cold_items(many, 0.1, 0).mean() == pytest.approx(0.1, abs=0.01)


def test_ranks_by_hand() -> None:
    scores = np.array([[5, 4, 3, 3, 3, 1], [1, 1, 1, 1, 1, 1], [9, 8, 7, 6, 5, 4]], np.float32)
    seen = Ragged.of([[0], [1, 2], []])
    everything = np.ones(6, bool)
    # 1: one better that is not seen, three tied for places 2 to 4. 2: four tied. 3: the last of all.
    target = np.array([3, 5, 5])
    assert protocol.ranks(scores, seen, target, everything).tolist() == [3.0, 2.5, 6.0]
    assert protocol.ranks(scores, seen, target, everything).dtype == np.float32
    # Without items 1 and 4: two tied for places 1 and 2; items 0, 3, 5 tied; the last of four.
    assert protocol.ranks(scores, seen, target, ~np.isin(np.arange(6), [1, 4])).tolist() == [1.5, 2.0, 4.0]
    assert scores[0, 0] == 5, "the caller's scores were changed"
    for wrong in (np.nan, np.inf):
        scores[1, 0] = wrong
        with pytest.raises(ValueError, match="not finite"):
            protocol.ranks(scores, seen, target, everything)


def test_metrics_are_those_of_ir_measures() -> None:
    rng = np.random.default_rng(0)
    n_items, users = 300, 200
    scores = rng.permuted(np.tile(np.arange(n_items, dtype=np.float32), (users, 1)), axis=1)
    seen = Ragged.of([rng.permutation(n_items)[:20] for _ in range(users)])
    target = np.array([rng.choice(np.setdiff1d(np.argsort(-s)[:180], seen[u])) for u, s in enumerate(scores)])
    ours = protocol.metrics(protocol.ranks(scores, seen, target, np.ones(n_items, bool)))
    lists = {str(u): [str(i) for i in np.argsort(-s) if i not in set(seen[u].tolist())] for u, s in enumerate(scores)}
    theirs = per_user({str(u): [str(t)] for u, t in enumerate(target)}, lists, [10, 100])
    assert 0 < theirs["recall@10"].mean() < 0.5 < theirs["recall@100"].mean() < 1
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], atol=1e-6, err_msg=name)
        assert values.dtype == np.float32


def test_mean_ranks_at_the_edge() -> None:
    found = protocol.metrics(np.array([1, 1.5, 10, 10.5, 100, 100.5], np.float32))
    assert found["recall@10"].tolist() == [1, 1, 1, 0, 0, 0]
    assert found["recall@100"].tolist() == [1, 1, 1, 1, 1, 0]
    np.testing.assert_allclose(found["ndcg@10"][:3], 1 / np.log2([2, 2.5, 11]), rtol=1e-6)
    np.testing.assert_allclose(found["mrr@10"], [1, 1 / 1.5, 0.1, 0, 0, 0], rtol=1e-6)


def test_blocks_of_users_change_nothing(board: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    method = methods.baseline("item-item", SMALL["item-item"])
    whole = method.ranked(board, "test", 0).ranks
    monkeypatch.setattr(protocol, "CELLS", 7 * ITEMS)
    assert np.array_equal(method.ranked(board, "test", 0).ranks, whole)


def test_segments(board: Dataset) -> None:
    of = splits.split(board, "cold")
    assert list(protocol.segments(of)) == ["0"]
    of = splits.split(board, "test")
    counts = np.array([(of.training.values == t).sum() for t in of.target])
    found = protocol.segments(of)
    assert list(found) == ["20-99"] and np.array_equal(found["20-99"], (counts >= 20) & (counts <= 99))


def test_paired_differences() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.random(400).astype(np.float32)
    found = protocol.paired(theirs + rng.normal(0.1, 0.05, 400).astype(np.float32), theirs)
    assert found["low"] < found["difference"] < found["high"]
    assert found["difference"] == pytest.approx(0.1, abs=0.01) and found["high"] - found["low"] == pytest.approx(
        2 * 1.96 * 0.05 / 20, rel=0.15
    )


@pytest.mark.parametrize("name", ["item-item", "ease", "ials", "sasrec"])
def test_learners_find_the_checkerboard(name: str, board: Dataset) -> None:
    of = splits.split(board, "test")
    scores = methods.baseline(name, SMALL[name]).scorer(of.training, ITEMS, 0)(of.known)
    assert scores.shape == (len(of.users), ITEMS) and scores.dtype == np.float32
    ranks = methods.baseline(name, SMALL[name]).ranked(board, "test", 0).ranks
    assert np.mean(ranks <= 9) > 0.95, "20 items of the user's own colour less the 11 that he had"


def test_popularity_counts(board: Dataset) -> None:
    of = splits.split(board, "test")
    scores = popularity.fit(of.training, ITEMS, {}, 0)(of.known)
    assert np.array_equal(scores[3], np.bincount(of.training.values, minlength=ITEMS))


def test_item_item_is_a_plain_loop(board: Dataset) -> None:
    of = splits.split(board, "test")
    wanted: Mapping[str, Any] = {"neighbours": 7, "shrinkage": 3.0, "decay": 0.8}
    had = np.zeros((len(of.users), ITEMS))
    for user in range(len(of.users)):
        had[user, of.training[user]] = 1
    similar = np.zeros((ITEMS, ITEMS))
    for i in range(ITEMS):
        for j in range(ITEMS):
            if i != j:
                similar[i, j] = (had[:, i] * had[:, j]).sum() / (np.sqrt(had[:, i].sum() * had[:, j].sum()) + 3)
    for j in range(ITEMS):
        least = np.argsort(-similar[:, j].astype(np.float32), kind="stable")[7:]
        similar[least, j] = 0
    scores = np.zeros((len(of.users), ITEMS))
    for user in range(len(of.users)):
        for age, item in enumerate(of.known[user][::-1]):
            scores[user] += 0.8**age * similar[item]
    np.testing.assert_allclose(item_item.fit(of.training, ITEMS, wanted, 0)(of.known), scores, rtol=1e-4, atol=1e-6)


def test_ease_is_the_constrained_minimum(board: Dataset) -> None:
    of = splits.split(board, "test")
    x = np.zeros((len(of.users), ITEMS))
    for user in range(len(of.users)):
        x[user, of.training[user]] = 1
    found = weights(cooccurrence(of.training, ITEMS).toarray(order="F"), 5.0)
    for j in range(ITEMS):  # each column is a ridge regression of its item on all others
        others = np.delete(np.arange(ITEMS), j)
        a = x[:, others]
        wanted = np.linalg.solve(a.T @ a + 5 * np.eye(ITEMS - 1), a.T @ x[:, j])
        np.testing.assert_allclose(found[others, j], wanted, atol=1e-5)
    assert not np.diag(found).any()
    np.testing.assert_allclose(ease.fit(of.training, ITEMS, {"l2": 5.0}, 0)(of.known), x @ found, atol=1e-5)


def test_ials_folds_in_by_the_normal_equations(board: Dataset) -> None:
    of = splits.split(board, "test")
    scores, again, other = (ials.fit(of.training, ITEMS, SMALL["ials"], seed)(of.known) for seed in (0, 0, 1))
    assert np.array_equal(scores, again) and not np.array_equal(scores, other)
    wanted = SMALL["ials"]
    model = AlternatingLeastSquares(2, 1.0, 3.0, iterations=10, random_state=0, num_threads=1)
    model.fit(interaction_matrix(of.training, ITEMS), show_progress=False)
    items = np.asarray(model.item_factors, np.float64)
    for user in (0, 1, 7):
        had = np.zeros(ITEMS)
        had[of.known[user]] = 1
        confidence = np.where(had == 1, wanted["alpha"], 1.0)
        normal = items.T @ (confidence[:, None] * items) + wanted["regularization"] * np.eye(2)
        expected = items @ np.linalg.solve(normal, items.T @ (confidence * had))
        np.testing.assert_allclose(scores[user], expected, atol=1e-4)


def test_title_similarity_by_hand() -> None:
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8], [0, 0]], np.float32)
    scorer = title_similarity.fit(vectors, Ragged.of([]), 4, {"decay": 0.5}, 0)
    np.testing.assert_allclose(scorer(Ragged.of([[0, 1], [3]])), [[0.5, 1, 1.1, 0], [0] * 4], atol=1e-6)


def test_texts_are_title_year_and_category() -> None:
    items = pl.DataFrame({
        "item_id": [1, 2, 3, 4], "title": ["A", "B", None, ""], "release_year": [1999, None, 2000, 2001],
        "category": ["x|y", None, "x", "y"],
    }).to_arrow()  # fmt: skip
    assert titles.texts(items) == ["A (1999) x, y", "B", "", ""]
    assert titles.texts(items.select(["title", "category"])) == ["A x, y", "B", "", ""]


def test_titles_are_encoded_once(
    board: Dataset, tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sentence_transformers")  # of the extra `bench`
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder, pad_token="<unk>")
    encoder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, encoder)
    tokenizer.save_pretrained(encoder)
    found, digest = titles.vectors(board, encoder, tmp_path)
    assert titles.vectors(checkerboard(seed=1), encoder, tmp_path)[1] == digest, "the same texts"
    assert found.shape == (ITEMS, 32) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    monkeypatch.setattr(titles, "_encoded", None)
    again, same = titles.vectors(board, encoder, tmp_path)
    assert np.array_equal(found, again) and digest == same
    with pytest.raises(UserError, match="no config"):
        titles.vectors(board, tmp_path, tmp_path)


def test_sasrec_reads_order_and_only_what_came_before() -> None:
    """Items follow each other in a ring, from any start: the next one is known only from the last."""
    rng = np.random.default_rng(0)
    rings = Ragged.of([(rng.integers(0, 20) + np.arange(rng.integers(4, 12))) % 20 for _ in range(200)])
    scorer = sasrec.fit(rings, 20, SMALL["sasrec"], 0)
    ends = rings.values[rings.offsets[1:] - 1]
    assert np.mean(scorer(rings).argmax(axis=1) == (ends + 1) % 20) > 0.95
    model = next(sasrec._training(rings, 20, SMALL["sasrec"], 0))
    rows = sasrec._padded([np.arange(6), np.arange(3)])
    one, other = model(rows), model(rows.where(rows != 5, 9))
    assert one[0, :5].equal(other[0, :5]) and not one[0, 5].equal(other[0, 5])
    single = sasrec._scorer(model, 20)(Ragged.of([np.arange(3)]))
    several = sasrec._scorer(model, 20)(Ragged.of([np.arange(9), [], np.arange(3)]))
    np.testing.assert_allclose(several[2], single[0], atol=1e-5)
    assert not several[1].any(), "a user without history has all items tied"
    long = sasrec._scorer(model, 20)(Ragged.of([np.arange(47) % 20, (np.arange(30) + 17) % 20]))
    np.testing.assert_allclose(long[0], long[1], atol=1e-5, err_msg="the last 20 events are the same")


def test_fusion_by_hand() -> None:
    scores = [np.array([[4, 3, 2, 1]], np.float32), np.array([[1, 9, 1, 7]], np.float32)]
    seen = Ragged.of([[1]])
    found = fusion.fused([lambda _: scores[0], lambda _: scores[1]], [1.0, 2.0], k=10)(seen)[0]
    assert found[0] == pytest.approx(1 / 11 + 2 / 12.5)  # tied for places 2 and 3 of the second
    assert found[2] == pytest.approx(1 / 12 + 2 / 12.5)
    assert found[3] == pytest.approx(1 / 13 + 2 / 11)


def test_fusion_of_a_method_with_itself_ranks_alike(board: Dataset) -> None:
    one = methods.baseline("item-item", SMALL["item-item"])
    both = methods.Fusion([one, one])
    assert both.name == "item-item+item-item" and not both.seeded
    assert np.array_equal(both.ranked(board, "test", 0).ranks, one.ranked(board, "test", 0).ranks)


class Counted:
    """A method that makes its own ranks, as one that runs a job would."""

    name, seeded = "counted", True

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings, self.calls = settings, 0

    def ranked(self, dataset: Dataset, split: str, seed: int) -> methods.Ranked:
        self.calls += 1
        return methods.Ranked(np.full(len(splits.split(dataset, split).users), 1 + seed, np.float32), 2.5)


def test_cache_measures_once(board: Dataset, tmp_path: Path) -> None:
    never = float("inf")
    one = Counted({"a": 1})
    found = [cache.measured(tmp_path, never, board, one, "test", seed) for seed in (0, 1, 0, 1)]
    assert one.calls == 2 and [f.ranks[0] for f in found] == [1, 2, 1, 2]
    assert found[0].seconds == found[2].seconds and found[0].fitting == found[2].fitting == 2.5
    for changed in (
        (checkerboard(seed=1), one, "test", 0), (board, one, "validation", 0), (board, Counted({"a": 2}), "test", 0),
    ):  # fmt: skip
        assert not cache.file_of(tmp_path, *changed).exists()
    with pytest.raises(cache.OutOfTimeError):
        cache.measured(tmp_path, 0.0, board, one, "test", 2)
    assert cache.measured(tmp_path, 0.0, board, one, "test", 1).ranks[0] == 2
    # What a killed process left half-written is no result.
    file = cache.file_of(tmp_path, board, one, "test", 1)
    file.rename(file.with_name(f".{file.name}"))
    assert cache.measured(tmp_path, never, board, one, "test", 1).ranks[0] == 2 and one.calls == 3
    fixed = Counted({})
    fixed.seeded = False
    assert cache.file_of(tmp_path, board, fixed, "test", 0) == cache.file_of(tmp_path, board, fixed, "test", 1)


def test_tuning_takes_the_best_on_validation(board: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "GRID", {"item-item": {"neighbours": [1, 20], "shrinkage": [1.0], "decay": [0.9, 1]}})
    asked = []

    def measure(dataset: Dataset, method: methods.Method, split: str, seed: int) -> cache.Measured:
        asked.append((split, seed))
        ranks = np.full(len(dataset.users), 1.0 if method.settings["neighbours"] == 20 else 3.0)
        return cache.Measured(ranks, 0.0, 0.0)

    found = tuning.tried(board, "item-item", None, measure)
    assert set(asked) == {("validation", 0)} and len(found) == 4
    assert found[0] == ({"neighbours": 20, "shrinkage": 1.0, "decay": 0.9}, 1.0)
    assert tuning.varied(found[0][0], "item-item") == {"neighbours": 20, "decay": 0.9}


def test_chosen_settings_are_settings_of_the_grid() -> None:
    for chosen in settings.CHOSEN.values():
        for method, values in chosen.items():
            for name, value in values.items():
                assert value in settings.GRID[method][name], (method, name)


def test_what_is_fused_is_there() -> None:
    there = {*methods.MODULES, *methods.IN_CONTEXT, *linked.METHODS, *rankers.VARIANTS, *fused.AVERAGED}
    for name, (members, how) in fused.FUSIONS.items():
        assert set(members) <= there and how in {"linear", "trees"}, name
    alone, beside = (set(fused.FUSIONS[name][0]) for name in ("fused-sasrec", "fused-lm-sasrec"))
    assert alone - set(fused.WITHOUT) == {"sasrec"} and beside - alone == {"lm"}


def test_a_second_run_only_prints(tmp_path: Path) -> None:
    board = checkerboard(60)
    pl.DataFrame(board.items).write_parquet(_made(tmp_path / "board") / "items.parquet")
    rows = [(f"u{u}", f"i{i:02d}") for u in range(60) for i in board.histories[u]]
    table(rows, ["user_id", "item_id"]).write_parquet(tmp_path / "board" / "interactions.parquet")

    given = ["--data", str(tmp_path / "board"), "--out", str(tmp_path / "out"), "--encoder", ""]

    def run(*more: str) -> dict[str, Any]:
        found = measure(options("about", [*given, *more]), lambda line: None)
        return json.loads(json.dumps(found))

    asked = ("--methods", "popularity,item-item,ials,item-item+ease,title-similarity", "--seeds", "0", "1", "--splits",
             "test", "cold", "cold-only")  # fmt: skip
    found = run(*asked)
    assert found["not_run"] == {"board title-similarity": "it needs an --encoder"}
    (data,) = found["datasets"]
    assert (data["users"], data["items"], data["events"]) == (60, ITEMS, 720)
    rows = {row["method"]: row for row in data["splits"]["test"]["methods"]}
    assert list(rows) == ["popularity", "item-item", "ials", "item-item+ease"]
    assert rows["ials"]["seeds"] == [0, 1] and rows["ials"]["std"]["ndcg@10"] >= 0
    assert rows["item-item"]["std"]["ndcg@10"] is None
    assert rows["popularity"]["ndcg@10"] < rows["item-item"]["ndcg@10"]
    best = max(rows.values(), key=lambda row: row["ndcg@10"])
    assert best["to_best"] is None and rows["popularity"]["to_best"]["high"] < 0
    (cold,) = {row["segments"]["0"]["targets"] for row in data["splits"]["cold"]["methods"]}
    assert cold == data["splits"]["cold-only"]["targets"] > 0
    assert run(*asked, "--limit-minutes", "0") == found, "nothing may be measured"
    late = run("--methods", "popularity,ease", "--limit-minutes", "0")
    assert late["not_run"] == {"board ease": "out of time; another call goes on from here"}

    def command(*more: str) -> subprocess.CompletedProcess:
        call = [sys.executable, "-m", "benchmarks.quality", *given, *more]
        return subprocess.run(call, capture_output=True, text=True, cwd=HERE)

    shown = command("--methods", "item-item,ease", "--limit-minutes", "0", "--json", str(tmp_path / "found.json"))
    assert shown.returncode == 0 and "board ease not run: out of time" in shown.stdout
    assert f"{rows['item-item']['ndcg@10']:.4f}" in shown.stdout
    written = json.loads((tmp_path / "found.json").read_text())["datasets"][0]["splits"]["test"]["methods"]
    assert written == [rows["item-item"] | {"to_best": None}]
    wrong = command("--data", str(tmp_path / "none"))
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1
    assert "none': there is no items" in wrong.stderr


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def test_what_is_measured_if_nothing_is_asked_for(board: Dataset) -> None:
    edges = pa.table({"head": ["i00"], "relation": ["colour"], "tail": ["even"]})
    assert options("about", []).methods == []
    plain = [name for (name,) in methods_of(board)]
    assert plain == [*methods.MODULES, "lm", "fused-without-lm", "fused"]
    linked_ = [name for (name,) in methods_of(dataclasses.replace(board, edges=edges))]
    assert set(linked_) - set(plain) == {"graph", "closeness", "fused-graph-without-lm", "fused-graph"}
    told = [name for (name,) in methods_of(dataclasses.replace(board, name="frappe"))]
    assert set(told) - set(plain) == {
        "popularity-in-context", "lm-context", "fused-in-context-without-lm", "fused-in-context",
    }  # fmt: skip


def test_what_single_things_add() -> None:
    """By hand: of three users the fusion finds two first, without the ranker one, its best member one, in its first
    hundred two."""
    ranks = {"fused": [1, 1, 50], "fused-without-lm": [1, 200, 300], "popularity": [1, 60, 300], "ease": [7, 200, 300]}
    rows = [{"method": name} for name in ranks]
    found = figures.added(rows, [[cache.Measured(np.asarray(of, np.float32), 0.0, 0.0)] for of in ranks.values()])
    told = {(row["what"], row["with"]): row for row in found}
    assert set(told) == {("the ranker", "fused"), ("fusing", "fused"), ("fusing", "fused-without-lm")}
    ranker = told["the ranker", "fused"]
    assert ranker["ndcg@10"]["difference"] == pytest.approx(1 / 3) and ranker["relative"]["ndcg@10"] == pytest.approx(1)
    assert ranker["without"] == {"ndcg@10": "fused-without-lm", "recall@100": "fused-without-lm"}
    assert ranker["recall@100"]["difference"] == pytest.approx(2 / 3)
    fusing = told["fusing", "fused"]
    assert set(fusing["without"].values()) == {"popularity"} and fusing["relative"]["recall@100"] == pytest.approx(0.5)
    assert all(row["ndcg@10"]["low"] <= row["ndcg@10"]["difference"] <= row["ndcg@10"]["high"] for row in found)


def test_options_name_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert options("about", ["--methods", "ease,ease+ials"]).methods == [["ease"], ["ease", "ials"]]
    with pytest.raises(SystemExit):
        options("about", ["--methods", "ease+nothing"])
    assert "no method 'nothing'" in capsys.readouterr().err


@pytest.mark.skipif(not assets.location("ml-100k").is_dir(), reason="ml-100k is not in the cache")
def test_movielens_figures() -> None:
    """Against figures that were computed elsewhere; without file order of ties item-item has 0.057 to 0.117."""
    dataset = datasets.read("ml-100k")
    assert (len(dataset.users), dataset.items.num_rows, len(dataset.histories.values)) == (943, 1682, 100_000)
    for name, ndcg, recall in (("popularity", 0.0443, 0.086), ("item-item", 0.0996, 0.184), ("ease", 0.0723, 0.149)):
        method = methods.baseline(name, settings.of("ml-100k", name))
        found = protocol.metrics(method.ranked(dataset, "test", 0).ranks)
        assert found["ndcg@10"].mean() == pytest.approx(ndcg, abs=2e-4), name
        assert found["recall@10"].mean() == pytest.approx(recall, abs=1e-3), name


@pytest.mark.parametrize("each", [ITEMS, 3])
def test_fused_ranks_are_those_of_the_fusion_over_what_members_bring(
    board: Dataset, each: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fused, "EACH", each)
    monkeypatch.setattr(fused, "CELLS", 50 * ITEMS)  # several blocks of users
    members = [methods.baseline(name, SMALL[name]) for name in ("popularity", "item-item", "ease")]
    method = fused.Fused("fused", members, "linear", tmp_path)
    found = method.ranked(board, "test", 0).ranks

    def asked(name: str) -> tuple[np.ndarray, list[np.ndarray], splits.Split]:
        """bool[members, users, items]: what each member brings; its scores."""
        of = splits.split(board, name)
        scores = [m.scorer(of.training, ITEMS, 0)(of.known) for m in members]
        places = [rankdata(-protocol.masked(s, of.seen, -np.inf), axis=1, method="ordinal") for s in scores]
        return np.stack([(p <= each) & (protocol.masked(np.ones_like(s), of.seen) > 0)
                         for p, s in zip(places, scores, strict=True)]), scores, of  # fmt: skip

    def parts(name: str) -> tuple[Parts, np.ndarray, np.ndarray, splits.Split]:
        brought, scores, of = asked(name)
        some = brought.any(axis=0)
        user, item = np.nonzero(some)
        offsets = np.append(0, np.cumsum(some.sum(axis=1)))
        values = np.stack([s[user, item] for s in scores], axis=1).astype(np.float32)
        return Parts(tuple(m.name for m in members), values, offsets), of.target[user] == item, some, of

    known, truth, _, _ = parts("validation")
    weights = model.fit(known, truth, ("z_score", "reciprocal_rank"))
    known, _, some, of = parts("test")
    scores = np.full(some.shape, -np.inf)
    scores[some] = weights.score(known).astype(np.float32)
    open_ = protocol.masked(np.ones_like(scores), of.seen) > 0
    # What nobody brings ties behind the rest, which gives it its mean rank there.
    wanted = [
        rankdata(-np.where(np.isinf(row), -1e9, row)[mask])[int(mask[:target].sum())]
        for row, mask, target in zip(scores, open_, of.target, strict=True)
    ]
    np.testing.assert_allclose(found, wanted)
    lost = ~some[np.arange(len(some)), of.target]
    assert lost.any() == (each < ITEMS)
    best = method.best(board, 0)  # as it was kept
    for row, items, of_user in zip(scores, best.items, best.scores, strict=True):
        brought = items[items >= 0]
        assert sorted(brought) == np.flatnonzero(np.isfinite(row)).tolist()
        np.testing.assert_array_equal(row[brought], np.sort(row[brought])[::-1])
        np.testing.assert_array_equal(of_user[: len(brought)], row[brought])


def test_diversity_is_that_of_lists_chosen_out_of_the_best() -> None:
    rng = np.random.default_rng(3)
    users, n_items = 60, 40
    vectors = np.repeat(rng.normal(size=(n_items // 4, 8)), 4, axis=0).astype(np.float32)  # of each four are the same
    scores = -np.sort(-rng.random((users, 30)), axis=1).astype(np.float32)
    items = np.stack([rng.permutation(n_items)[:30] for _ in range(users)]).astype(np.int32)
    items[0, 12:] = -1  # a user with few candidates
    target = items[np.arange(users), rng.integers(0, 12, users)]
    found = diversity.curve(fused.Best(items, scores), target, vectors, [0.3, 1.0])
    plain, *traded = found["points"]
    places = [row.tolist().index(of) for row, of in zip(items, target, strict=True)]
    assert plain["ndcg"] == pytest.approx(protocol.metrics(np.array(places) + 1)["ndcg@10"].mean(), abs=1e-6)
    apart = [1 - cosine_similarity(vectors[row[:10]])[np.triu_indices(10, 1)].mean() for row in items]
    assert plain["unlikeness"] == pytest.approx(np.mean(apart), abs=1e-5)
    assert plain["coverage"] == len(set(items[:, :10].ravel())) / n_items and plain["change"] is None
    assert [(point["method"], point["trade"]) for point in traded] == [
        ("mmr", 0.3), ("mmr", 1.0), ("dpp", 0.3), ("dpp", 1.0)
    ]  # fmt: skip
    for some, all_ in (traded[:2], traded[2:]):
        assert plain["unlikeness"] < some["unlikeness"] < all_["unlikeness"]
        assert some["change"]["difference"] == pytest.approx(some["ndcg"] - plain["ndcg"])
    assert json.loads(json.dumps(found)) == found


def test_noise_is_in_a_tenth_of_the_events_that_are_known_and_in_none_that_is_asked_for() -> None:
    plain, noisy = datasets.read("ml-100k"), datasets.read("ml-100k:noise10")
    assert noisy.name == "ml-100k-noise10" and noisy.digest != plain.digest
    assert rankers.sections(noisy.name, "lm") == rankers.sections(plain.name, "lm")
    changed = noisy.histories.values != plain.histories.values
    assert 0.08 < changed.mean() < 0.11
    for user in range(0, len(plain.users), 50):
        before, after = plain.histories[user].tolist(), noisy.histories[user].tolist()
        assert before[-2:] == after[-2:] and len(set(after)) == len(after)
        assert not {b for a, b in zip(before, after, strict=True) if a != b} & set(before)


def test_several_trainings_are_averaged_on_one_scale(board: Dataset) -> None:
    asked, items = splits.split(board, "test"), board.items.num_rows

    class Said:
        name, settings, seeded = "said", dict[str, Any](), True

        def over(self, dataset: Dataset, name: str, seed: int) -> Any:
            scores = np.random.default_rng(seed).normal(size=(len(asked.users), items)) * 10**seed
            return lambda rows: scores[rows].astype(np.float32)

    found = fused.Averaged("three", Said(), 3).ranked(board, "test", 1)  # type: ignore[arg-type]
    each = [Said().over(board, "test", seed)(np.arange(len(found.ranks))) for seed in (3, 4, 5)]
    mean = np.mean([zscore(scores, axis=1) for scores in each], axis=0)
    assert np.array_equal(found.ranks, protocol.ranks(mean, asked.seen, asked.target, asked.candidates))


def test_a_fusion_is_asked_about_the_test_split_alone(board: Dataset, tmp_path: Path) -> None:
    members = [methods.baseline("popularity", {})]
    with pytest.raises(UserError, match=r"fused: weights are fitted on validation; ask about the split 'test' alone"):
        fused.Fused("fused", members, "linear", tmp_path).ranked(board, "cold", 0)


def test_a_fusion_on_the_command_line_has_its_members_settings(tmp_path: Path) -> None:
    asked = options("", ["--methods", "fused-without-lm,popularity", "--out", str(tmp_path)])
    assert asked.methods == [["fused-without-lm"], ["popularity"]]
    with pytest.raises(SystemExit):
        options("", ["--methods", "fused+popularity"])


def test_contexts_stay_beside_their_events_in_every_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each event's context tells its user and item; of an item that a user had twice, the first event's counts."""
    rng = np.random.default_rng(5)
    rows = [(f"u{u}", f"i{i:02}") for u in range(30) for i in rng.integers(0, 40, 12)]
    events = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").with_columns(
        mark=pl.format("{} {}", "user_id", "item_id"), at=pl.int_range(pl.len())
    )
    items = pl.DataFrame({"item_id": [f"i{i:02}" for i in range(40)], "title": ["t"] * 40})
    monkeypatch.setitem(settings.CONTEXTS, "told", ("mark", "at"))
    found = datasets.of_tables("told", items, events, contexts=settings.CONTEXTS["told"])
    assert found.digest != datasets.of_tables("told", items, events).digest
    ids, users = found.items["item_id"].to_pylist(), found.users.to_pylist()
    for name in splits.SPLITS:
        asked = splits.split(found, name)
        owner = np.repeat(np.arange(len(asked.training)), asked.training.lengths)
        told = contextual.of_training(found, asked)
        wanted = [f"{users[u]} {ids[i]}" for u, i in zip(owner, asked.training.values, strict=True)]
        assert told["mark"].to_pylist() == wanted
        first = {f"{u} {i}": str(line) for line, (u, i) in reversed(list(enumerate(rows)))}
        assert told["at"].to_pylist() == [first[mark] for mark in wanted]
        targets = [f"{users[u]} {ids[i]}" for u, i in zip(asked.users, asked.target, strict=True)]
        assert contextual.of_targets(found, asked)["mark"].to_pylist() == targets
    with pytest.raises(UserError, match="bare: no contexts are known of its events"):
        methods.baseline("in-context", {"prior": 1.0}).ranked(datasets.of_tables("bare", items, events), splits.TEST, 0)


def test_who_knows_the_context_finds_what_it_tells() -> None:
    """Users have an item of the place where they are: known, it is among the first; by popularity it is anywhere."""
    rng = np.random.default_rng(6)
    drawn = [(u, p, i) for u in range(60) for p, i in rng.integers((1, 0), (5, 10), (15, 2))]
    rows = [(f"u{u:02}", f"i{10 * p + i}", f"p{p}") for u, p, i in drawn]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "place"], orient="row")
    items = pl.DataFrame({"item_id": [f"i{i}" for i in range(10, 50)], "title": ["t"] * 40})
    found = datasets.of_tables("places", items, events, contexts=["place"])
    ranks = {
        name: methods.baseline(name, of).ranked(found, splits.TEST, 0)[0]
        for name, of in (("popularity", {}), ("popularity-in-context", {"prior": 1.0}), ("in-context", {"prior": 1.0}))
    }
    assert ranks["popularity-in-context"].max() <= 10 and ranks["in-context"].max() <= 10
    assert np.median(ranks["popularity"]) > 10


def test_who_knows_the_graph_finds_what_it_links() -> None:
    """Users go on with an item of the same topic; popularity knows nothing of that."""
    rng = np.random.default_rng(7)
    rows = [(f"u{u:02}", f"i{10 + 10 * (u % 4) + i}") for u in range(60) for i in rng.permutation(10)[:5]]
    events = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    ids = [f"i{i}" for i in range(10, 50)]
    found = datasets.of_tables("topics", pl.DataFrame({"item_id": ids, "title": ["t"] * 40}), events)
    about = [f"t{i // 10}" for i in range(10, 50)]
    linked = dataclasses.replace(found, edges=pa.table({"head": ids, "relation": ["about"] * 40, "tail": about}))
    for name in ("graph", "closeness"):
        method = methods.baseline(name, settings.of("topics", name))
        assert method.ranked(linked, splits.TEST, 0)[0].max() <= 6 + 1
        with pytest.raises(UserError, match="topics: no knowledge graph is known"):
            method.ranked(found, splits.TEST, 0)
    popular = methods.baseline("popularity", {}).ranked(found, splits.TEST, 0)[0]
    assert np.median(popular) > 10


@pytest.mark.parametrize("dataset", ["ml-100k", "amazon-beauty", "another"])
def test_the_augmented_ranker_differs_by_what_its_items_text_says(dataset: str) -> None:
    plain, augmented = (rankers.sections(dataset, name) for name in ("lm", "lm-augmented"))
    assert augmented["prompt"]["item"] == plain["prompt"]["item"] + ". {augmentation}"
    made = config.build({"root": "somewhere", **augmented})
    assert made.augment.items.min_characters and not made.augment.users.history
    augmented["prompt"]["item"] = plain["prompt"]["item"]
    del augmented["augment"]
    assert augmented == plain
