from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy

from llmrec.evaluation import drift


def test_it_is_both_divergences_of_another_library() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(5, 100, 6), rng.integers(5, 100, 6)
        assert drift.psi(a, b) == pytest.approx(entropy(a, b) + entropy(b, a))
    assert drift.psi([3, 4], [30, 40]) == 0
    assert 0 < drift.psi([10, 0], [5, 5]) < np.inf


def test_chance_is_what_draws_of_one_distribution_give_on_average() -> None:
    rng = np.random.default_rng(0)
    shares = np.asarray([0.5, 0.3, 0.15, 0.05])
    found = [drift.psi(rng.multinomial(2000, shares), rng.multinomial(3000, shares)) for _ in range(3000)]
    assert drift.by_chance([1000, 600, 300, 100], [1500, 900, 450, 150]) == pytest.approx(np.mean(found), rel=0.1)


@pytest.mark.parametrize(("stop", "level"), [(0.25, "stop"), (None, "warn"), (9.0, "warn")])
def test_levels_and_what_moved_most(stop: float | None, level: str) -> None:
    found = drift.compare("mix", {"a": 50, "b": 50}, {"a": 10, "b": 50, "c": 40}, 0.1, stop, shown=2)
    assert found.level == level
    assert list(found.moved) == ["a", "c"] and found.moved["c"] == (0, 0.4)
    assert drift.compare("mix", {"a": 50, "b": 50}, {"a": 51, "b": 49}, 0.1, stop).level == "steady"


def test_groups_that_double() -> None:
    values = np.asarray([0, 1, 2, 3, 4, 7, 8, 15, 16])
    assert drift.by_size(values) == {"0": 1, "1": 1, "2-3": 2, "4-7": 2, "8-15": 2, "16-31": 1}


def test_groups_of_scores_are_about_equal_by_their_own_edges() -> None:
    values = np.random.default_rng(0).normal(size=10_000)
    counts = list(drift.by_edges(values, drift.deciles(values)).values())
    assert len(counts) == 10 and max(counts) - min(counts) <= 1
    assert sum(drift.by_edges(values + 9, drift.deciles(values)).values()) == 10_000
    assert drift.by_edges(np.ones(3), drift.deciles(np.ones(3))) == {"below all": 0, "from 1": 3}


def test_groups_of_scores_that_lie_close_together_are_told_apart() -> None:
    values = np.linspace(12.34501, 12.34549, 1000)
    edges = drift.deciles(values)
    before, now = drift.by_edges(values, edges), drift.by_edges(values[:500], edges)
    assert len(before) == 10 and sum(before.values()) == 1000 and sum(now.values()) == 500
    assert drift.compare("scores", before, now, 0.1, 0.25).level == "stop"
    one = 0.1
    other = float(np.nextafter(one, 1))
    assert list(drift.by_edges(np.asarray([one, other]), [one, other]).values()) == [0, 1, 1]


def test_what_was_frequent_before_is_still_told_apart() -> None:
    before = drift.watched({"a": 5, "b": 4, "c": 1}, (), 2)
    assert before == {"a": 5, "b": 4, "others": 1}
    now = drift.watched({"c": 9, "d": 8, "a": 1}, before, 2)
    assert now == {"c": 9, "d": 8, "a": 1, "b": 0, "others": 0}
    assert drift.of_watched(before, now) == {"a": 1, "b": 0, "others": 17}


def test_others_are_none_of_the_most_frequent() -> None:
    assert drift.watched({"a": 5, "b": 4, "c": 1, "others": 9}, (), 2) == {"a": 5, "b": 4, "others": 10}
