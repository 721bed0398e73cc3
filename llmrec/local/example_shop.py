"""The shop as an example: what each customer would buy is known; what weights of events bring is measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from llmrec import config
from llmrec.data import shop
from llmrec.data.shop import LastPurchases, World
from llmrec.engine import score_parts
from llmrec.evaluation import known_truth
from llmrec.layout import Layout
from llmrec.local.examples import Example, Figures, Promise
from llmrec.schema import ITEM, ITEMS, RANK, USER
from llmrec.tables import buckets, rankings

PLACES = 10
FIT, HOUR, NDCG, PRICE = "fits the taste", "fits taste and hour", "NDCG@10 of last purchases", "mean price"
PUBLISHED, RANKER, ITEM_ITEM, POPULAR, RANDOM, ORACLE = (
    "published lists", "ranker alone", "item-item", "popularity", "at random", "oracle"
)  # fmt: skip
NEW_PLACES, NEW_FIT, NEW_RANDOM = (
    "places with a new product", "new products shown: fits the taste", "new products at random: fits the taste"
)  # fmt: skip
OUT, MOST, WITHOUT = "places out of stock", "most places of a category in a list", "customers without a list"
ALIKE = "all events alike"


def make(customers: int) -> World:
    """A world with a product for every two customers."""
    return shop.make(customers, max(shop.FEWEST_PRODUCTS, customers // 2))


def measure(world: World, shown: pl.DataFrame) -> Figures:
    """Whether the rules hold, of all published lists, and new products among the places of these."""
    categories = pl.DataFrame({ITEM: world.items, "of": world.category})
    new = pl.DataFrame({ITEM: world.items.filter(pl.Series(world.new))})
    out = pl.DataFrame({ITEM: world.items.filter(pl.Series(world.out))})
    most = shown.join(categories, on=ITEM).group_by(USER, "of").len()["len"].max()
    of_new, fit = shown.filter(pl.col(RANK) <= PLACES).join(new, on=ITEM, how="semi"), shop.fitting(world)
    everyone = shop.pairs(world, np.broadcast_to(world.new, (len(world.users), len(world.new))))
    return {
        OUT: shown.join(out, on=ITEM, how="semi").height,
        MOST: int(str(most or 0)),
        WITHOUT: len(world.users) - shown[USER].n_unique(),
        NEW_PLACES: of_new.height / (PLACES * len(world.users)),
        NEW_FIT: _share(of_new, fit),
        NEW_RANDOM: _share(everyone, fit),
    }


def beside(world: World, settings: config.Config, run_id: str) -> Figures:
    """The published lists beside others that keep the same rules, for the customers whose last purchase is held out.

    At random is what lists of anything in stock that the customer had no event of are expected to have; the oracle
    ranks by the probability to buy that the world knows.
    """
    kinds = [kind for kind, weight in settings.data.event_weights.items() if weight]
    layout, held = Layout.of(settings), shop.last_purchases(world, kinds)
    most = settings.rerank.quotas.get(shop.CATEGORY, PLACES)
    categories = pl.DataFrame({ITEM: world.items, "of": world.category})
    users, fit, hour = held.truth[USER], shop.fitting(world), shop.in_context(world, held.evening)
    price = pl.DataFrame(pl.from_arrow(world.tables["items"])).select(ITEM, shop.PRICE)
    lists = _lists(layout, run_id) | {ORACLE: _oracle(world, held)}
    found: dict[str, dict[str, float]] = {name: {} for name in (FIT, HOUR, NDCG, PRICE)}
    for name, of in lists.items():
        allowed = of.join(held.pool, on=[USER, ITEM], how="semi")
        ten = of if name == PUBLISHED else known_truth.within_quota(allowed, categories, most, PLACES)
        ten = ten.filter((pl.col(RANK) <= PLACES) & pl.col(USER).is_in(users.to_list()))
        found[FIT][name] = known_truth.share_right(ten, fit, users, PLACES)
        found[HOUR][name] = known_truth.share_right(ten, hour, users, PLACES)
        found[NDCG][name] = known_truth.gain_of_one(ten, held.truth, users, PLACES)
        found[PRICE][name] = float(ten.join(price, on=ITEM)[shop.PRICE].sum()) / max(1, ten.height)
    found[FIT][RANDOM] = known_truth.share_at_random(held.pool, fit, users, PLACES)
    found[HOUR][RANDOM] = known_truth.share_at_random(held.pool, hour, users, PLACES)
    return {f"{what}, {name}": value for what, of in found.items() for name, value in of.items()}


def alike(settings: config.Config) -> config.Config:
    """The same settings, under a root beside, with all kinds of events counting 1."""
    same = settings.data.model_copy(update={"event_weights": dict.fromkeys(settings.data.event_weights, 1.0)})
    return settings.model_copy(update={"root": f"{settings.root}-alike", "data": same})


def promises(rounds: Sequence[Figures]) -> list[Promise]:
    """What has to hold with the weights of events; without them the rules alone."""
    found = []
    first = rounds[0]
    ours, best = (first[f"{FIT}, {name}"] for name in (PUBLISHED, ORACLE))
    other = max(first[f"{FIT}, {name}"] for name in (POPULAR, RANDOM))
    halfway = f"more than halfway from popularity and chance ({other:.3f}) to the oracle ({best:.3f})"
    found.append(Promise(f"{FIT}: {ours:.3f} is {halfway}", ours > (other + best) / 2))
    if len(rounds) > 1:
        without = rounds[1][f"{FIT}, {PUBLISHED}"]
        found.append(Promise(f"{FIT}: {ours:.3f} is more than with all events alike ({without:.3f})", ours > without))
    ours, best = (first[f"{HOUR}, {name}"] / first[f"{FIT}, {name}"] for name in (PUBLISHED, ORACLE))
    half = f"more than 0.6; half if nothing is known of it, the oracle has {best:.3f}"
    found.append(Promise(f"of the places that fit the taste, {ours:.3f} fit the hour: {half}", ours > 0.6))
    ours, other = first[NEW_FIT], first[NEW_RANDOM]
    found.append(Promise(f"{NEW_FIT}: {ours:.3f} is more than twice chance ({other:.3f})", ours > 2 * other))
    for number, of in enumerate(rounds, start=1):
        found.append(Promise(f"round {number}, {OUT}: {of[OUT]:,}", of[OUT] == 0))
        found.append(Promise(f"round {number}, {WITHOUT}: {of[WITHOUT]:,}", of[WITHOUT] == 0))
    return found


def people(world: World) -> dict[str, str]:
    """Two customers, with their hidden taste."""
    categories, styles = list(shop.NOUNS), list(shop.STYLES)
    return {
        world.users[row]: f"{world.users[row]} buys {categories[world.usual[row]]}, on a phone in the evening "
        f"{categories[world.evening[row]]}, in {styles[world.taste[row]]} style"
        for row in (0, 1)
    }


def _lists(layout: Layout, run_id: str) -> dict[str, pl.DataFrame]:
    """By name, user_id, rank, item_id: what was published, the same candidates by the ranker's score alone, and what
    two sources brought."""
    parts = buckets.read_parquet(layout.score_parts(run_id), [USER, ITEMS, score_parts.PART + score_parts.RANKER])
    scored = pl.DataFrame(pl.from_arrow(parts)).explode(parts.column_names[1:]).rename({ITEMS: ITEM})
    published = rankings.read(layout.rankings, run_id=run_id).select([USER, RANK, ITEM])
    return {
        PUBLISHED: pl.DataFrame(pl.from_arrow(published)),
        RANKER: _ranked(scored.sort(score_parts.PART + score_parts.RANKER, descending=True, maintain_order=True)),
        ITEM_ITEM: _brought(layout.candidates("item_item")),
        POPULAR: _brought(layout.candidates("popularity")),
    }


def _brought(uri: str) -> pl.DataFrame:
    """A source's candidates, which are in its order."""
    table = pl.DataFrame(pl.from_arrow(buckets.read_parquet(uri, [USER, ITEMS])))
    return _ranked(table.explode(ITEMS).drop_nulls().rename({ITEMS: ITEM}))


def _oracle(world: World, held: LastPurchases) -> pl.DataFrame:
    """Each customer's products in the order of the true probability that he buys them."""
    order = np.argsort(-shop.probabilities(world, held.evening), axis=1)
    users = world.users.gather(np.repeat(np.arange(len(order)), order.shape[1]))
    return _ranked(pl.DataFrame({USER: users, ITEM: world.items.gather(order.ravel())}))


def _ranked(pairs: pl.DataFrame) -> pl.DataFrame:
    """user_id, rank, item_id of pairs in the order of each user's list."""
    return pairs.select(USER, pl.int_range(1, pl.len() + 1).over(USER).alias(RANK), ITEM)


def _share(pairs: pl.DataFrame, right: pl.DataFrame) -> float:
    return pairs.join(right, on=[USER, ITEM], how="semi").height / max(1, pairs.height)


EXAMPLE: Example[World] = Example(
    config="jobs/configs/shop.yaml",
    users=500,
    make=make,
    tables=lambda world: {
        "score.blocked_items": world.tables["blocked"],
        **{name: table for name, table in world.tables.items() if name != "blocked"},
    },
    measure=measure,
    people=people,
    promises=promises,
    beside=beside,
    variants={ALIKE: alike},
)
