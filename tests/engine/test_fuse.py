"""Scores fused by the real jobs on a mini cluster and an S3 server, from weights fitted on validation events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import yaml
from scipy.stats import rankdata, zscore
from typer.testing import CliRunner

from llmrec import assets, config, storage
from llmrec.cli import app
from llmrec.engine import diversity, fairness, stages
from llmrec.engine.fuse import fit, fuse
from llmrec.engine.prompts import load_prompts
from llmrec.engine.score import score
from llmrec.engine.session import user_error_in
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.ranker.model import Ranker, score_pair_by_pair
from llmrec.tables import buckets, rankings

USERS, ITEMS = 120, 30
RAW, ROOT = "s3://llmrec-test/raw-fuse", "s3://llmrec-test/fuse"
PARTS = ["ranker", "item_item", "popularity"]


def quietly(message: str) -> None:
    """A `say` for stages."""


def tables() -> dict[str, pa.Table]:
    """Users go on from an item to one of the next three in a ring; some never had more than a few."""
    rng = np.random.default_rng(0)
    log = []
    for user in range(USERS):
        item = int(rng.integers(ITEMS))
        for step in range(int(rng.integers(4, 12))):
            log.append((f"u{user:03}", f"i{item:02}", 100 + step))
            item = (item + int(rng.integers(1, 4))) % ITEMS
    users, items, at = zip(*log, strict=True)
    return {
        "items": pa.table({
            "item_id": [f"i{i:02}" for i in range(ITEMS)], "title": [f"w{i} w{i % 7}" for i in range(ITEMS)],
            "value": pa.array([None if i == 5 else 1.0 + i % 4 for i in range(ITEMS)]),
            "stock": [i - 1 for i in range(ITEMS)], "kind": [f"k{i % 4}|m{i % 3}" for i in range(ITEMS)],
            "born": [100 - 30 * (i % 3) for i in range(ITEMS)],
        }),
        "interactions": pa.table({"user_id": list(users), "item_id": list(items), "timestamp": list(at)}),
        "users": pa.table({
            "user_id": [f"u{user:03}" for user in range(USERS)], "side": [side_of(user) for user in range(USERS)],
        }),
    }  # fmt: skip


def side_of(user: int) -> str | None:
    return None if user == 7 else "left" if user % 3 else "right"


def settings(model: Any, root: str = ROOT, **sections: Any) -> config.Config:
    values: dict[str, Any] = {
        "root": root,
        "data": {**{name: f"{RAW}/{name}.parquet" for name in ("items", "interactions", "users")}, "buckets": 3},
        "prompt": {"max_history": 8, "before_history": "w1"},
        "model": {"base": str(model), "items": "token", "head": "retrieve"},
        "items": {"encoder": "", "id_start": 4},
        "train": {
            "workers": 1,
            "max_steps": 12,
            "users_per_step": 5,
            "validate_every": 6,
            "precision": "float32",
            "head_learning_rate": 1e-2,
        },
        "recall": {"merge": ["item_item", "popularity"], "candidates": 20},
        "score": {"top_k": 5, "precision": "float32", "keep_parts": True},
        "fusion": {"method": "linear"},
        "evaluate": {"cutoffs": [5]},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return config.build(values)


@pytest.fixture(scope="module")
def made(cluster: Any, tiny_model: Any) -> dict[str, Any]:
    for name, table in tables().items():
        buckets.write_parquet(table, f"{RAW}/{name}.parquet")
    wanted = settings(tiny_model)
    done = {name: stages.run(name, wanted, quietly) for name in ("prepare", "train", "recall", "fuse", "score")}
    return done | {"settings": wanted}


def published(table: str) -> pl.DataFrame:
    found = rankings.opened(table)
    assert found is not None
    return pl.DataFrame(pl.from_arrow(rankings.read(table)))


def parts(wanted: config.Config, run_id: str) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(buckets.read_parquet(Layout.of(wanted).score_parts(run_id))))


def fused_by_hand(of: pl.DataFrame, fusion: dict[str, Any]) -> list[np.ndarray]:
    """Each user's scores from the saved weights and the kept parts, by scipy."""
    found = []
    for row in of.iter_rows(named=True):
        total = np.zeros(len(row["item_ids"]))
        for name, (plain, reciprocal) in zip(fusion["parts"], np.reshape(fusion["weights"], (-1, 2)), strict=True):
            values = np.asarray(row[f"score_{name}"], np.float64)
            if np.ptp(values) == 0:
                continue
            ranks = rankdata(-values)
            total += plain * zscore(values)
            total += reciprocal * 11 * (1 / (10 + ranks) - 1 / (10 + (len(values) + 1) / 2))
        found.append(total)
    return found


