from __future__ import annotations

from typing import Any

import pytest

from llmrec.evaluation.verdict import Verdict, against_best, main_metric, outcome, verdict


def row(name: str, value: float, low: float = 0.0, high: float = 0.0) -> dict[str, Any]:
    values = {"recall@10": 1 - value, "ndcg@10": value}
    return {"name": name, "users": 7, "values": values, "lead": {"recall@10": (9.0, 9.0), "ndcg@10": (low, high)}}


def judged(*others: dict[str, Any]) -> Verdict:
    return verdict([row("ours", 0.12), *others], "ours", ["item_item", "ease"], "fused without ranker", "ndcg@10")


def test_the_best_of_the_other_recommenders_is_the_baseline() -> None:
    popular = row("popularity", 0.5, 0.1, 0.2)  # not asked for
    found = judged(row("item_item", 0.08, 0.02, 0.06), row("ease", 0.1, 0.005, 0.035), popular)
    assert found.metric == "ndcg@10" and found.users == 7 and found.without_ranker is None
    baseline = found.baseline
    assert baseline is not None and baseline.name == "ease" and baseline.outcome == "better"
    assert (baseline.ours, baseline.theirs, baseline.low, baseline.high) == (0.12, 0.1, 0.005, 0.035)
    assert baseline.difference == pytest.approx(0.02) and baseline.share == pytest.approx(0.2)


def test_the_best_other_is_that_by_the_metric_that_is_asked_for() -> None:
    rows = [row("ours", 0.12), row("ease", 0.1, -0.01, 0.03), row("item_item", 0.3)]
    of = {metric: against_best(rows, "ours", ["ease", "item_item", "gone"], metric) for metric in rows[0]["values"]}
    found = {metric: (c.name, c.ours, c.theirs, c.low, c.outcome) for metric, c in of.items() if c is not None}
    assert found["ndcg@10"] == ("item_item", 0.12, 0.3, 0.0, "unclear")
    assert found["recall@10"] == ("ease", 0.88, 0.9, 9.0, "better")
    assert against_best(rows, "ours", ["gone"], "ndcg@10") is None


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.001, 0.03, "better"),
        (-0.03, -0.001, "worse"),
        (-0.001, 0.03, "unclear"),
        (0.0, 0.03, "unclear"),
        (-0.03, 0.0, "unclear"),
        (0.0, 0.0, "unclear"),
    ],
)
def test_an_interval_with_0_in_it_tells_nothing(low: float, high: float, told: str) -> None:
    assert outcome(low, high) == told
    found = judged(row("item_item", 0.11, low, high)).baseline
    assert found is not None and found.outcome == told


def test_a_fused_run_is_compared_with_its_fusion_without_the_ranker() -> None:
    found = judged(row("item_item", 0.05, 0.05, 0.09), row("fused without ranker", 0.13, -0.03, 0.01)).without_ranker
    assert found is not None and found.outcome == "unclear"
    assert found.difference == pytest.approx(-0.01)


def test_without_another_recommender_there_is_no_baseline() -> None:
    assert judged(row("retrieve", 0.1, 0.01, 0.03)).baseline is None


def test_no_share_of_nothing() -> None:
    found = judged(row("item_item", 0.0, 0.1, 0.14)).baseline
    assert found is not None and found.share is None and found.outcome == "better"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["recall@5", "ndcg@5", "ndcg@10"], "ndcg@10"),
        (["recall@3", "ndcg@3", "ndcg@5"], "ndcg@3"),
        (["recall@10", "mrr@10"], "recall@10"),
        (["recall@5", "mrr@5", "recall@10", "mrr@10"], "recall@10"),
        (["map@3", "mrr@3", "map@5"], "map@3"),
    ],
)
def test_verdicts_go_by_ndcg_at_10_where_it_is_measured(names: list[str], chosen: str) -> None:
    assert main_metric(names) == chosen
