"""The periods of the replay: nothing of a period is known when it begins, and nothing is lost between two."""

from __future__ import annotations

import polars as pl

from benchmarks.replay.periods import periods


def test_periods_follow_each_other_and_know_only_what_was_before() -> None:
    log = pl.DataFrame({
        "user_id": [i % 7 for i in range(100)], "item_id": [(i * i) % 29 for i in range(100)],
        "timestamp": [1000 + i // 3 for i in range(100)],
    }).sample(fraction=1.0, shuffle=True, seed=0)  # fmt: skip
    found = periods(log, 5, 0.5)
    assert [p.number for p in found] == [1, 2, 3, 4, 5]
    assert abs(len(found[0].known) - 50) <= 3
    for period, later in zip(found, [p.known for p in found[1:]] + [log], strict=True):
        had = set(period.known.select("user_id", "item_id").iter_rows())
        here = later.filter(pl.col("timestamp") > period.known["timestamp"].max())
        assert set(period.truth.iter_rows()) == set(here.select("user_id", "item_id").iter_rows()) - had
        assert len(period.truth) and len(period.known) + len(here) == len(later)
        assert set(period.known_users) == set(period.truth["user_id"]) & set(period.known["user_id"])
