"""The daily run, day after day, on a mini cluster and an S3 server: what is done again, and what refuses to publish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from prometheus_client.parser import text_string_to_metric_families
from test_item_tokens import quietly

from llmrec import config, storage
from llmrec.engine import stages
from llmrec.engine.pipeline import Pipelined, pipeline
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.tables import buckets, rankings

RAW, ROOT = "s3://llmrec-test/raw-pipeline", "s3://llmrec-test/pipeline"
USERS, ITEMS = 80, 24


def log(days: int, seed: int = 0, items: range = range(ITEMS)) -> pa.Table:
    """Users go round a ring of items, some events a day."""
    rng = np.random.default_rng(seed)
    start = rng.integers(len(items), size=USERS)
    rows = [
        (f"u{user:02}", f"i{items[(start[user] + step) % len(items)]:02}", 100_000 + 3600 * 12 * step + user)
        for step in range(4 * days) for user in range(USERS)
    ]  # fmt: skip
    users, item, at = zip(*rows, strict=True)
    return pa.table({"user_id": list(users), "item_id": list(item), "timestamp": list(at)})


def settings(model: Any, **sections: Any) -> config.Config:
    values: dict[str, Any] = {
        "root": ROOT,
        "data": {**{n: f"{RAW}/{n}.parquet" for n in ("items", "interactions")}, "buckets": 2, "split": "time"},
        "prompt": {"max_history": 8, "before_history": "w1"},
        "model": {"base": str(model), "items": "token", "head": "retrieve"},
        "items": {"encoder": "", "id_start": 4},
        "train": {
            "start": "previous", "workers": 1, "max_steps": 8, "users_per_step": 5, "validate_every": 8,
            "precision": "float32", "head_learning_rate": 1e-2,
        },
        "recall": {"merge": ["item_item", "popularity"], "candidates": 15},
        "score": {"top_k": 5, "precision": "float32"},
        "evaluate": {"cutoffs": [5], "bootstrap": 50, "permutations": 50, "promote_if": ["ndcg@5 >= 0"]},
        "drift": {"stop_on": ["item_mix"], "window_days": 30},
    }  # fmt: skip
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return config.build(values)


def run(wanted: config.Config, accept: bool = False) -> Pipelined:
    return pipeline(wanted, Layout.of(wanted), lambda name: quietly, accept)


def statuses(done: Pipelined) -> dict[str, str]:
    return {step.name: step.status for step in done.steps}


def metric(name: str, **labels: str) -> float | None:
    """Of the file that the last pipeline left, by Prometheus' own parser."""
    text = storage.read_bytes(Layout(ROOT).metrics).decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return None


@pytest.fixture(scope="module")
def first_day(cluster: Any, tiny_model: Path) -> Pipelined:
    items = pa.table({"item_id": [f"i{i:02}" for i in range(ITEMS)], "title": [f"w{i} w{i % 7}" for i in range(ITEMS)]})
    buckets.write_parquet(items, f"{RAW}/items.parquet")
    buckets.write_parquet(log(3), f"{RAW}/interactions.parquet")
    return run(settings(tiny_model))


def test_the_first_day_runs_everything_and_publishes(first_day: Pipelined) -> None:
    assert first_day.published and first_day.new and not first_day.refused
    assert statuses(first_day) == dict.fromkeys(
        ("prepare", "drift of inputs", "embed", "train", "recall", "score", "drift of scores", "gate", "publish",
         "evaluate"), "ran",
    )  # fmt: skip
    assert rankings.snapshot(Layout(ROOT).rankings).run_id == first_day.run_id
    assert storage.exists(first_day.report)
    assert metric("llmrec_pipeline_success") == 1 and metric("llmrec_published_timestamp_seconds")
    assert (
        metric("llmrec_metric", metric="ndcg@5") == first_day.summaries["evaluate"]["all_users"][0]["values"]["ndcg@5"]
    )
    assert metric("llmrec_drift_psi", of="item_mix") is None, "there was nothing to compare with"


