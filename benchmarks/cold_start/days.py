"""Two days of a catalogue: on the second there are items and users that nobody knew on the first."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
import xxhash

from llmrec import assets
from llmrec.data import movielens
from llmrec.schema import ITEM, TIMESTAMP, USER


@dataclass(frozen=True)
class Days:
    """items, users: of the second day; first_items: of the first; log: of both, what known users had of known items.
    new_items, new_users: ids that came on the second day. truth: user_id, item_id of what new users had, and known
    users of new items: nothing of it is in the log."""

    items: pl.DataFrame
    users: pl.DataFrame
    first_items: pl.DataFrame
    log: pl.DataFrame
    new_items: list[int]
    new_users: list[int]
    truth: pl.DataFrame


def movielens_days(new_items: int, new_users: int, seed: int) -> Days:
    """MovieLens-100k, of which so many items and users, by a hash of their ids, come on the second day."""
    found = movielens.tables(assets.fetch("ml-100k"))
    items, users, log = (pl.DataFrame(found[kind]) for kind in ("items", "users", "interactions"))
    late_items, late_users = _some(items[ITEM], new_items, seed), _some(users[USER], new_users, seed)
    late = pl.col(ITEM).is_in(late_items) | pl.col(USER).is_in(late_users)
    return Days(
        items=items, users=users, first_items=items.filter(~pl.col(ITEM).is_in(late_items)),
        log=log.filter(~late).select(USER, ITEM, TIMESTAMP), new_items=late_items, new_users=late_users,
        truth=log.filter(late).select(USER, ITEM).unique(),
    )  # fmt: skip


def _some(ids: pl.Series, count: int, seed: int) -> list[int]:
    return sorted(ids.to_list(), key=lambda i: xxhash.xxh3_64_intdigest(f"{seed} {i}".encode()))[:count]
