"""New items choose their users: none has a second turn before all had a first, as a plain loop says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.ranker.ragged import Ragged
from llmrec.recall.introduction import LOOKED_AT, ahead, introduced, turns

WHOLE = st.integers(-2, 2)
VECTOR = st.tuples(WHOLE, WHOLE, WHOLE)


def plain(
    profiles: np.ndarray, items: np.ndarray, rows: list[int], wanted: list[int], first: list[bool], places: int,
    seen: list[list[int]],
) -> dict[int, list[tuple[float, int]]]:  # fmt: skip
    """User -> (minus the score, item row), by scores of every pair."""
    lists: dict[int, list[tuple[float, int]]] = {u: [] for u in range(len(profiles))}
    asked = {}
    for i in range(len(items)):
        near = [(-float(p @ items[i]), u) for u, p in enumerate(profiles) if p.any() and items[i].any()]
        near = sorted(near)[: min(LOOKED_AT * max(wanted, default=0), len(profiles))]
        asked[i] = [(s, u) for s, u in near if rows[i] not in seen[u]]
    order = sorted(asked, key=lambda i: (not first[i], asked[i][0][0] if asked[i] else np.inf, i))
    for turn in range(max(wanted, default=0)):
        for i in order:
            if turn < wanted[i]:
                for at, (score, u) in enumerate(asked[i]):
                    if len(lists[u]) < places:
                        lists[u].append((score, rows[i]))
                        del asked[i][: at + 1]
                        break
    return {u: sorted(found) for u, found in lists.items()}


@settings(max_examples=300, deadline=None)
@given(st.lists(VECTOR, min_size=1, max_size=8), st.lists(VECTOR, max_size=5), st.integers(1, 3), st.data())
def test_items_take_turns(users: list, new: list, places: int, data: st.DataObject) -> None:
    """Whole numbers: most scores tie."""
    rows = sorted(data.draw(st.sets(st.integers(0, 9), min_size=len(new), max_size=len(new))))
    wanted, first = [data.draw(st.integers(1, 3)) for _ in new], [data.draw(st.booleans()) for _ in new]
    seen = [data.draw(st.lists(st.integers(0, 9), unique=True, max_size=4)) for _ in users]
    profiles, items = np.asarray(users, np.float32), np.asarray(new, np.float32).reshape(-1, 3)
    found = introduced(
        profiles, items, np.asarray(rows, np.int64), np.asarray(wanted, np.int64), np.asarray(first, bool), places,
        Ragged.of(seen), 10,
    )  # fmt: skip
    offsets = found.items.offsets.tolist()
    pairs = list(zip((-found.scores).tolist(), found.items.values.tolist(), strict=True))
    got = {u: pairs[offsets[u] : offsets[u + 1]] for u in range(len(users))}
    assert got == plain(profiles, items, rows, wanted, first, places, seen)


def test_every_item_is_brought_to_somebody_where_there_is_room() -> None:
    """A hundred items that are all nearest to the same user."""
    rng = np.random.default_rng(0)
    profiles = rng.standard_normal((120, 8)).astype(np.float32)
    items = (profiles[3] + 0.01 * rng.standard_normal((100, 8))).astype(np.float32)
    nobody = Ragged.of([[]] * 120)
    found = introduced(profiles, items, np.arange(100), np.full(100, 6), np.ones(100, bool), 1, nobody, 100)
    assert set(found.items.values.tolist()) == set(range(100)) and found.items.lengths.max() == 1


@pytest.mark.parametrize(("users", "buckets"), [(1, 4), (5, 4), (20, 16), (3, 1)])
def test_buckets_share_an_items_turns(users: int, buckets: int) -> None:
    rows = np.arange(0, 50, 3)
    each = np.stack([turns(rows, users, bucket, buckets) for bucket in range(buckets)])
    assert (each.sum(axis=0) == users).all() and each.max() - each.min() <= 1


def test_where_there_is_no_room_for_all_each_has_its_bucket() -> None:
    """Items that are far from everybody, too: four buckets of 30 users, who have one place each, and 100 items."""
    rng = np.random.default_rng(0)
    items = rng.standard_normal((100, 8)).astype(np.float32)
    items[50:] *= 0.01
    shown: set[int] = set()
    for bucket in range(4):
        profiles = rng.standard_normal((30, 8)).astype(np.float32)
        first = ahead(100, 30, bucket)
        assert first.sum() == 30
        found = introduced(
            profiles, items, np.arange(100), np.ones(100, int), first, 1, Ragged.of([[]] * 30), 100
        )  # fmt: skip
        shown |= set(found.items.values.tolist())
    assert len(shown & set(range(50, 100))) >= 45, "without `first` none of these"
    assert ahead(3, 7, 2).all() and len(ahead(0, 3, 1)) == 0
