"""A log in successive periods: what is known when each begins, and what its users then have."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from llmrec.schema import ITEM, TIMESTAMP, USER


@dataclass(frozen=True)
class Period:
    """known: the log when it begins (user_id, item_id, timestamp, oldest first); truth: user_id, item_id of what its
    users have in it and had not before; known_users: ids of those of them who are in `known`."""

    number: int
    known: pl.DataFrame
    truth: pl.DataFrame
    known_users: list[int]


def periods(log: pl.DataFrame, count: int, known_share: float) -> list[Period]:
    """The oldest share of the events is known when the first period begins; the rest is cut into periods with about as
    many events each, events of one second together."""
    events = log.select(USER, ITEM, TIMESTAMP).sort(TIMESTAMP, maintain_order=True)
    times, found = events[TIMESTAMP], []
    edges = [int(times[int(len(times) * (known_share + (1 - known_share) * i / count))]) for i in range(count)]
    for number, (start, end) in enumerate(zip(edges, [*edges[1:], int(times[-1]) + 1], strict=True), start=1):
        known = events.filter(pl.col(TIMESTAMP) < start)
        here = events.filter(pl.col(TIMESTAMP).is_between(start, end, closed="left"))
        truth = here.select(USER, ITEM).unique(maintain_order=True).join(known, on=[USER, ITEM], how="anti")
        users = sorted(set(truth[USER]) & set(known[USER]))
        found.append(Period(number, known, truth, users))
    return found
