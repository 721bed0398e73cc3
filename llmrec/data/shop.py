"""A made-up shop whose truth is known: products, customers, what they viewed, carted, bought, and what they would buy.

The truth, in the order in which `make` draws it:

- A **product** is of one category, which a column tells, and of one style, which nothing tells but two words of its
  title. It has a price level (0, 1, 2), which shows in its price, and an appeal of its own. One in ten is **new**: it
  has a text and no events. Of the others one in ten is out of **stock** now, though it has sold.
- A **customer** has a hidden taste: a category that he buys on a phone in the evening, one of four such, another one,
  of the other four, that he buys at all other times, and one style; and a price level. His age group tells the price
  level in two cases of three, his country tells nothing.
- The probability that he buys a product is a softmax over all products: 4 if it is of the category of his device and
  hour, 3 if it is of his style, less 1 for each price level apart, plus its appeal.
- He comes to 24 of the products that are not new, to each once. Half of the visits are **idle**: to a product that is
  in fashion, whatever his taste; nearly all of them end as a view. In the others the product is drawn as he buys, 7 of
  10 are put into the cart, and 7 of 10 of these bought.

Each step of a visit is an event of its own in the log, view, cart and buy, with the time at which the visit began. Half
of the visits are on a phone in the evening, most others on a desktop by day, some crosswise. Nothing here knows how
rankings are made.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from llmrec.errors import UserError
from llmrec.schema import ITEM, TIMESTAMP, TITLE, USER

CATEGORY, BRAND, PRICE, STOCK, DEVICE, EVENT = "category", "brand", "price", "stock", "device", "event"
VIEW, CART, BUY = "view", "cart", "buy"
PHONE, DESKTOP = "phone", "desktop"

NOUNS: Mapping[str, tuple[str, str]] = {
    "lighting": ("lamp", "lantern"),
    "seating": ("chair", "stool"),
    "stationery": ("notebook", "desk tray"),
    "kitchen": ("kettle", "bread box"),
    "carpets": ("rug", "runner"),
    "tableware": ("mug", "bowl"),
    "bags": ("backpack", "satchel"),
    "clothing": ("jacket", "scarf"),
}
EVENING = 4  # so many of them, the last, are bought on a phone in the evening
STYLES: Mapping[str, tuple[str, ...]] = {
    "rustic": ("weathered", "oak", "farmhouse", "hand-woven", "reclaimed", "rough-hewn"),
    "industrial": ("riveted", "steel", "concrete", "factory", "welded", "gunmetal"),
    "playful": ("polka-dot", "rainbow", "cartoon", "confetti", "bubblegum", "neon"),
    "minimal": ("plain", "slim", "matte white", "seamless", "understated", "monochrome"),
}
BRANDS = ("Arvo", "Brimley", "Castor", "Dunmore", "Ellery", "Fenwick")
COUNTRIES = ("AT", "BE", "DK", "FR")
AGES = ("18-29", "30-49", "50+")  # by the price level that it hints at
LEVEL_PRICES = (12.0, 30.0, 75.0)
OF_CATEGORY, OF_STYLE, PER_LEVEL = 4.0, 3.0, 1.0

FEWEST_CUSTOMERS, FEWEST_PRODUCTS, MOST_PRODUCTS = 20, 96, 20_000
VISITS, NEW_SHARE, OUT_SHARE = 24, 0.1, 0.1
IDLE, CARTED, BOUGHT, CARTED_IDLE = 0.5, 0.7, 0.7, 0.02
START, DAYS = 1_704_067_200, 120  # 2024-01-01, UTC


@dataclass(frozen=True)
class World:
    """The raw tables, and the truth behind them.

    tables: `items`, `users`, `interactions`, and `blocked`, the ids of what is out of stock. Of the p products
    category, style, level: int64[p]; appeal: float64[p]; new, out: bool[p]. Of the c customers usual, evening (their
    categories), taste (their style) and budget (their price level): int64[c].
    """

    tables: Mapping[str, pa.Table]
    category: np.ndarray
    style: np.ndarray
    level: np.ndarray
    appeal: np.ndarray
    new: np.ndarray
    out: np.ndarray
    usual: np.ndarray
    evening: np.ndarray
    taste: np.ndarray
    budget: np.ndarray

    @property
    def items(self) -> pl.Series:
        return pl.Series(ITEM, self.tables["items"][ITEM].to_pylist())

    @property
    def users(self) -> pl.Series:
        return pl.Series(USER, self.tables["users"][USER].to_pylist())


def make(customers: int, products: int, seed: int = 0) -> World:
    """A world of so many customers and products; the same numbers give the same world.

    Raises:
        UserError: there are too few or too many of them.
    """
    if customers < FEWEST_CUSTOMERS:
        raise UserError(f"a shop of {customers} customers: give {FEWEST_CUSTOMERS} or more")
    if not FEWEST_PRODUCTS <= products <= MOST_PRODUCTS:
        raise UserError(f"a shop of {products} products: give {FEWEST_PRODUCTS} to {MOST_PRODUCTS:,}")
    rng = np.random.default_rng(seed)
    cells = rng.permutation(np.arange(products) % (len(NOUNS) * len(STYLES)))
    category, style = np.divmod(cells, len(STYLES))
    level, appeal = rng.integers(3, size=products), rng.normal(0, 0.5, products)
    new = rng.permutation(products) < round(NEW_SHARE * products)
    out = ~new & (rng.random(products) < OUT_SHARE)
    usual = rng.integers(len(NOUNS) - EVENING, size=customers)
    evening = rng.integers(len(NOUNS) - EVENING, len(NOUNS), customers)
    taste, budget = rng.integers(len(STYLES), size=customers), rng.integers(3, size=customers)
    told = np.where(rng.random(customers) < 2 / 3, budget, rng.integers(3, size=customers))
    items = pa.table({
        ITEM: [f"p{i:05}" for i in range(products)],
        TITLE: _titles(category, style, rng),
        BRAND: [BRANDS[i] for i in rng.integers(len(BRANDS), size=products)],
        CATEGORY: [list(NOUNS)[i] for i in category],
        PRICE: np.round(np.asarray(LEVEL_PRICES)[level] * rng.lognormal(0, 0.15, products), 2),
        STOCK: np.where(out, 0, rng.integers(1, 200, products)),
    })  # fmt: skip
    users = pa.table({
        USER: [f"c{i:05}" for i in range(customers)],
        "country": [COUNTRIES[i] for i in rng.integers(len(COUNTRIES), size=customers)],
        "age_group": [AGES[i] for i in told],
    })  # fmt: skip
    blocked = pa.table({ITEM: items[ITEM].filter(pa.array(out))})
    tables = {"items": items, "users": users, "blocked": blocked}
    world = World(tables, category, style, level, appeal, new, out, usual, evening, taste, budget)
    tables["interactions"] = _interactions(world, rng)
    return world


def probabilities(world: World, phone_in_the_evening: np.ndarray) -> np.ndarray:
    """float64[c, p]: that a customer's next purchase is this product, were they all there and had he none.

    phone_in_the_evening: bool[c], whether he buys on a phone in the evening, or in another way.
    """
    wanted = np.where(phone_in_the_evening, world.evening, world.usual)
    utility = OF_CATEGORY * (wanted[:, None] == world.category) + OF_STYLE * (world.taste[:, None] == world.style)
    utility = utility - PER_LEVEL * np.abs(world.budget[:, None] - world.level) + world.appeal
    found = np.exp(utility - utility.max(axis=1, keepdims=True))
    return np.asarray(found / found.sum(axis=1, keepdims=True))


def fitting(world: World) -> pl.DataFrame:
    """user_id, item_id: products of a customer's style and of one of his two categories."""
    category = (world.category == world.usual[:, None]) | (world.category == world.evening[:, None])
    return pairs(world, category & (world.style == world.taste[:, None]))