def test_lists_are_in_the_order_of_the_parts_weighed_as_fitted(made: dict[str, Any]) -> None:
    wanted, run_id = made["settings"], made["score"]["run_id"]
    fusion = storage.read_json(Layout.of(wanted).fusion)["fusion"]
    assert fusion["parts"] == PARTS
    kept, rows = parts(wanted, run_id), published(Layout.of(wanted).rankings)
    assert kept["user_id"].n_unique() == kept.height == USERS
    lists = {user: rows.filter(user_id=user).sort("rank") for user in kept["user_id"]}
    for row, scores in zip(kept.iter_rows(named=True), fused_by_hand(kept, fusion), strict=True):
        np.testing.assert_allclose(row["scores"], scores, atol=1e-4)
        likely = np.exp(scores - scores.max())
        likely *= fusion["found"] / likely.sum()
        best = lists[row["user_id"]]
        order = sorted(range(len(scores)), key=lambda i: (-np.float32(row["scores"][i]), row["item_ids"][i]))[:5]
        assert best["item_id"].to_list() == [row["item_ids"][i] for i in order]
        np.testing.assert_allclose(best["score"], scores[order], atol=1e-4)
        np.testing.assert_allclose(best["probability"], likely[order], rtol=1e-3)
        np.testing.assert_allclose(best["ranker_score"], np.asarray(row["score_ranker"])[order])


def test_weights_are_fitted_to_validation_events_as_if_they_had_not_happened(made: dict[str, Any]) -> None:
    wanted = made["settings"]
    layout = Layout.of(wanted)
    # Recall from training events alone, under another root.
    apart = settings(wanted.model.base, f"{ROOT}-apart", recall={**wanted.recall.model_dump(exclude_unset=True),
                                                                 "history": "training"})  # fmt: skip
    for stage in ("prepare", "recall"):
        stages.run(stage, apart, quietly)
    candidates = pl.DataFrame(pl.from_arrow(buckets.read_parquet(Layout.of(apart).candidates())))
    lists = dict(zip(candidates["user_id"], candidates["item_ids"].to_list(), strict=True))
    past = pl.DataFrame(pl.from_arrow(buckets.read_parquet(layout.histories)))
    found = [
        bool(set(row["item_ids"][row["train_length"] :]) & set(lists[row["user_id"]]))
        for row in past.iter_rows(named=True)
        if len(row["item_ids"]) > row["train_length"]
    ]
    assert made["fuse"]["found"] == pytest.approx(np.mean(found), abs=1e-4)
    assert made["fuse"]["users"] == sum(found) > 20
    assert sum(made["fuse"]["importance"].values()) == pytest.approx(1)
    assert storage.list_files(layout.scratch("fuse")) == [], "what it made on the way stays"
    staged = {uri.removeprefix(layout.runs).split("/")[1] for uri, _ in storage.list_files(layout.runs)}
    assert staged == {made["score"]["run_id"]}


