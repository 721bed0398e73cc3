"""Views, carts and buys through the real jobs, on a mini cluster and an S3 server: what they weigh, and where."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llmrec import config
from llmrec.engine import stages
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.tables import buckets, rankings

ROOT = "s3://llmrec-test/kinds"
USERS, ITEMS = 40, 16
WEIGHTS = {"view": 0.25, "cart": 0.5, "buy": 1.0, "scroll": 0.0}


def quietly(message: str) -> None:
    """A `say` for stages."""


def log() -> list[tuple[int, int, int, str | None]]:
    rng = np.random.default_rng(0)
    rows: list[tuple[int, int, int, str | None]] = []
    for user in range(USERS):
        for step, item in enumerate(rng.permutation(ITEMS)[:9].tolist()):
            kind = str(rng.choice(["view", "view", "cart", "buy"]))
            rows += [(user, item, 10 * step + 1, what) for what in dict.fromkeys(["view", kind])]
        rows += [(user, 0, 200, "scroll"), (user, int(rng.integers(ITEMS)), 300, "view")]
    return [*rows, (0, 1, 5, None), (0, 1, 5, "glance")]


@pytest.fixture(scope="module")
def made(cluster: Any, tiny_model: Path) -> tuple[config.Config, dict[str, Any]]:
    raw = {name: f"{ROOT}/raw/{name}.parquet" for name in ("items", "interactions")}
    users, items, times, kinds = zip(*log(), strict=True)
    names = ["user_id", "item_id", "timestamp", "kind"]
    buckets.write_parquet(pa.table([list(users), list(items), list(times), list(kinds)], names), raw["interactions"])
    ids = list(range(ITEMS))
    buckets.write_parquet(pa.table({"item_id": ids, "title": [f"w{i}" for i in ids]}), raw["items"])
    wanted = config.build({
        "root": ROOT,
        "data": {**raw, "buckets": 3, "columns": {"event": "kind"}, "event_weights": WEIGHTS,
                 "target_events": ["buy"]},
        "prompt": {"max_history": 8},
        "model": {"base": str(tiny_model), "items": "token", "head": "rank"},
        "items": {"encoder": "", "id_start": 4},
        "train": {"workers": 1, "max_steps": 4, "users_per_step": 4, "validate_every": 2, "precision": "float32"},
        "recall": {
            "als": {"top": ITEMS, "factors": 3, "iterations": 4}, "retrieve": {"top": 4, "actors": 1},
            "item_item": {"top": ITEMS, "shrinkage": 1.0, "decays": [1.0]}, "popularity": {"top": ITEMS},
            "merge": ["item_item", "als", "popularity", "retrieve"], "exclude_seen": False,
        },
        "fusion": {"method": "linear"},
        "score": {"top_k": 5, "precision": "float32", "exclude_seen": False, "max_tied": 1.0},
    })  # fmt: skip
    names = ["prepare", "train", "recall", "fuse", "score", "evaluate"]
    return wanted, {name: stages.run(name, wanted, quietly) for name in names}


def known(wanted: config.Config) -> tuple[dict[int, list[tuple[int, float]]], np.ndarray]:
    """Of each user his events of the histories table, and [users, items], the greatest weight of each."""
    rows = buckets.read_parquet(Layout.of(wanted).histories).to_pylist()
    events = {row["user_id"]: list(zip(row["item_ids"], row["weights"], strict=True)) for row in rows}
    matrix = np.zeros((USERS, ITEMS))
    for user, of in events.items():
        for item, weight in of:
            matrix[user, item] = max(matrix[user, item], weight)
    return events, matrix


def test_every_row_is_counted_and_buys_alone_are_held_out(made: tuple[config.Config, dict[str, Any]]) -> None:
    wanted, done = made
    prepared, layout = done["prepare"], Layout.of(wanted)
    aside = prepared["set_aside"]
    assert prepared["rows_in"] == len(log()) == prepared["events_kept"] + sum(aside.values())
    assert (aside["unknown_event"], aside["dropped_event"]) == (2, USERS)
    quarantined = buckets.read_parquet(layout.quarantine("prepare"))["reason_code"].to_pylist()
    assert "dropped_event" not in quarantined and quarantined.count("unknown_event") == 2
    truth = {row["user_id"]: row["item_ids"] for row in buckets.read_parquet(layout.targets).to_pylist()}
    events, _ = known(wanted)
    assert set(events) == set(range(USERS))
    for user in range(USERS):
        heaviest: dict[tuple[int, int], str] = {}  # the kind that stays of each time and item
        for who, item, time, kind in log():
            if who == user and kind in ("view", "cart", "buy"):
                heaviest[time, item] = max(heaviest.get((time, item), "view"), kind, key=WEIGHTS.__getitem__)
        bought = [t for (t, _), kind in heaviest.items() if kind == "buy"]
        end = max(bought, default=1000)
        assert events[user] == [(i, WEIGHTS[kind]) for (t, i), kind in sorted(heaviest.items()) if t < end]
        assert truth.get(user, []) == [i for t, i in heaviest if t == end]
    assert len(truth) == sum(1 for user in range(USERS) if any(who == user and k == "buy" for who, *_, k in log()))


def test_sources_say_what_weights_make_of_histories(made: tuple[config.Config, dict[str, Any]]) -> None:
    wanted, _ = made
    layout = Layout.of(wanted)
    events, x = known(wanted)
    users = buckets.read_parquet(layout.popularity)["users"].to_pylist()
    assert users == (x > 0).sum(0).tolist()  # which tells of users, whatever their events count
    length = (x**2).sum(0)
    similar = (x.T @ x) / (np.sqrt(np.outer(length, length)) + 1.0)
    np.fill_diagonal(similar, 0)
    for row in buckets.read_parquet(layout.candidates()).to_pylist():
        user, items = row["user_id"], row["item_ids"]
        np.testing.assert_allclose(row["recall_score_popularity"], x.sum(0)[items], rtol=1e-5)
        mine = np.zeros(ITEMS)
        for place, (item, _) in enumerate(events[user]):
            mine[item] = x[user, item] * 0.85 ** (len(events[user]) - 1 - place)
        for name, profile in (("item_item", mine), ("item_item_1", x[user])):
            found = np.nan_to_num(np.asarray(row[f"recall_score_{name}"], float))
            np.testing.assert_allclose(found, (profile @ similar)[items], rtol=1e-4, atol=1e-6)


def test_als_folds_users_in_by_their_weights(made: tuple[config.Config, dict[str, Any]]) -> None:
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy import sparse

    wanted, _ = made
    _, x = known(wanted)
    layout, asked = Layout.of(wanted), wanted.recall.als
    order = [row["user_id"] for row in buckets.read_parquet(layout.histories).to_pylist()]
    confidence = sparse.csr_matrix(np.where(x > 0, 1 + asked.alpha * x, 0)[order].astype(np.float32))
    model = AlternatingLeastSquares(3, asked.regularization, 1.0, iterations=4, random_state=0, num_threads=1)
    model.fit(confidence, show_progress=False)
    scores = model.recalculate_user(np.arange(USERS), confidence) @ model.item_factors.T
    rows = {row["user_id"]: row for row in buckets.read_parquet(layout.candidates()).to_pylist()}
    for place, user in enumerate(order):
        found = np.nan_to_num(np.asarray(rows[user]["recall_score_als"], float))  # who has no history, none
        np.testing.assert_allclose(found, scores[place][rows[user]["item_ids"]], rtol=2e-2, atol=2e-3)


def test_everyone_is_ranked_and_who_bought_is_evaluated(made: tuple[config.Config, dict[str, Any]]) -> None:
    wanted, done = made
    lists = Counter(rankings.read(Layout.of(wanted).rankings)["user_id"].to_pylist())
    assert lists == dict.fromkeys(range(USERS), 5)
    bought = {who for who, *_, kind in log() if kind == "buy"}
    assert done["evaluate"]["all_users"][0]["users"] == len(bought)


def test_a_log_without_the_column_is_told_in_one_line(made: tuple[config.Config, dict[str, Any]]) -> None:
    wanted, _ = made
    values = wanted.model_dump(exclude_unset=True)
    values["data"]["columns"] = {"event": "what"}
    with pytest.raises(UserError, match=r"column 'what', whose kinds data\.event_weights weighs, is missing") as caught:
        stages.run("prepare", config.build(values), quietly)
    assert "\n" not in str(caught.value)
