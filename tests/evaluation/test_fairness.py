from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from llmrec.evaluation import fairness, segments
from llmrec.ranker.ragged import Ragged


def test_the_gap_between_the_best_and_the_worst_group_of_known_attribute() -> None:
    rng = np.random.default_rng(0)
    texts = ["a"] * 400 + ["b"] * 100 + ["c"] * 300 + [None] * 50
    values = np.concatenate([rng.normal(m, 0.5, n) for m, n in ((0.5, 400), (0.2, 100), (0.3, 300), (9, 50))])
    grouping = segments.by_texts("users.job", pa.array(texts), 5)
    found = fairness.gap(grouping, "ndcg@10", values, 3000, 1)
    assert found is not None and (found.best, found.worst, found.metric) == ("a", "b", "ndcg@10")
    a, b = values[:400], values[400:500]
    assert found.gap == pytest.approx(a.mean() - b.mean())
    error = np.sqrt(a.var() / 400 + b.var() / 100)
    assert (found.low, found.high) == pytest.approx((found.gap - 1.96 * error, found.gap + 1.96 * error), abs=0.012)


def test_no_gap_without_two_groups() -> None:
    grouping = segments.by_texts("users.job", pa.array(["a", "a", None]), 5)
    assert fairness.gap(grouping, "ndcg@10", np.ones(3), 10, 0) is None


def test_shares_of_exposure() -> None:
    """Four items in two groups; two users see items of ranks 1 and 2."""
    lists = Ragged.of([[0, 2], [0, 1]])
    seen = fairness.discounts(lists)
    assert seen == pytest.approx([1, 1 / np.log2(3)] * 2)
    group = np.asarray([0, 0, 0, 1])
    exposed = np.zeros((2, 3))
    np.add.at(exposed, ([0, 0, 1, 1], group[lists.values]), seen)
    exposed[:, 1] += 0.5
    found = fairness.shares("brand", ["x", "y", "none"], np.asarray([3, 1, 0]), np.asarray([1, 3, 0]), exposed, 500, 0)
    x, y, none = found.groups
    assert (x.catalogue, x.truth, y.catalogue, y.truth) == (0.75, 0.25, 0.25, 0.75)
    share = exposed[:, 0].sum() / exposed.sum()
    assert x.exposure == pytest.approx(share) and x.ratio == pytest.approx(share / 0.75)
    assert (x.low, x.high) == pytest.approx((x.ratio, x.ratio))  # both users see the same shares
    assert (none.catalogue, none.exposure, none.ratio, none.low) == (0, 0, None, None)


def test_the_interval_of_a_ratio_is_that_of_resampled_users() -> None:
    rng = np.random.default_rng(5)
    exposed = rng.random((300, 2)) * [1, 3]
    (first, _) = fairness.shares("brand", ["x", "y"], np.ones(2), np.ones(2), exposed, 2000, 0).groups
    ratios = []
    for _ in range(2000):
        drawn = exposed[rng.integers(0, 300, 300)].sum(axis=0)
        ratios.append(drawn[0] / drawn.sum() / 0.5)
    assert (first.low, first.high) == pytest.approx(np.quantile(ratios, [0.025, 0.975]), rel=0.02)


def test_shares_of_nothing_are_no_shares() -> None:
    """Every held-out item has left the catalogue, and nobody has a list."""
    found = fairness.shares("brand", ["x", "y"], np.asarray([3, 1]), np.zeros(2), np.zeros((5, 2)), 100, 0)
    assert [of.catalogue for of in found.groups] == [0.75, 0.25]
    for of in found.groups:
        assert (of.truth, of.exposure, of.ratio, of.low, of.high) == (None,) * 5
    json.dumps(asdict(found), allow_nan=False)


def test_the_exposure_of_some_items_and_how_sure_it_is() -> None:
    """Beside scipy's bootstrap of the same quotient, over those who are shown anything."""
    rng = np.random.default_rng(3)
    seen = rng.uniform(1, 4, (2, 400))
    theirs = seen * rng.beta(1, 3, (2, 400))
    theirs[:, :50] = seen[:, :50] = 0
    for i, found in enumerate(fairness.exposures(theirs, seen, 3000, 1)):
        assert found.share == pytest.approx(theirs[i].sum() / seen[i].sum())
        wanted = stats.bootstrap(
            (theirs[i, 50:], seen[i, 50:]), lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis), paired=True,
            vectorized=True, n_resamples=3000, method="percentile", rng=np.random.default_rng(2),
        ).confidence_interval  # fmt: skip
        assert found.interval == pytest.approx((wanted.low, wanted.high), abs=0.003)


def test_where_nobody_is_shown_anything_there_is_no_exposure() -> None:
    for users in (0, 3):
        (found,) = fairness.exposures(np.zeros((1, users)), np.zeros((1, users)), 100, 0)
        assert found == fairness.Exposure(None, None)
    (found,) = fairness.exposures(np.asarray([[0.0] * 9 + [1.0]]), np.asarray([[0.0] * 9 + [2.0]]), 100, 0)
    assert found == fairness.Exposure(0.5, (0.5, 0.5)), "users with no list say nothing, and take nothing away"


def test_a_gap_between_held_out_items_draws_a_user_of_both_groups_once() -> None:
    """Beside scipy's bootstrap of paired differences: how good a user's list is for one group goes with the other."""
    rng = np.random.default_rng(0)
    of_user = rng.normal(0.5, 0.3, 300)
    values = np.concatenate([of_user + rng.normal(0.1, 0.05, 300), of_user + rng.normal(0, 0.05, 300)])
    users, groups = np.tile(np.arange(300), 2), np.repeat([2, 1], 300)
    order = rng.permutation(600)
    grouping = segments.by_counts("item_events", np.zeros(0, np.int64)).of_pairs(groups[order])
    found = fairness.gap(grouping, "ndcg@10", values[order], 3000, 1, users[order])
    assert found is not None and (found.best, found.worst) == ("5-19", "1-4")
    change = values[:300] - values[300:]
    wanted = stats.bootstrap(
        (change,), np.mean, n_resamples=3000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval  # fmt: skip
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.002)
    apart = fairness.gap(grouping, "ndcg@10", values[order], 3000, 1)
    assert apart is not None and apart.gap == found.gap
    assert apart.high - apart.low > 5 * (found.high - found.low), "as if they were 600 users"


def test_a_gap_of_groups_that_share_some_users() -> None:
    rng = np.random.default_rng(8)
    users = np.concatenate([np.arange(0, 200), np.arange(150, 400)])
    values = np.concatenate([rng.normal(0.6, 0.2, 200), rng.normal(0.4, 0.2, 250)])
    values[150:200] = values[200:250] + 0.2  # the same user in both
    grouping = segments.by_counts("item_events", np.zeros(0, np.int64)).of_pairs(np.repeat([2, 1], [200, 250]))
    found = fairness.gap(grouping, "ndcg@10", values, 4000, 1, users)
    a, b, both = values[:150], values[250:], values[150:200] / 200 - values[200:250] / 250
    error = np.sqrt(a.var() * 150 / 200**2 + b.var() * 200 / 250**2 + both.var() * 50)
    assert found is not None and found.gap == pytest.approx(values[:200].mean() - values[200:].mean())
    assert (found.low, found.high) == pytest.approx((found.gap - 1.96 * error, found.gap + 1.96 * error), abs=0.003)
