"""What the generator of the shop promises, by its tables and the truth behind them."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from llmrec.data import shop
from llmrec.data.shop import World
from llmrec.errors import UserError

CUSTOMERS, PRODUCTS = 300, 160


@pytest.fixture(scope="module")
def world() -> World:
    return shop.make(CUSTOMERS, PRODUCTS, seed=5)


@pytest.fixture(scope="module")
def log(world: World) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(world.tables["interactions"]))


def test_the_same_numbers_give_the_same_world_and_another_seed_another(world: World) -> None:
    again, other = shop.make(CUSTOMERS, PRODUCTS, seed=5), shop.make(CUSTOMERS, PRODUCTS, seed=6)
    assert all(again.tables[name].equals(table) for name, table in world.tables.items())
    assert not any(other.tables[name].equals(table) for name, table in world.tables.items())


@pytest.mark.parametrize(
    ("customers", "products", "complaint"),
    [
        (19, 200, "a shop of 19 customers: give 20 or more"),
        (50, 95, "a shop of 95 products: give 96 to 20,000"),
        (50, 20_001, "a shop of 20001 products"),
    ],
)
def test_a_shop_that_cannot_be_made(customers: int, products: int, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        shop.make(customers, products)
    assert "\n" not in str(caught.value)


def test_the_smallest_shop_has_its_tables() -> None:
    small = shop.make(shop.FEWEST_CUSTOMERS, shop.FEWEST_PRODUCTS)
    assert small.tables["interactions"].num_rows >= shop.FEWEST_CUSTOMERS * shop.VISITS
    assert len(shop.last_purchases(small).truth)


def test_titles_tell_style_and_columns_category_and_price_level(world: World) -> None:
    items = world.tables["items"].to_pylist()
    for row, item in enumerate(items):
        told = [name for name, words in shop.STYLES.items() if any(word in item["title"] for word in words)]
        assert told == [list(shop.STYLES)[world.style[row]]]
        assert item["category"] == list(shop.NOUNS)[world.category[row]]
        assert any(item["title"].endswith(noun) for noun in shop.NOUNS[item["category"]])
    cells = np.bincount(world.category * len(shop.STYLES) + world.style)
    assert cells.max() - cells.min() <= 1 and len(cells) == len(shop.NOUNS) * len(shop.STYLES)
    price = world.tables["items"]["price"].to_numpy()
    assert np.all(np.diff([price[world.level == level].mean() for level in range(3)]) > 0)


def test_new_products_have_no_events_and_what_is_out_of_stock_has_sold(world: World, log: pl.DataFrame) -> None:
    seen = set(log["item_id"])
    assert not seen & set(world.items.filter(pl.Series(world.new)))
    assert world.new.sum() == round(shop.NEW_SHARE * PRODUCTS) and not (world.new & world.out).any()
    blocked = world.tables["blocked"]["item_id"].to_pylist()
    stock = dict(zip(world.items, world.tables["items"]["stock"].to_pylist(), strict=True))
    assert blocked == [item for item, left in stock.items() if left == 0] and blocked and seen & set(blocked)


def test_a_visit_is_a_view_then_maybe_a_cart_then_maybe_a_purchase(log: pl.DataFrame) -> None:
    visits = log.group_by("user_id", "item_id", maintain_order=True).agg(
        "event", pl.col("timestamp", "device").n_unique()
    )
    assert set(map(tuple, visits["event"])) == {("view",), ("view", "cart"), ("view", "cart", "buy")}
    assert visits["timestamp"].max() == visits["device"].max() == 1
    assert set(visits.group_by("user_id").len()["len"]) == {shop.VISITS}
    assert log["timestamp"].is_sorted()


def test_probabilities_are_the_softmax_that_the_text_says(world: World) -> None:
    evening = np.arange(CUSTOMERS) % 2 == 0
    found = shop.probabilities(world, evening)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    for customer in (0, 1, 7):
        wanted = world.evening[customer] if evening[customer] else world.usual[customer]
        utilities = [
            4.0 * (world.category[p] == wanted) + 3.0 * (world.style[p] == world.taste[customer])
            - abs(int(world.budget[customer]) - int(world.level[p])) + world.appeal[p]
            for p in range(PRODUCTS)
        ]  # fmt: skip
        wanted_shares = np.exp(utilities) / np.exp(utilities).sum()
        np.testing.assert_allclose(found[customer], wanted_shares, rtol=1e-9)


def test_purchases_follow_taste_device_and_hour_and_views_do_so_half(world: World, log: pl.DataFrame) -> None:
    fit = shop.fitting(world)
    chance = fit.height / (CUSTOMERS * PRODUCTS)
    share = {
        kind: of.join(fit, on=["user_id", "item_id"], how="semi").height / of.height
        for (kind,), of in log.group_by("event")
    }
    assert share["buy"] > 1.5 * share["view"] > 3 * chance
    place = {user: row for row, user in enumerate(world.users)}
    category = dict(zip(world.items, world.category.tolist(), strict=True))
    buys = log.filter(event="buy").with_columns(pl.from_epoch("timestamp").dt.hour().alias("hour"))
    own = {True: 0, False: 0}
    for user, item, device, hour in buys.select("user_id", "item_id", "device", "hour").iter_rows():
        late, row = device == "phone" and hour >= 18, place[user]
        own[True] += category[item] == (world.evening if late else world.usual)[row]
        own[False] += category[item] == (world.usual if late else world.evening)[row]
    assert own[True] > 4 * own[False]


def test_what_is_held_out_is_the_last_purchase_and_what_could_be_shown_then(world: World, log: pl.DataFrame) -> None:
    held = shop.last_purchases(world)
    truth = dict(held.truth.iter_rows())
    open_ = {user: set(of["item_id"]) for (user,), of in held.pool.group_by("user_id")}
    everything = set(world.items.filter(pl.Series(~world.out)))
    for (user,), of in log.group_by("user_id", maintain_order=True):
        buys = of.filter(event="buy")
        if buys.is_empty():
            assert user not in truth and user not in open_
            continue
        last = buys.row(-1, named=True)
        assert truth[str(user)] == last["item_id"]
        before = set(of.filter(pl.col("timestamp") < last["timestamp"])["item_id"])
        assert open_[str(user)] == everything - before
        late = last["device"] == "phone" and last["timestamp"] % 86_400 >= 18 * 3600
        assert held.evening[world.users.to_list().index(user)] == late
    assert (
        shop.in_context(world, held.evening).join(shop.fitting(world), on=["user_id", "item_id"], how="anti").is_empty()
    )