def test_what_each_part_adds_is_evaluated(made: dict[str, Any]) -> None:
    wanted = made["settings"]
    told = stages.run("evaluate", wanted, quietly)
    page = storage.read_bytes(told["report"]).decode()
    assert not told["parts_unknown"]
    rows = {row["name"]: row["values"]["ndcg@5"] for row in told["all_users"]}
    assert {"the ranker alone", *(f"fused without {name}" for name in PARTS)} <= set(rows)
    alone = settings(
        wanted.model.base, fusion={"method": "none"}, score={"keep_parts": False, "output": f"{ROOT}-alone"}
    )
    stages.run("score", alone, quietly)
    by_itself = stages.run("evaluate", alone, quietly)["all_users"][0]
    assert rows["the ranker alone"] == pytest.approx(by_itself["values"]["ndcg@5"])
    of_ranker = published(f"{ROOT}-alone")
    assert of_ranker["score"].equals(of_ranker["ranker_score"]) and of_ranker["probability"].null_count() == len(
        of_ranker
    )
    both = of_ranker.join(published(Layout.of(wanted).rankings), on=["user_id", "item_id"])
    assert len(both) > 100
    np.testing.assert_allclose(both["score"], both["ranker_score_right"], rtol=1e-6)
    assert len({round(value, 6) for value in rows.values()}) > 2, "no fusion differs from another"
    assert f"Run {told['run_id']}" in page and "The fusion with less" in page and "Some users" in page
    assert len(page) < 300_000


