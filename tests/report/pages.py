"""What a small evaluated run shows on its page, made by hand."""

from __future__ import annotations

from typing import Any

METRICS = ("recall@10", "ndcg@10", "mrr@10")
OURS = "llm ranking"


def row(name: str, value: float) -> dict[str, Any]:
    return {
        "name": name, "users": 1943, "ranked": 1943, "values": dict.fromkeys(METRICS, value),
        "interval": dict.fromkeys(METRICS, (value - 0.01, value + 0.01)), "lead": dict.fromkeys(METRICS, (0.0, 0.0)),
    }  # fmt: skip


def comparison(name: str, theirs: float, low: float, high: float) -> dict[str, Any]:
    told = "better" if low > 0 else "worse" if high < 0 else "unclear"
    return {
        "name": name, "ours": 0.12, "theirs": theirs, "difference": 0.12 - theirs, "share": 0.12 / theirs - 1,
        "low": low, "high": high, "outcome": told,
    }  # fmt: skip


def shown(**changes: Any) -> dict[str, Any]:
    """As `engine.report.gather` gives it, of a run that is not fused, trained or timed."""
    rows = [row(OURS, 0.12), row("item_item", 0.1), row("popularity", 0.05)]
    compared = {c["name"]: c for c in (comparison("item_item", 0.1, 0.01, 0.03), comparison("popularity", 0.05, 0, 1))}
    source = {
        "users": 1900,
        "recall": {"recall@100": 0.6},
        "alone": {"alone@100": 0.1},
        "interval": {"recall@100": (0.5, 0.7)},
    }
    return {
        "verdict": {
            "metric": "ndcg@10", "users": 1943, "baseline": compared["item_item"], "without_ranker": None,
        },
        "comparisons": compared, "by_metric": dict.fromkeys(METRICS, compared["item_item"]),
        "ablations": [], "same_users": {}, "ours": OURS, "metric": "ndcg@10",
        "baselines": ["item_item", "popularity"],
        "run": {"run_id": "r-1", "table": "s3://b/rankings", "published": None},
        "settings": [{"key": "data.buckets", "value": "4", "default": "16"}],
        "period": None, "summaries": {}, "score": None, "price_per_hour": 0.0, "importance": None, "curves": None,
        "evaluation": {
            "all_users": rows, "same_users": {}, "recall_of_candidates": 0.61, "run_id": "r-1", "users_share": 1.0,
            "sources": [
                {"name": "item_item", **source},
                {"name": "all of them", **source, "alone": None},
            ],
        },
        "users": [], **changes,
    }  # fmt: skip


