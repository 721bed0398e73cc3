"""The whole main job on MovieLens-100k with a real language model, every table in a real S3 server."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from llmrec import config, schema, storage
from llmrec.engine import recall, stages
from llmrec.engine.session import user_error_in
from llmrec.layout import Layout
from llmrec.tables import buckets, rankings

ROOT = "s3://llmrec-test/main"
TOP_K = 20
SETTINGS: dict[str, Any] = {
    "root": ROOT,
    "data": {
        "items": "s3://llmrec-test/raw/items.parquet",
        "interactions": "s3://llmrec-test/raw/interactions.parquet",
        "users": "s3://llmrec-test/raw/users.parquet",
        "buckets": 4,
    },
    "prompt": {"item": "{title} ({year}) {genres}", "user": "A {age} year old {occupation}. ", "max_history": 20},
    "model": {"layers": 1},
    "train": {"max_steps": 6, "validate_every": 3, "validation_users": 60, "users_per_step": 8},
    "score": {"top_k": TOP_K},
}


def quietly(message: str) -> None:
    """A `say` for stages."""


@pytest.fixture(scope="module")
def done(cluster: Any, movielens: dict[str, Any]) -> dict[str, Any]:
    for name, table in movielens.items():
        buckets.write_parquet(table, SETTINGS["data"][name])
    settings = config.build(SETTINGS)
    return {name: stages.run(name, settings, quietly) for name in stages.order(settings)}


@pytest.fixture(scope="module")
def layout() -> Layout:
    return Layout(ROOT)


def naive_histories(movielens: dict[str, Any]) -> dict[int, list[int]]:
    """User -> items by time, ties in file order, by polars alone."""
    log = pl.from_arrow(movielens["interactions"])
    assert isinstance(log, pl.DataFrame)
    log = log.with_row_index().sort("user_id", "timestamp", "index")
    return dict(log.group_by("user_id").agg("item_id").iter_rows())


def test_prepare_splits_leave_one_out(done: dict[str, Any], layout: Layout, movielens: dict[str, Any]) -> None:
    expected = naive_histories(movielens)
    histories = buckets.read_parquet(layout.histories)
    targets = buckets.read_parquet(layout.targets)
    found = dict(zip(histories["user_id"].to_pylist(), histories["item_ids"].to_pylist(), strict=True))
    held_out = dict(zip(targets["user_id"].to_pylist(), targets["item_ids"].to_pylist(), strict=True))
    assert found == {user: items[:-1] for user, items in expected.items()}
    assert held_out == {user: items[-1:] for user, items in expected.items()}
    assert histories["train_length"].to_pylist() == [len(i) - 1 for i in histories["item_ids"].to_pylist()]
    assert done["prepare"]["rows_in"] == done["prepare"]["events_kept"] == 100_000


def test_every_user_of_a_table_is_in_the_bucket_of_his_hash(done: dict[str, Any], layout: Layout) -> None:
    for table in (layout.histories, layout.targets, layout.candidates()):
        for bucket, uri in buckets.bucket_files(table).items():
            users = buckets.read_parquet(uri, ["user_id"])["user_id"]
            assert set(buckets.bucket_of(users, 4).tolist()) == {bucket}


def test_published_table_holds_what_it_must(done: dict[str, Any], layout: Layout, movielens: dict[str, Any]) -> None:
    table = rankings.read(layout.rankings)
    candidates = buckets.read_parquet(layout.candidates())
    expected = naive_histories(movielens)
    users = table["user_id"].to_numpy()
    starts = np.flatnonzero(np.r_[True, users[1:] != users[:-1]])
    lists = {users[s]: table.slice(s, e - s) for s, e in zip(starts, np.r_[starts[1:], len(users)], strict=True)}
    assert len(lists) == candidates.num_rows == 943
    for user, proposed in zip(candidates["user_id"].to_pylist(), candidates["item_ids"].to_pylist(), strict=True):
        mine = lists[user]
        items, scores = mine["item_id"].to_pylist(), mine["score"].to_pylist()
        assert mine["rank"].to_pylist() == list(range(1, min(TOP_K, len(proposed)) + 1))
        assert scores == sorted(scores, reverse=True)
        assert set(items) <= set(proposed)
        assert not set(items) & set(expected[user][:-1])
    assert done["score"]["pairs"]["in"] == sum(done["score"]["pairs"][k] for k in (
        "ranked", "below_top_k", "seen", "blocked", "locked", "over_limit", "quarantined"
    ))  # fmt: skip


def test_three_readers_see_the_same_rows_by_the_documented_lines(done: dict[str, Any], layout: Layout) -> None:
    import duckdb
    from deltalake import DeltaTable

    by_polars = pl.read_delta(layout.rankings)
    dataset = DeltaTable(layout.rankings).to_pyarrow_dataset()
    by_pyarrow = dataset.to_table()
    by_duckdb = duckdb.sql("select user_id, rank, item_id from dataset order by all").pl()
    columns = ["user_id", "rank", "item_id"]
    assert by_polars.select(columns).sort(columns).equals(by_duckdb)
    assert pl.from_arrow(by_pyarrow.select(columns)).sort(columns).equals(by_duckdb)
    assert len(by_duckdb) == 943 * TOP_K


def test_a_second_run_scores_the_same_bytes(done: dict[str, Any], layout: Layout) -> None:
    staged = storage.join(layout.rankings, "runs", done["score"]["run_id"])
    before = {uri: storage.read_bytes(uri) for uri, _ in storage.list_files(staged)}
    storage.delete(layout.run(done["score"]["run_id"]))
    storage.delete(staged)
    again = stages.run("score", config.build(SETTINGS, ["--score.max_actors", "1", "--score.min_actors", "1"]), quietly)
    assert again["run_id"] == done["score"]["run_id"]
    assert {uri: storage.read_bytes(uri) for uri, _ in storage.list_files(staged)} == before


def test_a_run_cut_off_finishes_only_what_is_missing(done: dict[str, Any], layout: Layout) -> None:
    run = done["score"]["run_id"]
    entries = dict(storage.list_files(storage.join(layout.run(run), "ledger")))
    lost = sorted(entries)[1]
    lost_file = storage.join(layout.rankings, storage.read_json(lost)["path"])
    before = storage.read_bytes(lost_file)
    storage.delete(lost)
    storage.delete(lost_file)
    again = stages.run("score", config.build(SETTINGS), quietly)
    assert (again["staged"], again["resumed"]) == (4, 3)
    assert storage.read_bytes(lost_file) == before
    assert again["published"]["new"] is False


def test_metrics_equal_an_independent_computation(
    done: dict[str, Any], layout: Layout, movielens: dict[str, Any]
) -> None:
    truth = {user: items[-1] for user, items in naive_histories(movielens).items()}
    table = rankings.read(layout.rankings)
    gain = hits = 0.0
    rows = zip(table["user_id"].to_pylist(), table["rank"].to_pylist(), table["item_id"].to_pylist(), strict=True)
    for user, rank, item in rows:
        if item == truth[user] and rank <= 10:
            gain, hits = gain + 1 / np.log2(rank + 1), hits + 1
    found = {row["name"]: row for row in done["evaluate"]["all_users"]}["llm ranking"]
    assert found["values"]["ndcg@10"] == pytest.approx(gain / 943)
    assert found["values"]["recall@10"] == pytest.approx(hits / 943)
    assert found["interval"]["ndcg@10"][0] <= gain / 943 <= found["interval"]["ndcg@10"][1]
    assert found["users"] == 943


def test_segments_add_up_to_all_users(done: dict[str, Any], layout: Layout) -> None:
    found = done["evaluate"]
    rows = {row["name"]: row for row in found["all_users"]}
    assert [segments["by"] for segments in found["segments"]] == ["history_length", "item_events"]
    for segments in found["segments"]:
        groups = [group for group in segments["groups"] if group["users"]]
        assert sum(group["users"] for group in groups) == 943 and len(groups) > 2
        for name, row in rows.items():
            for metric, value in row["values"].items():
                parts = [(g["users"], next(r for r in g["rows"] if r["name"] == name)) for g in groups]
                assert sum(n * part["values"][metric] for n, part in parts) / 943 == pytest.approx(value)
    ours = rankings.read(layout.rankings)
    shown = ours.filter(pc.less_equal(ours["rank"], 10))["item_id"]
    coverage = pc.count_distinct(shown).as_py() / buckets.read_parquet(layout.items).num_rows
    assert rows["llm ranking"]["beyond"]["coverage@10"] == pytest.approx(coverage)
    assert rows["llm ranking"]["beyond"]["diversity@10"] > 0 and rows["llm ranking"]["p_value"] == {}
    assert 0 < rows["popularity"]["p_value"]["ndcg@10"] <= 1
    assert [of["by"] for of in found["fairness"]["items"]] == ["popularity"]
    assert found["calibration"] is None and found["labelled"] is None
    assert json.loads(storage.read_bytes(layout.evaluation))["segments"] == json.loads(json.dumps(found["segments"]))


def test_what_sources_find_and_find_alone(done: dict[str, Any], layout: Layout, movielens: dict[str, Any]) -> None:
    truth = {user: items[-1] for user, items in naive_histories(movielens).items()}
    hits = {
        name: {
            row["user_id"] for row in buckets.read_parquet(layout.candidates(name)).to_pylist()
            if truth[row["user_id"]] in row["item_ids"][:100]
        }
        for name in ("item_item", "popularity")
    }  # fmt: skip
    found = {source["name"]: source for source in done["evaluate"]["sources"]}
    for name, other in (("item_item", "popularity"), ("popularity", "item_item")):
        assert found[name]["recall"]["recall@100"] == pytest.approx(len(hits[name]) / 943)
        assert found[name]["alone"]["alone@100"] == pytest.approx(len(hits[name] - hits[other]) / 943)
    union = hits["item_item"] | hits["popularity"]
    assert found["all of them"]["recall"]["recall@100"] == pytest.approx(len(union) / 943)
    merged = buckets.read_parquet(layout.candidates())
    lists = dict(zip(merged["user_id"].to_pylist(), merged["item_ids"].to_pylist(), strict=True))
    scored = sum(truth[user] in items[:100] for user, items in lists.items())
    assert found["what was scored"]["recall"]["recall@100"] == pytest.approx(scored / 943)


def test_item_item_reaches_its_known_quality(done: dict[str, Any]) -> None:
    found = {row["name"]: row["values"] for row in done["evaluate"]["all_users"]}
    assert found["item_item"]["ndcg@10"] == pytest.approx(0.0996, abs=5e-4)
    assert found["popularity"]["ndcg@10"] == pytest.approx(0.0443, abs=1e-3)


def test_ranker_directory_is_complete_and_has_curves(done: dict[str, Any], layout: Layout) -> None:
    names = {uri.rsplit("/", 1)[-1] for uri, _ in storage.list_files(layout.ranker)}
    wanted = {
        "model.safetensors",
        "tokenizer.json",
        "ranker.json",
        "README.md",
        "head.safetensors",
        "items.safetensors",
    }
    assert wanted <= names
    assert storage.list_files(storage.join(layout.training, "tensorboard"))
    assert done["train"]["steps"] == 6
    curves = storage.read_json(layout.curves)
    assert [step for step, _ in curves["loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in curves["validation"]] == [3, 6]
    assert max(value for _, value in curves["validation"]) == pytest.approx(done["train"]["best"])
    card = json.loads(storage.read_bytes(storage.join(layout.ranker, "ranker.json")))
    assert card["trained"] is True and card["layers"] == 1


def test_a_changed_setting_or_input_starts_a_new_run_and_the_old_one_stays_readable(
    done: dict[str, Any], layout: Layout
) -> None:
    from deltalake import DeltaTable

    before = DeltaTable(layout.rankings)
    again = stages.run("score", config.build(SETTINGS, ["--score.max_candidates", "30"]), quietly)
    assert again["run_id"] != done["score"]["run_id"]
    assert again["pairs"]["over_limit"] == 943 * 70
    assert set(pc.unique(rankings.read(layout.rankings)["run_id"]).to_pylist()) == {again["run_id"]}
    old = DeltaTable(layout.rankings, version=before.version()).to_pyarrow_dataset().to_table(columns=["run_id"])
    assert set(pc.unique(old["run_id"]).to_pylist()) == {done["score"]["run_id"]}


def test_reuse_skips_stages_whose_inputs_are_the_same(done: dict[str, Any]) -> None:
    settings = config.build(SETTINGS)
    for name in ("prepare", "embed", "train", "recall"):
        assert stages.run(name, settings, quietly, reuse=True).get("reused") is True, name


def why_score_fails(settings: config.Config) -> str:
    """The message alone: the exception's frames would keep the failed run's actors."""
    with pytest.raises(Exception, match="prompt probe") as caught:
        stages.run("score", settings, quietly)
    return str(user_error_in(caught.value))


def test_an_untouched_model_scores_by_yes_and_no(done: dict[str, Any], layout: Layout) -> None:
    output = storage.join(ROOT, "zero")
    overrides = {
        "model": {"items": "text", "head": "yes_no"},
        "prompt": {
            "before_candidate": "Would this person also like the film",
            "after_candidate": "? Answer yes or no. Answer:",
            "max_history": 5,
        },
        "score": {"model": "base", "output": output, "users_share": 0.02, "max_candidates": 10, "top_k": 10},
    }
    cut = {**overrides, "model": {**overrides["model"], "layers": 2}}
    assert "the model says ' yes' or ' no' with probability" in why_score_fails(config.build({**SETTINGS, **cut}))
    assert not storage.exists(output)
    summary = stages.run("score", config.build({**SETTINGS, **overrides}), quietly)
    assert summary["probe_difference"] < 1e-4
    assert 0 < summary["top10_kept"] <= 1
    assert 5 < summary["users"] < 40
    both = config.build({**SETTINGS, "evaluate": {
        "rankings": {"zero-shot": output}, "cutoffs": [5, 10], "segments": ["users.gender", "items.year"],
        "diversity_by": ["genres"],
    }})  # fmt: skip
    told = stages.run("evaluate", both, quietly)
    assert {row["users"] for row in told["same_users"]["zero-shot"]} == {summary["users"]}
    by_gender, by_year = told["segments"]
    assert {group["name"]: group["users"] for group in by_gender["groups"]} == {"male": 670, "female": 273}
    assert sum(group["users"] for group in by_year["groups"]) == 943
    assert {told["fairness"]["users"][0][side] for side in ("best", "worst")} == {"male", "female"}


def test_no_secret_is_in_any_log_summary_or_table(done: dict[str, Any], store: Any) -> None:
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    assert secret == store.secret_key
    import ray

    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    found = [
        f for f in session.rglob("*") if f.is_file() and f.stat().st_size < 50e6 and secret.encode() in f.read_bytes()
    ]
    assert found == []
    for uri, size in storage.list_files(ROOT):
        if size < 5e6:
            assert secret.encode() not in storage.read_bytes(uri), uri


def test_sources_beside_events_see_training_alone(done: dict[str, Any], movielens: dict[str, Any]) -> None:
    """Recent and segment popularity, the graph and closeness to it, as fuse asks for them: from training events."""
    layout = Layout(ROOT, before_validation=True)
    genres = pl.DataFrame(pl.from_arrow(movielens["items"])).select("item_id", pl.col("genres").str.split("|"))
    genres = genres.explode("genres").drop_nulls()
    heads, tails = genres["item_id"], genres["genres"]
    edges = {"head": heads, "relation": ["genre"] * len(genres), "tail": tails, "weight": [1.0] * len(genres)}
    buckets.write_parquet(pl.DataFrame(edges).to_arrow().cast(schema.edges(pa.int64())), layout.edges)
    try:
        merge = ["segment", "recent", "graph", "als", "ease", "popularity"]
        wanted = config.build(SETTINGS | {"recall": {
            "merge": merge, "history": "training", "recent": {"top": 30, "half_life_days": 7},
            "segment": {"top": 30, "columns": ["gender", "occupation"], "prior": 50}, "graph": {"top": 30},
            "als": {"top": 30, "factors": 8, "iterations": 2}, "ease": {"top": 30}, "closeness": {"weight": 1.0},
        }})  # fmt: skip
        found = recall.recall(wanted.recall, layout, quietly)
    finally:
        storage.delete(layout.edges)
    assert (found.users, found.no_candidates, found.empty_sources) == (943, 0, [])
    log = pl.DataFrame(pl.from_arrow(movielens["interactions"])).with_row_index().sort("user_id", "timestamp", "index")
    place = pl.int_range(pl.len()).over("user_id")
    log = log.filter(place < pl.len().over("user_id") - 2)  # the last is the target, the one before validates
    last = log["timestamp"].max()
    log = log.with_columns(weight=pl.lit(0.5).pow((last - pl.col("timestamp")) / (7 * 86_400)))
    recent = dict(log.group_by("item_id").agg(pl.col("weight").sum()).iter_rows())
    people = pl.DataFrame(pl.from_arrow(movielens["users"])).select("user_id", "gender", "occupation")
    by_group = log.join(people, on="user_id").group_by("gender", "occupation", "item_id").len()
    counts = {(g, o, i): n for g, o, i, n in by_group.iter_rows()}
    sizes = {(g, o): n for g, o, n in people.group_by("gender", "occupation").len().iter_rows()}
    overall = dict(log.group_by("item_id").len().iter_rows())
    group = {user: (gender, occupation) for user, gender, occupation in people.iter_rows()}
    merged = buckets.read_parquet(layout.candidates())
    for row in merged.slice(0, 40).to_pylist():
        mine = group[row["user_id"]]
        for place, item in enumerate(row["item_ids"]):
            share = (counts.get((*mine, item), 0) + 50 * overall.get(item, 0) / 943) / (sizes[mine] + 50)
            assert row["recall_score_segment"][place] == pytest.approx(share, rel=1e-5)
            assert row["recall_score_recent"][place] == pytest.approx(recent.get(item, 0.0), rel=1e-5, abs=1e-30)
    near = merged["recall_score_closeness"].combine_chunks().flatten()
    assert near.null_count < 0.01 * len(near) and pc.max(near).as_py() < 0
