"""The shop through the real stages on a cluster, small and with tiny models: the known truth is found, rules hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import word_models
import yaml

from llmrec import config
from llmrec.data import shop
from llmrec.local import example_shop, examples
from llmrec.local.example_shop import FIT, HOUR, NDCG, ORACLE, POPULAR, PUBLISHED, RANDOM
from llmrec.tables import buckets, rankings

HERE = Path(__file__).parents[2]
ROOT = "s3://llmrec-test/shop"
CUSTOMERS, PRODUCTS, QUOTA = 150, 192, 5


def quietly(message: str) -> None:
    """A `say` for stages."""


def settings(decoder: str, encoder: str) -> config.Config:
    """The example's own configuration with tiny models, elsewhere."""
    values = yaml.safe_load((HERE / example_shop.EXAMPLE.config).read_text())
    values["root"] = ROOT
    for name in ("items", "interactions", "users"):
        values["data"][name] = f"{ROOT}/raw/{name}.parquet"
    values["score"]["blocked_items"] = f"{ROOT}/raw/blocked.parquet"
    values["data"]["buckets"] = 2
    values["model"] |= {"base": decoder, "layers": None}
    values["items"] |= {"encoder": encoder, "max_tokens": 48, "actors": 1}
    values["train"] |= {"workers": 1, "epochs": 15, "learning_rate": 3e-3, "head_learning_rate": 1e-2, "average": 0.9}
    return config.build(values)


@pytest.fixture(scope="module")
def played(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[shop.World, config.Config, dict[str, Any]]:
    world = shop.make(CUSTOMERS, PRODUCTS)
    items = world.tables["items"]
    texts = [text for name in ("title", "category", "brand") for text in items[name].to_pylist()]
    wanted = settings(*word_models.save([*texts, "by", ","], tmp_path_factory.mktemp("words")))
    rounds, changes = examples.play(replace(example_shop.EXAMPLE, variants={}), wanted, world, quietly)
    assert len(rounds) == 1 and changes is None
    return world, wanted, rounds[0]


def test_the_taste_is_found_better_than_by_popularity(played: tuple[Any, Any, dict[str, Any]]) -> None:
    figures = played[2]["figures"]
    for what in (FIT, HOUR, NDCG):
        others = [figures[f"{what}, {name}"] for name in (POPULAR, RANDOM) if f"{what}, {name}" in figures]
        assert max(others) < figures[f"{what}, {PUBLISHED}"] < figures[f"{what}, {ORACLE}"], (what, figures)
    assert figures[f"{FIT}, {PUBLISHED}"] > 2 * figures[f"{FIT}, {POPULAR}"]


def test_rules_hold(played: tuple[shop.World, config.Config, dict[str, Any]]) -> None:
    world, wanted, done = played
    shown = pl.DataFrame(pl.from_arrow(rankings.read(f"{ROOT}/rankings")))
    assert shown["user_id"].n_unique() == CUSTOMERS
    blocked = set(buckets.read_parquet(wanted.score.blocked_items)["item_id"].to_pylist())
    assert blocked and not blocked & set(shown["item_id"]) and done["summaries"]["score"]["pairs"]["blocked"] > 0
    category = pl.DataFrame(pl.from_arrow(world.tables["items"])).select("item_id", "category")
    most = shown.join(category, on="item_id").group_by("user_id", "category").len()["len"].max()
    assert most == QUOTA == done["figures"][example_shop.MOST]
    assert done["figures"][example_shop.OUT] == done["figures"][example_shop.WITHOUT] == 0
    # The measure tells of lists that break them.
    broken = pl.DataFrame({"user_id": [world.users[0]] * 6, "rank": range(1, 7),
                           "item_id": world.items.filter(pl.Series(world.category == 0))[:6]})  # fmt: skip
    told = example_shop.measure(world, broken)
    assert (told[example_shop.MOST], told[example_shop.WITHOUT]) == (6, CUSTOMERS - 1)
    assert told[example_shop.OUT] == len(set(broken["item_id"]) & blocked)


def test_the_gain_is_what_evaluate_says(played: tuple[Any, Any, dict[str, Any]]) -> None:
    """Of the same customers, by code of another's making; in every list but those to which the measure puts quotas."""
    done = played[2]
    ours = done["summaries"]["evaluate"]["all_users"][0]
    assert ours["users"] == len(shop.last_purchases(played[0]).truth)
    assert ours["values"]["ndcg@10"] == pytest.approx(done["figures"][f"{NDCG}, {PUBLISHED}"], abs=1e-6)


def test_purchases_alone_are_held_out(played: tuple[shop.World, config.Config, dict[str, Any]]) -> None:
    world, _, _ = played
    truth = dict(shop.last_purchases(world, (shop.BUY,)).truth.iter_rows())
    held = {row["user_id"]: row["item_ids"] for row in buckets.read_parquet(f"{ROOT}/tables/targets").to_pylist()}
    assert held == {user: [item] for user, item in truth.items()}


def test_the_variant_differs_in_weights_alone() -> None:
    plain = settings("decoder", "encoder")
    alike = example_shop.alike(plain)
    assert alike.root != plain.root and set(alike.data.event_weights.values()) == {1.0}
    back = alike.model_copy(update={"root": plain.root, "data": plain.data})
    assert back == plain and alike.data.target_events == plain.data.target_events