def test_nothing_is_done_again_when_nothing_changed(first_day: Pipelined, tiny_model: Path) -> None:
    version = rankings.snapshot(Layout(ROOT).rankings).version
    again = run(settings(tiny_model))
    assert {s.name: s.status for s in again.steps if "drift" not in s.name} == dict.fromkeys(
        ("prepare", "embed", "train", "recall", "score", "publish", "evaluate"), "reused"
    )
    assert (again.published, again.new, again.run_id) == (True, False, first_day.run_id)
    assert rankings.snapshot(Layout(ROOT).rankings).version == version
    assert again.drift is not None and all(of.psi == 0 for of in again.drift.drifts) and again.drift.drifts


def test_a_new_day_goes_on_from_the_ranker_and_stops_at_a_condition_that_does_not_hold(
    first_day: Pipelined, tiny_model: Path
) -> None:
    buckets.write_parquet(log(4), f"{RAW}/interactions.parquet")
    strict = settings(tiny_model, evaluate={"cutoffs": [5], "promote_if": ["ndcg@5 > 1"]})
    refused = run(strict)
    assert (refused.published, statuses(refused)["gate"]) == (False, "refused")
    assert "ndcg@5 > 1" in refused.refused
    assert rankings.snapshot(Layout(ROOT).rankings).run_id == first_day.run_id
    assert refused.summaries["train"]["start"] == "previous"
    assert metric("llmrec_pipeline_success") == 0 and metric("llmrec_pipeline_refused") == 1

    done = run(settings(tiny_model))
    assert done.new and done.run_id == refused.run_id, "what was staged is published as it is"
    assert statuses(done)["train"] == statuses(done)["score"] == "reused"
    reference = storage.read_json(Layout(ROOT).profile)
    assert reference["run_id"] == done.run_id


def test_a_log_of_other_items_stops_before_training_unless_it_is_accepted(
    first_day: Pipelined, tiny_model: Path
) -> None:
    shown = rankings.snapshot(Layout(ROOT).rankings).run_id
    ranker = storage.manifest(Layout(ROOT).ranker)
    before = buckets.read_parquet(f"{RAW}/interactions.parquet")
    buckets.write_parquet(log(2, seed=1, items=range(12)), f"{RAW}/interactions.parquet")
    refused = run(settings(tiny_model))
    assert [s.name for s in refused.steps] == ["prepare", "drift of inputs"]
    assert refused.refused.startswith("item_mix has moved by a PSI of ") and "--accept-drift" in refused.refused
    assert storage.manifest(Layout(ROOT).ranker) == ranker
    assert rankings.snapshot(Layout(ROOT).rankings).run_id == shown
    assert (metric("llmrec_drift_psi", of="item_mix") or 0) > 0.25

    accepted = run(settings(tiny_model), accept=True)
    assert accepted.new and accepted.drift is not None and accepted.drift.stop
    assert run(settings(tiny_model)).refused == "", "what was accepted is the reference from now on"
    buckets.write_parquet(before, f"{RAW}/interactions.parquet")


def test_a_log_that_did_not_come_stops_too(first_day: Pipelined, tiny_model: Path) -> None:
    late = run(settings(tiny_model, drift={"stop_on": [], "max_event_age_hours": 24}))
    assert "the newest event is" in late.refused and statuses(late)["drift of inputs"] == "refused"


def test_a_stage_that_fails_is_told_by_the_metrics(first_day: Pipelined, tiny_model: Path) -> None:
    wrong = settings(tiny_model, data={"interactions": f"{RAW}/nothing.parquet"})
    with pytest.raises(UserError, match=r"nothing.parquet: no Parquet files there"):
        run(wrong)
    assert metric("llmrec_pipeline_success") == 0 and metric("llmrec_pipeline_refused") == 0
    assert metric("llmrec_published_timestamp_seconds"), "what readers see is still there"
    stages.run("prepare", settings(tiny_model), quietly)