def in_context(world: World, phone_in_the_evening: np.ndarray) -> pl.DataFrame:
    """user_id, item_id: of `fitting`, those of the category of this device and hour. phone_in_the_evening: bool[c]."""
    wanted = np.where(phone_in_the_evening, world.evening, world.usual)
    return pairs(world, (world.category == wanted[:, None]) & (world.style == world.taste[:, None]))


def pairs(world: World, which: np.ndarray) -> pl.DataFrame:
    """user_id, item_id of the pairs where bool[c, p] is true."""
    user, item = np.nonzero(which)
    return pl.DataFrame({USER: world.users.gather(user), ITEM: world.items.gather(item)})


@dataclass(frozen=True)
class LastPurchases:
    """What is held out of the log: each customer's last purchase.

    truth: user_id, item_id of it, in the order of customers; evening: bool[c], whether on a phone in the evening; pool:
    user_id, item_id of what could be shown then: in stock, and nothing that he had an event of before it.
    """

    truth: pl.DataFrame
    evening: np.ndarray
    pool: pl.DataFrame


def last_purchases(world: World, kinds: Collection[str] = (VIEW, CART, BUY)) -> LastPurchases:
    """Of the customers who bought anything. kinds: of events that count; buys do."""
    log = pl.DataFrame(pl.from_arrow(world.tables["interactions"])).filter(pl.col(EVENT).is_in(list(kinds)))
    buys = log.filter(pl.col(EVENT) == BUY).sort(USER, TIMESTAMP).group_by(USER, maintain_order=True).last()
    before = log.join(buys.select(USER, pl.col(TIMESTAMP).alias("at")), on=USER)
    had = before.filter(pl.col(TIMESTAMP) < pl.col("at")).select(USER, ITEM).unique()
    at = world.users.to_frame().join(buys, on=USER, how="left", maintain_order="left")
    evening = at.select(
        ((pl.col(DEVICE) == PHONE) & (pl.from_epoch(TIMESTAMP).dt.hour() >= 18)).fill_null(False).alias("evening")
    )["evening"]
    open_ = np.broadcast_to(~world.out, (len(world.users), len(world.out)))
    pool = pairs(world, open_).join(had, on=[USER, ITEM], how="anti").join(buys, on=USER, how="semi")
    return LastPurchases(buys.select(USER, ITEM), evening.to_numpy(), pool)