def judge(settings: config.Config, tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """`llmrec evaluate`: its exit code, figures and lines."""
    file, figures = tmp_path / "config.yaml", tmp_path / "gate.json"
    figures.unlink(missing_ok=True)
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    ran = CliRunner().invoke(app, ["evaluate", "--config", str(file), "--json", str(figures), *arguments])
    return ran.exit_code, json.loads(figures.read_text()) if figures.exists() else {}, ran.output


def test_a_staged_run_is_shown_only_if_it_meets_its_conditions(made: dict[str, Any], tmp_path: Path) -> None:
    better = settings(made["settings"].model.base, score={"output": f"{ROOT}-gated", "publish": False})
    wanted = ("--promote-if", "ndcg@5 not worse", "--promote-if", "ndcg@5 >= published - 0.001",
              "--promote-if", "coverage@5 >= published")  # fmt: skip
    first = stages.run("score", better, quietly)["run_id"]
    code, found, said = judge(better, tmp_path, *wanted, "--promote-if", "coverage@5 > 1")
    assert (code, found["holds"], found["published_run"]) == (3, False, None)
    assert [d["state"] for d in found["decisions"]] == ["nothing published"] * 3 + ["compared"]
    code, found, said = judge(better, tmp_path, *wanted, "--publish")
    assert (code, found["holds"], found["users"]) == (0, True, USERS), said
    assert rankings.snapshot(f"{ROOT}-gated").run_id == first

    code, found, said = judge(better, tmp_path, *wanted)
    assert (code, found["run_id"], found["published_run"]) == (0, first, first)
    for decision in found["decisions"]:
        assert decision["difference"] == 0 and decision["candidate"] == decision["published"] > 0
        assert (decision["low"], decision["high"]) == ((None, None) if "coverage" in decision["metric"] else (0, 0))
    truth = pl.DataFrame(pl.from_arrow(buckets.read_parquet(Layout.of(better).targets)))
    held_out = dict(zip(truth["user_id"], truth["item_ids"].to_list(), strict=True))
    rows = published(f"{ROOT}-gated")
    gains = [1 / np.log2(r["rank"] + 1) for r in rows.to_dicts() if r["item_id"] in held_out[r["user_id"]]]
    assert found["decisions"][0]["candidate"] == pytest.approx(sum(gains) / USERS)
    assert found["decisions"][2]["candidate"] == pytest.approx(rows["item_id"].n_unique() / ITEMS)

    worse = settings(made["settings"].model.base, score={**better.score.model_dump(exclude_unset=True),
                                                         "max_candidates": 1})  # fmt: skip
    second = stages.run("score", worse, quietly)["run_id"]
    code, found, said = judge(worse, tmp_path, *wanted, "--publish")
    assert (code, found["run_id"], found["published_run"], found["holds"]) == (3, second, first, False)
    assert [d["holds"] for d in found["decisions"]][:2] == [False, False] and found["decisions"][0]["high"] < 0
    assert said.count("FAILS") >= 2 and "FAILS  ndcg@5 not worse: ndcg@5 0." in said
    assert rankings.snapshot(f"{ROOT}-gated").run_id == first, "a run that failed was published"
    assert judge(worse, tmp_path, *wanted, "--run", first)[:2][0] == 0
    assert judge(worse, tmp_path)[0] != 0, "no condition"


def test_items_weigh_as_their_columns_say(made: dict[str, Any]) -> None:
    weighed, apart = {"item_weights": {"value": 2.0}}, {"output": f"{ROOT}-valued"}
    wanted = settings(made["settings"].model.base, fusion=weighed, score=apart)
    done = stages.run("score", wanted, quietly)
    value = dict(zip(tables()["items"]["item_id"].to_pylist(), tables()["items"]["value"].to_pylist(), strict=True))
    before, after = (
        parts(of, run_id).select("user_id", "item_ids", "scores").explode("item_ids", "scores")
        for of, run_id in ((made["settings"], made["score"]["run_id"]), (wanted, done["run_id"]))
    )
    both = before.join(after, on=["user_id", "item_ids"])
    assert len(both) == len(before) == len(after)
    added = [2 * np.log(value[item] or 1.0) for item in both["item_ids"]]
    np.testing.assert_allclose(both["scores_right"] - both["scores"], added, atol=1e-4)


def likeness(a: str, b: str) -> float:
    one, other = set(a.split("|")), set(b.split("|"))
    return len(one & other) / len(one | other)


def chosen_by_hand(row: dict[str, Any], kinds: dict[str, str], trade: float, window: int, most: int) -> list[str]:
    """One user's list by maximal marginal relevance within a quota, from his kept scores."""
    best = sorted(zip(row["item_ids"], row["scores"], strict=True), key=lambda p: (-p[1], p[0]))[:window]
    low, high = best[-1][1], best[0][1]
    found: list[str] = []
    for _ in range(5):

        def worth(pair: tuple[str, float]) -> float:
            nearest = max((likeness(kinds[pair[0]], kinds[other]) for other in found), default=0.0)
            return (1 - trade) * (pair[1] - low) / (high - low) - trade * nearest

        kept = [kinds[item].split("|") for item in found]
        left = [
            pair
            for pair in best
            if pair[0] not in found and all(sum(k in of for of in kept) < most for k in kinds[pair[0]].split("|"))
        ]
        if left:
            found.append(max(left, key=worth)[0])
    return found  # fmt: skip


def test_lists_are_chosen_of_the_kept_scores_within_their_rules(made: dict[str, Any]) -> None:
    apart, items = f"{ROOT}-reranked", tables()["items"]
    freshness = {"column": "born", "half_life_days": 1e-3, "reference": 100}
    wanted = settings(
        made["settings"].model.base, score={"output": apart},
        rerank={"method": "mmr", "trade": 0.4, "window": 12, "by": ["kind"], "quotas": {"kind": 2},
                "freshness": freshness},
    )  # fmt: skip
    done = stages.run("score", wanted, quietly)
    assert done["run_id"] != made["score"]["run_id"] and done["pairs"]["in"] == made["score"]["pairs"]["in"]
    assert done["pairs"]["ranked"] + done["pairs"]["below_top_k"] == sum(
        made["score"]["pairs"][end] for end in ("ranked", "below_top_k")
    )
    kinds = dict(zip(items["item_id"].to_pylist(), items["kind"].to_pylist(), strict=True))
    born = dict(zip(items["item_id"].to_pylist(), items["born"].to_pylist(), strict=True))
    kept, plain = (parts(of, run) for of, run in ((wanted, done["run_id"]), (wanted, made["score"]["run_id"])))
    rows, short, moved = published(apart), 0, 0
    for row, before in zip(kept.iter_rows(named=True), plain.iter_rows(named=True), strict=True):
        aged = [
            s - np.log(2) * (100 - born[i]) / 86.4 for i, s in zip(before["item_ids"], before["scores"], strict=True)
        ]
        np.testing.assert_allclose(row["scores"], aged, atol=1e-5)
        found = rows.filter(user_id=row["user_id"])
        assert found["item_id"].to_list() == chosen_by_hand(row, kinds, 0.4, 12, 2)
        assert found["rank"].to_list() == list(range(1, len(found) + 1))
        own = dict(zip(row["item_ids"], row["scores"], strict=True))
        assert found["score"].to_list() == [own[item] for item in found["item_id"]]
        short += len(found) < 5
        moved += not found["score"].is_sorted(descending=True)
    assert done["users_short"] == short and moved > 20
    told = diversity.curve(wanted, Layout.of(wanted), quietly, [0.4, 1.0], ["mmr"])
    by_trade = {point.trade: point for point in told.points}
    assert (told.lists, told.users, told.k) == (USERS, USERS, 5)
    assert by_trade[0.0].unlikeness < min(by_trade[0.4].unlikeness, by_trade[1.0].unlikeness)
    assert by_trade[0.4].coverage == rows["item_id"].n_unique() / ITEMS
    evaluated = {row["name"]: row for row in stages.run("evaluate", wanted, quietly)["all_users"]}
    ours = evaluated["llm ranking"]
    assert by_trade[0.4].ndcg == pytest.approx(ours["values"]["ndcg@5"])
    assert by_trade[0.4].interval == pytest.approx(tuple(ours["interval"]["ndcg@5"]), abs=0.02)
    before = evaluated["before rerank"]["values"]["ndcg@5"]
    assert before != ours["values"]["ndcg@5"]
    lists = rows.sort("rank").group_by("user_id").agg("item_id")["item_id"].to_list()
    means = [
        np.mean([1 - likeness(kinds[a], kinds[b]) for n, a in enumerate(of) for b in of[:n]])
        for of in lists
        if len(of) > 1
    ]
    assert by_trade[0.4].unlikeness == pytest.approx(np.mean(means), abs=1e-6)


def floored_by_hand(row: dict[str, Any], theirs: set[str], share: float, window: int) -> list[str]:
    """A user's list of 5: in its beginning of k places floor(share * k) of some items, if the window has them."""
    order = sorted(range(len(row["scores"])), key=lambda i: (-np.float32(row["scores"][i]), row["item_ids"][i]))
    left, found = [row["item_ids"][i] for i in order[:window]], []
    while left and len(found) < 5:
        due = sum(i in theirs for i in found) < int(share * (len(found) + 1) + 1e-9)
        found.append(next((i for i in left if i in theirs), left[0]) if due else left[0])
        left.remove(found[-1])
    return found


def test_what_a_floor_gives_some_items_and_costs_which_users(made: dict[str, Any]) -> None:
    wanted = settings(made["settings"].model.base, rerank={"window": 15})
    told = fairness.curve(wanted, Layout.of(wanted), quietly, "kind", "m1", [0.6, 0.3], "users.side")
    assert [point.share for point in told.points] == [0, 0.3, 0.6]
    theirs = {i for i, k in zip(*(tables()["items"][c].to_pylist() for c in ("item_id", "kind")), strict=True)
              if "m1" in k.split("|")}  # fmt: skip
    assert (told.catalogue, told.lists, told.users) == (len(theirs) / ITEMS, USERS, USERS)
    truth = pl.DataFrame(pl.from_arrow(buckets.read_parquet(Layout.of(wanted).targets)))
    had = {user: items[0] for user, items in truth.iter_rows()}
    kept = list(parts(wanted, told.run_id).iter_rows(named=True))
    discounts = 1 / np.log2(np.arange(5) + 2)
    for point in told.points:
        lists = {row["user_id"]: floored_by_hand(row, theirs, point.share, 15) for row in kept}
        gains = {u: sum(discounts[: len(of)][[i == had[u] for i in of]]) for u, of in lists.items()}
        assert point.ndcg == pytest.approx(np.mean(list(gains.values())))
        assert point.short == np.mean([sum(i in theirs for i in of) < int(point.share * 5) for of in lists.values()])
        for group in point.groups:
            users = [u for u in lists if (side_of(int(u[1:])) or "(missing)") == group.name]
            assert group.users == len(users) and group.ndcg == pytest.approx(np.mean([gains[u] for u in users]))
            seen = [d for u in users for d, i in zip(discounts, lists[u], strict=False) if i in theirs]
            every = sum(sum(discounts[: len(lists[u])]) for u in users)
            assert group.exposure == pytest.approx(sum(seen) / every)
        assert point.gap is not None and {point.gap.best, point.gap.worst} == {"left", "right"}
    assert told.points[0].change == (0, 0)
    assert told.points[0].exposure < told.points[1].exposure < told.points[2].exposure

    apart = settings(
        made["settings"].model.base, score={"output": f"{ROOT}-floored"},
        rerank={"window": 15, "least": {"kind": {"m1": 0.6}}},
    )  # fmt: skip
    stages.run("score", apart, quietly)
    shown = published(f"{ROOT}-floored").sort("user_id", "rank").group_by("user_id", maintain_order=True).agg("item_id")
    assert dict(shown.iter_rows()) == {row["user_id"]: floored_by_hand(row, theirs, 0.6, 15) for row in kept}

    with pytest.raises(UserError, match=r"no item has 'm9' in column 'kind', which rerank.least names"):
        fairness.curve(wanted, Layout.of(wanted), quietly, "kind", "m9", [0.5])
    with pytest.raises(UserError, match="the shares of 'kind' add up to more than 1"):
        settings(made["settings"].model.base, rerank={"least": {"kind": {"m1": 0.6, "m2": 0.5}}})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"fusion": {"method": "linear", "model": f"{ROOT}/nothing.json"}}, "nothing.json: no such file"),
        ({"fusion": {"method": "linear", "item_weights": {"stock": 1.0}}}, "column 'stock' of item 'i00' is -1;"),
        ({"fusion": {"method": "linear", "item_weights": {"worth": 1.0}}}, "column 'worth' is missing"),
        ({"fusion": {"method": "linear", "item_weights": {"title": 1.0}}}, "column 'title' has type string"),
    ],
)  # fmt: skip
def test_what_cannot_be_applied_is_named(made: dict[str, Any], sections: dict[str, Any], message: str) -> None:
    wanted = settings(made["settings"].model.base, **sections)
    refused = wanted.model_copy(update={"score": wanted.score.model_copy(update={"output": f"{ROOT}-refused"})})
    with pytest.raises(Exception) as error:
        score(refused, Layout.of(refused), quietly)
    told = user_error_in(error.value)
    assert told is not None and message in str(told)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"fusion": {"method": "none"}}, "fusion.method = none: nothing to fit"),
        ({"train": {"events": "all"}}, "train.events = all: the ranker has seen the validation events"),
    ],
)
def test_what_cannot_be_fitted_is_named(made: dict[str, Any], sections: dict[str, Any], message: str) -> None:
    wanted = settings(made["settings"].model.base, **sections)
    with pytest.raises(UserError, match=message):
        fuse(wanted, Layout.of(wanted), quietly)


