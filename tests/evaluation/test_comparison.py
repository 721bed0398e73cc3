"""Rankings side by side, against plain Python over one user's lists at a time and another library's overlap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures.providers.compat_provider import rbo as library_rbo

from llmrec.evaluation import comparison

Lists = Mapping[Any, Sequence[Any]]
FAR = 4000  # ranks after which the weight of the rest is below rounding, for the p used here


def frame(lists: Lists) -> pl.DataFrame:
    made = [(u, r, i) for u, items in lists.items() for r, i in enumerate(items, 1)]
    wanted = {"user_id": pl.Int64, "rank": pl.Int32, "item_id": pl.Int64}
    # In no order, as nothing promises one.
    return pl.DataFrame(made, schema=wanted, orient="row").sample(fraction=1, shuffle=True, seed=1)


def one_user(a: Sequence[int], b: Sequence[int], p: float = 0.9, cutoffs: Sequence[int] = (1, 5, 10)) -> dict[str, Any]:
    found = comparison.per_user(frame({7: a}), frame({7: b}), cutoffs, p)
    assert found.height == 1
    return found.row(0, named=True)


def expected_overlap(a: Sequence[int], b: Sequence[int], p: float) -> float:
    """RBO by its definition, (1 - p) times the sum over d of p^(d-1) times the agreement at d.

    Agreement beyond what is known, as the paper extrapolates it: the items that the shorter list would go on with agree
    with the longer one at the rate seen up to its end; beyond both ends the agreement stays what it then is.
    """
    short, long = sorted((list(a), list(b)), key=len)
    s, n = len(short), len(long)
    rate = len(set(short) & set(long[:s])) / s
    total = agreement = 0.0
    for d in range(1, FAR):
        if d <= n:
            agreement = (len(set(short[:d]) & set(long[:d])) + (rate * (d - s) if d > s else 0)) / d
        total += p ** (d - 1) * agreement
    return (1 - p) * total


lists = st.lists(st.integers(0, 14), min_size=1, max_size=12, unique=True)


@settings(max_examples=150, deadline=None)
@given(a=lists, b=lists, p=st.sampled_from([0.1, 0.5, 0.9, 0.98]))
def test_rank_biased_overlap_is_its_definition(a: list[int], b: list[int], p: float) -> None:
    found = one_user(a, b, p)
    assert found["rbo"] == pytest.approx(expected_overlap(a, b, p), abs=1e-9)
    # Nothing after the ends in common: a library sums the same down to a depth where weights vanish.
    assert found["rbo_min"] == pytest.approx(library_rbo(a, b, p, FAR), abs=1e-9)
    assert found["rbo_min"] <= found["rbo"] + 1e-12 and found["rbo"] <= 1 + 1e-12
    assert one_user(b, a, p) == pytest.approx(found)


@pytest.mark.parametrize(("p", "depth"), [(0.9, 10), (0.98, 50), (0.5, 3)])
def test_the_weight_of_the_first_ranks_is_the_papers(p: float, depth: int) -> None:
    """Equation 21 of the paper, the weight of the ranks up to a depth: what two lists alike up to there have at least.

    The paper says 86% for 10 ranks at p = 0.9.
    """
    rest = math.log(1 / (1 - p)) - sum(p**i / i for i in range(1, depth))
    weight = 1 - p ** (depth - 1) + (1 - p) / p * depth * rest
    alike = one_user(range(depth), range(depth), p)
    assert alike["rbo_min"] == pytest.approx(weight) and alike["rbo"] == pytest.approx(1)
    assert (p, depth) != (0.9, 10) or round(alike["rbo_min"], 2) == 0.86


def test_overlap_worked_out_by_hand() -> None:
    """Common items by depth: 0, 1, 2, 4, 5."""
    found = one_user([1, 2, 3, 4, 5], [2, 3, 4, 1, 5], 0.9)
    by_depth = 0.1 * (1 * 0 + 0.9 / 2 + 0.81 * 2 / 3 + 0.729 * 4 / 4 + 0.6561 * 5 / 5)
    assert found["rbo"] == pytest.approx(by_depth + 0.9**5)
    assert found["overlap@1"] == 0 and found["overlap@5"] == 1
    assert found["first_item_changed"] and not found["unchanged"]


@pytest.mark.parametrize(
    ("a", "b", "unchanged", "first", "at_5"),
    [
        ([1, 2, 3], [1, 2, 3], True, False, 1.0),  # shorter than the cut-off, yet the same
        ([1, 2, 3], [1, 2], False, False, 2 / 3),
        ([1, 2, 3], [1, 2, 4], False, False, 2 / 3),
        ([1, 2, 3], [3, 2, 1], False, True, 1.0),
        ([1, 2], [3, 4], False, True, 0.0),
        ([1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 9], False, True, 4 / 5),
    ],
)
def test_cut_offs_and_changes(a: list[int], b: list[int], unchanged: bool, first: bool, at_5: float) -> None:
    found = one_user(a, b)
    assert (found["unchanged"], found["first_item_changed"]) == (unchanged, first)
    assert found["overlap@5"] == pytest.approx(at_5)


def many(seed: int, users: range, length: int = 8) -> dict[int, list[int]]:
    rng = np.random.default_rng(seed)
    return {u: rng.permutation(15)[: rng.integers(1, length + 1)].tolist() for u in users}


def test_parts_add_up_to_the_whole() -> None:
    """Figures over all users against plain Python; the same whichever way users are divided."""
    a, b = many(1, range(0, 90)), many(2, range(10, 100))
    both = sorted(set(a) & set(b))
    for u in both[:20]:
        b[u] = a[u]
    whole = comparison.compare(frame(a), frame(b), (1, 5), 0.9, moved=4)
    parts = [
        comparison.compare(
            frame({u: v for u, v in a.items() if u % 3 == m}), frame({u: v for u, v in b.items() if u % 3 == m}),
            (1, 5), 0.9, moved=4,
        )
        for m in range(3)
    ]  # fmt: skip
    added = comparison.add(comparison.add(parts[0], parts[1], 4), parts[2], 4)
    assert added.counts == whole.counts
    assert added.sums == pytest.approx(whole.sums)
    for name, key in (("spread", ["measure", "value"]), ("exposure", ["item_id"])):
        one, other = (getattr(part, name).sort(key) for part in (added, whole))
        assert one.equals(other)
    assert added.moved.equals(whole.moved)

    found = comparison.summary(added)
    assert found["users"] == {
        "in_both": 80, "only_in_a": 10, "only_in_b": 10, "unchanged": sum(a[u] == b[u] for u in both),
        "first_item_changed": sum(a[u][0] != b[u][0] for u in both),
        "share_unchanged": sum(a[u] == b[u] for u in both) / 80,
        "share_first_item_changed": sum(a[u][0] != b[u][0] for u in both) / 80,
    }  # fmt: skip
    overlap = [len(set(a[u][:5]) & set(b[u][:5])) / min(5, max(len(a[u]), len(b[u]))) for u in both]
    rbo = {u: expected_overlap(a[u], b[u], 0.9) for u in both}
    measured = found["measures"]
    assert measured["overlap@5"]["mean"] == pytest.approx(np.mean(overlap))
    assert measured["rbo"]["mean"] == pytest.approx(np.mean(list(rbo.values())))
    for q in (10, 50, 90):
        wanted = np.quantile(overlap, q / 100, method="inverted_cdf")
        assert measured["overlap@5"][f"p{q}"] == pytest.approx(wanted, abs=0.005)
    assert sum(measured["overlap@5"]["users"].values()) == 80
    assert measured["overlap@5"]["users"]["1.00"] == sum(v == 1 for v in overlap)
    farthest = sorted(both, key=lambda u: (round(rbo[u], 9), u))[:4]
    assert added.moved["user_id"].to_list() == farthest
    assert added.moved["a"].to_list() == [a[u] for u in farthest]
    assert added.moved["b"].to_list() == [b[u] for u in farthest]


@pytest.mark.parametrize("users", [[1] * 10, [3, 1, 7, 2], [1]])
def test_quantiles_against_numpy(users: list[int]) -> None:
    values = pl.DataFrame({"value": [0.1 * i for i in range(len(users))], "users": users})
    each = np.repeat(values["value"].to_numpy(), users)
    for percent in (1, 10, 50, 90, 100):
        wanted = np.quantile(each, percent / 100, method="inverted_cdf")
        assert comparison.quantile(values, percent) == wanted


def test_no_user_in_common() -> None:
    part = comparison.compare(frame({1: [1, 2]}), frame({2: [1, 3]}), (1,), 0.9)
    found = comparison.summary(part)
    assert found["users"]["in_both"] == 0 and found["users"]["share_unchanged"] is None
    assert found["measures"]["rbo"] == {"mean": None, "p10": None, "p50": None, "p90": None, "users": {}}
    empty = comparison.compare(frame({}), frame({}), (1,), 0.9)
    assert comparison.summary(empty)["users"]["only_in_a"] == 0
    assert comparison.add(empty, part).counts == part.counts


@pytest.mark.parametrize("discounted", [False, True])
def test_shares_of_places_against_sql(discounted: bool) -> None:
    a, b = frame(many(1, range(50))), frame(many(2, range(60)))
    found = comparison.shifts(comparison.exposure(a, b, discounted), "item_id")
    weight = "1 / log2(rank + 1)" if discounted else "1"
    of = "SELECT item_id, sum({w}) / (SELECT sum({w}) FROM {t}) AS share FROM {t} GROUP BY 1"
    rows = duckdb.sql(
        f"SELECT item_id, coalesce(x.share, 0) AS a, coalesce(y.share, 0) AS b, b - a AS change "
        f"FROM ({of.format(w=weight, t='a')}) x FULL JOIN ({of.format(w=weight, t='b')}) y USING (item_id) "
        "ORDER BY change DESC, item_id"
    ).fetchall()
    assert found.rows() == [pytest.approx(row) for row in rows]
    assert math.isclose(found["a"].sum(), 1) and math.isclose(found["b"].sum(), 1)


def test_shares_of_categories() -> None:
    """Item 1 is of x, item 2 of x and y, item 3 of none; item 4 is not in the catalogue."""
    exposure = pl.DataFrame({"item_id": [1, 2, 3, 4], "a": [4.0, 2.0, 1.0, 1.0], "b": [0.0, 8.0, 0.0, 0.0]})
    items = pl.DataFrame({"item_id": [1, 2, 3, 9], "genres": [["x"], ["x", "y"], [], ["z"]]})
    found = comparison.shifts(comparison.by_category(exposure, items, "genres"), "category")
    assert found.rows() == [("y", 1 / 8, 0.5, 0.375), ("x", 5 / 8, 0.5, -0.125), (None, 2 / 8, 0.0, -0.25)]
    plain = pl.DataFrame({"item_id": [1, 2, 3, 9], "year": [1990, 1990, None, 1991]})
    found = comparison.shifts(comparison.by_category(exposure, plain, "year"), "category")
    assert found.rows() == [("1990", 6 / 8, 1.0, 0.25), (None, 2 / 8, 0.0, -0.25)]


def test_coverage() -> None:
    exposure = pl.DataFrame({"item_id": [1, 2, 3], "a": [4.0, 0.0, 1.0], "b": [0.0, 8.0, 3.0]})
    counts = {"items_in_a": 2, "items_in_b": 2, "only_in_a": 1, "only_in_b": 1}
    assert comparison.coverage(exposure, None) == counts
    with_shares = {"catalogue": 8, "share_of_catalogue_a": 0.25, "share_of_catalogue_b": 0.25}
    assert comparison.coverage(exposure, 8) == counts | with_shares