def with_all(**changes: Any) -> dict[str, Any]:
    """The same with everything that a page may show."""
    found = shown()
    fused = [comparison("the ranker alone", 0.11, 0.002, 0.02), comparison("fused without ranker", 0.119, -0.01, 0.012)]
    found["comparisons"] |= {c["name"]: c for c in fused}
    found["ablations"] = ["the ranker alone", "fused without ranker"]
    found["verdict"] = {**found["verdict"], "without_ranker": fused[1]}
    evaluation = found["evaluation"]
    evaluation["all_users"] = [
        {
            **r,
            "beyond": {"coverage@10": 0.345, "coverage@20": 0.456, "diversity@10": None},
            "p_value": {"ndcg@10": 0.0123},
        }
        for r in [*evaluation["all_users"], row("the ranker alone", 0.11), row("fused without ranker", 0.119)]
    ]
    group = {"name": "1 to 5", "users": 77, "rows": [row(OURS, 0.2), row("item_item", 0.1), row("popularity", 0.0)]}
    nobody = {"name": "6 or more", "users": 0, "rows": []}
    evaluation |= {
        "segments": [{"by": "history_length", "of": "user", "groups": [group, nobody]}],
        "fairness": {
            "users": [
                {"by": "users.age", "metric": "ndcg@10", "best": "old", "worst": "young", "gap": 0.031, "low": 0.01,
                 "high": 0.05},
            ],
            "item_gaps": [
                {"by": "item_events", "metric": "ndcg@10", "best": "often", "worst": "rarely", "gap": 0.077,
                 "low": 0.06, "high": 0.09},
            ],
            "items": [
                {"by": "item_events", "groups": [
                    {"name": "head", "catalogue": 0.2, "truth": 0.5, "exposure": 0.777, "ratio": 1.55, "low": 1.4,
                     "high": 1.7},
                ]},
            ],
        },
        "calibration": {
            "bins": [
                {"low": 0.0, "high": 0.1, "predicted": 0.04, "observed": 0.03, "pairs": 900},
                {"low": 0.1, "high": 0.2, "predicted": 0.15, "observed": 0.21, "pairs": 80},
                {"low": 0.2, "high": 1.0, "predicted": 0.0, "observed": 0.0, "pairs": 0},
            ],
            "ece": 0.0123, "brier": 0.0456,
        },
        "labelled": {"pairs": 1234, "covered": 1000, "auc": 0.7654, "uauc": None, "users": 55},
    }  # fmt: skip
    return {
        **found,
        "same_users": {
            "zero-shot": {"rows": evaluation["all_users"][:2], "comparisons": {"item_item": fused[0]},
                          "by_metric": {}},
        },
        "run": {**found["run"], "published": {"version": 3, "time": "2026-01-02 03:04 UTC"}},
        "period": ["1997-09-20", "1998-04-22"],
        "summaries": {
            "prepare": {
                "users": 2000, "items": 1682, "events_kept": 99_990, "rows_in": 100_000,
                "set_aside": {"null_id": 10}, "items_set_aside": {}, "users_set_aside": {"duplicate_user": 4},
                "edges": 0, "edges_set_aside": {}, "seconds": 9.0,
            },
            "recall": {
                "users": 2001, "per_user": {"item_item": 80.0, "merged": 95.5},
                "merged": {"item_item": 75.0, "popularity": 20.5}, "short_lists": 203, "no_candidates": 7,
                "queries": 55, "empty_sources": ["graph"], "found_of_exact": {"text": 0.9876},
                "quarantine": "s3://b/quarantine/recall", "seconds": 3.0,
            },
            "train": {
                "steps": 30, "steps_planned": 40, "users": 2000, "tokens": 123_456, "decisions": 7890,
                "metric": "validation_ndcg@10", "best": 0.1234, "seconds": 194.2,
            },
        },
        "score": {
            "model": "s3://b/ranker", "model_version": "abc", "rows": 20_000, "quarantine": "s3://b/quarantine",
            "pairs": {"in": 94_300, "ranked": 20_000, "quarantined": 5}, "pairs_scored": 94_295, "tokens": 1000,
            "pairs_per_second": 41_624.4, "tokens_per_second": 15_592.6, "prefix_reuse": 100.0, "mfu": 0.043,
            "seconds": 17.3, "cost": 0.25, "cost_per_million_pairs": 2.65, "users_copied": 3, "reused": "r-0",
        },
        "price_per_hour": 2.5,
        "importance": {"ranker": 0.4, "item_item": 0.6},
        "curves": {
            "metric": "validation_ndcg@10", "loss": [[1, 7.5], [2, 6.25]], "validation": [[1, 0.05], [2, 0.1]],
        },
        "users": [
            {
                "user": "u1", "events": 12, "history": ["Flubber", "Star Maps"], "ranked": 20,
                "held_out": [
                    {"item": 7, "title": "Amistad", "rank": 1}, {"item": 8, "title": "Hard Rain", "rank": None},
                ],
                "rows": [
                    {"rank": 1, "item": 7, "title": "Amistad", "score": 2.5, "probability": 0.061, "source": "retrieve",
                     "hit": True, "parts": {"ranker": 5.125, "item_item": None}},
                    {"rank": 2, "item": 9, "title": "Fallen", "score": 1.5, "probability": 0.03, "source": "item_item",
                     "hit": False, "parts": {"ranker": 4.5, "item_item": 0.75}},
                ],
            },
        ],
        **changes,
    }  # fmt: skip