@pytest.mark.parametrize(
    ("parts", "validated", "message"),
    [
        ((), False, "histories: no validation events that weights could be fitted on; set data.split"),
        (("ranker", "graph"), True, r"fusion.parts names 'graph', .* \(they have: ranker, item_item, popularity\)"),
    ],
)
def test_parts_that_give_no_weights_are_named(
    made: dict[str, Any], parts: tuple[str, ...], validated: bool, message: str, tmp_path: Any
) -> None:
    layout = Layout.of(made["settings"])
    (_, kept), *_ = buckets.bucket_files(layout.score_parts(made["score"]["run_id"])).items()
    (_, past), *_ = buckets.bucket_files(layout.histories).items()
    if not validated:
        histories = pl.DataFrame(pl.from_arrow(buckets.read_parquet(past)))
        past = str(tmp_path / "histories.parquet")
        histories.with_columns(train_length=pl.col("item_ids").list.len().cast(pl.Int32)).write_parquet(past)
    with pytest.raises(UserError, match=message):
        fit([(kept, past)], layout, config.Fusion(method="linear", parts=parts))


def test_users_are_ranked_in_the_context_that_they_are_asked_about_in(cluster: Any, tiny_model: Any) -> None:
    """From the log to the fused list: what the ranker reads and what the context's part says, against loops."""
    raw, root = f"{RAW}-context", f"{ROOT}-context"
    given, rng = tables(), np.random.default_rng(1)
    places = [["home", "work", None][int(rng.integers(3))] for _ in range(given["interactions"].num_rows)]
    given["interactions"] = given["interactions"].append_column("place", pa.array(places))
    for name, table in given.items():
        buckets.write_parquet(table, f"{raw}/{name}.parquet")
    data = (
        {name: f"{raw}/{name}.parquet" for name in ("items", "interactions")}
        | {"users": ""}
        | {"context": ["place", "time:hour"]}
    )
    short = {"max_steps": 4, "validate_every": 4, "workers": 1, "head_learning_rate": 0.1}
    wanted = settings(
        tiny_model, root, data=data, prompt={"context": "{place}"}, train=short,
        recall={"context": {"top": 5, "prior": 2.0}, "merge": ["item_item", "popularity", "context"]},
    )  # fmt: skip
    for stage in ("prepare", "train", "recall", "fuse"):
        stages.run(stage, wanted, quietly)
    layout = Layout.of(wanted)
    assert storage.read_json(layout.fusion)["fusion"]["parts"] == ["ranker", "item_item", "popularity", "context"]
    past = {row["user_id"]: row for row in buckets.read_parquet(layout.histories).to_pylist()}
    assert {hour for row in past.values() for hour in row["context_hour"]} == {"00"}

    ranker = Ranker.from_pretrained(storage.local_directory(layout.ranker, assets.cache_directory() / "models"))
    assert ranker.contexts is not None and ranker.contexts.values == {"place": ["home", "work"]}
    prompts = load_prompts(ranker, layout)
    ids = prompts.catalogue.ids.to_pylist()
    for history, asked in (("known", "now"), ("training", "validation")):
        changed = wanted.model_copy(update={
            "score": wanted.score.model_copy(update={"history": history, "output": f"{root}-{history}"}),
        })  # fmt: skip
        run_id = score(changed, layout, quietly).run_id
        seen = set()
        for row in parts(wanted, run_id).iter_rows(named=True):
            user = past[row["user_id"]]
            until = None if history == "known" else user["train_length"]
            place = user["now_place"] if asked == "now" else user["context_place"][user["train_length"]]
            if place in seen:
                continue
            seen.add(place)
            context = ranker.read_contexts(pa.table({"place": pa.array([place], pa.string())}))
            rows = np.asarray([ids.index(item) for item in user["item_ids"][:until]])
            listed = np.asarray([ids.index(item) for item in row["item_ids"]])
            request = prompts.request(prompts.plain, rows, listed, context)
            alone = score_pair_by_pair(ranker, request).numpy()
            np.testing.assert_allclose(row["score_ranker"], alone, rtol=1e-3, atol=1e-3)
            unaware = score_pair_by_pair(ranker, prompts.request(prompts.plain, rows, listed)).numpy()
            assert (place is None) == np.allclose(alone, unaware, rtol=1e-6)
            if history == "known":
                told = pmi(past, "place", place, row["item_ids"], 2.0) + pmi(past, "hour", "00", row["item_ids"], 2.0)
                np.testing.assert_allclose(row["score_context"], told, atol=1e-4)
        assert seen == {"home", "work", None}


def pmi(past: dict[str, Any], name: str, value: str | None, items: list[str], prior: float) -> np.ndarray:
    """log P(value | item) - log P(value) of each item, by loops over all that users had in contexts that are known."""
    if value is None:
        return np.zeros(len(items))
    had = {
        (user, item, told)
        for user, row in past.items()
        for item, told in zip(row["item_ids"], row[f"context_{name}"], strict=True)
        if told is not None
    }
    share = sum(told == value for *_, told in had) / len(had)
    found = []
    for item in items:
        of_item = [told for _, other, told in had if other == item]
        found.append(np.log((of_item.count(value) + prior * share) / (len(of_item) + prior) / share))
    return np.asarray(found)