def _titles(category: np.ndarray, style: np.ndarray, rng: np.random.Generator) -> list[str]:
    nouns, words = list(NOUNS.values()), list(STYLES.values())
    found = []
    for of, like in zip(category.tolist(), style.tolist(), strict=True):
        first, second = rng.permutation(len(words[like]))[:2].tolist()
        found.append(f"{words[like][first]} {words[like][second]} {nouns[of][int(rng.integers(2))]}")
    return found


def _interactions(world: World, rng: np.random.Generator) -> pa.Table:
    """The log, by time."""
    customers, products = len(world.usual), len(world.category)
    shape = (customers, VISITS)
    phone, swapped = rng.random(shape) < 0.5, rng.random(shape) < 0.1
    late = phone ^ swapped
    hour = np.where(late, rng.integers(18, 23, shape), rng.integers(8, 18, shape))
    day = np.sort(np.argsort(rng.random((customers, DAYS)), axis=1)[:, :VISITS], axis=1)  # one visit a day at most
    at = START + day * 86_400 + hour * 3600 + rng.integers(0, 3600, shape)
    idle = rng.random(shape) < IDLE
    carted = rng.random(shape) < np.where(idle, CARTED_IDLE, CARTED)
    bought = carted & (rng.random(shape) < BOUGHT)
    fashion = np.exp(2 * rng.normal(0, 0.6, products))
    by_taste = [probabilities(world, np.full(customers, evening)) for evening in (False, True)]
    item = np.empty(shape, np.int64)
    left = np.repeat(~world.new[None], customers, axis=0).astype(np.float64)
    everyone = np.arange(customers)
    for visit in range(VISITS):
        wanted = np.where((phone & late)[:, visit, None], by_taste[1], by_taste[0])
        weight = left * np.where(idle[:, visit, None], fashion, wanted)
        below = weight.cumsum(axis=1)
        drawn = rng.random(customers) * below[:, -1]
        item[:, visit] = (below <= drawn[:, None]).sum(axis=1)
        left[everyone, item[:, visit]] = 0
    parts = []
    for step, (kind, there) in enumerate(((VIEW, np.ones(shape, bool)), (CART, carted), (BUY, bought))):
        user, _ = np.nonzero(there)
        parts.append(pl.DataFrame({
            USER: world.users.gather(user), ITEM: world.items.gather(item[there]), TIMESTAMP: at[there],
            EVENT: [kind] * len(user), DEVICE: np.where(phone[there], PHONE, DESKTOP), "step": [step] * len(user),
        }))  # fmt: skip
    log: pa.Table = pl.concat(parts).sort(TIMESTAMP, USER, "step").drop("step").to_arrow()
    return log.cast(pa.schema([(f.name, pa.string() if f.name != TIMESTAMP else pa.int64()) for f in log.schema]))
