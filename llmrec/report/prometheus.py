"""A pipeline's figures as Prometheus metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest, push_to_gateway

from llmrec.config import Pipeline

PUSH_SECONDS = 10


def registry(done: Mapping[str, Any], published_at: float | None, succeeded: bool) -> CollectorRegistry:
    """done: a `Pipelined` as a dict; published_at: unix seconds of what readers see, None if nothing.

    What a pipeline did not come to has no metric.
    """
    found = CollectorRegistry()

    def gauge(name: str, about: str, *labels: str) -> Gauge:
        return Gauge(f"llmrec_{name}", about, labels, registry=found)

    gauge("pipeline_finished_timestamp_seconds", "When the pipeline ended").set(time.time())
    gauge("pipeline_success", "1 if it published, staged or had nothing new; 0 if refused or failed").set(succeeded)
    gauge("pipeline_refused", "1 if a guard or a condition refused to publish").set(bool(done["refused"]))
    gauge("pipeline_seconds", "How long the pipeline took").set(done["seconds"])
    if published_at is not None:
        gauge("published_timestamp_seconds", "When what readers see was published").set(published_at)
    steps = gauge("stage_seconds", "How long each stage took", "stage")
    for step in done["steps"]:
        steps.labels(step["name"]).set(step["seconds"])
    drift = done["drift"]
    if drift is not None:
        psi = gauge("drift_psi", "Population stability index against the last published run", "of")
        for of in drift["drifts"]:
            psi.labels(of["of"]).set(of["psi"])
        if drift["event_age_hours"] is not None:
            newest = gauge("newest_event_timestamp_seconds", "When the newest event of the log was")
            newest.set(time.time() - 3600 * drift["event_age_hours"])
    summaries = done["summaries"]
    if "prepare" in summaries:
        prepared = summaries["prepare"]
        gauge("events", "Events of the log that are used").set(prepared["events_kept"])
        aside = gauge("events_set_aside", "Events that are not used", "reason")
        for reason, count in prepared["set_aside"].items():
            aside.labels(reason).set(count)
    if "score" in summaries:
        score = summaries["score"]
        for key, about in (("users", "Users with a list"), ("rows", "Rows of the rankings"),
                           ("pairs_scored", "Pairs that the model scored"), ("pairs_per_second", "Pairs a second"),
                           ("cost", "Cost of scoring, in the unit of score.price_per_hour")):  # fmt: skip
            gauge(f"score_{key}", about).set(score[key])
        gauge("score_pairs_quarantined", "Bad candidates").set(score["pairs"]["quarantined"])
    if "evaluate" in summaries:
        metric = gauge("metric", "Held-out metrics of the published rankings", "metric")
        for name, value in summaries["evaluate"]["all_users"][0]["values"].items():
            metric.labels(name).set(value)
    return found


def text(of: CollectorRegistry) -> bytes:
    """The exposition format, for a textfile collector or any scraper."""
    return generate_latest(of)


def pushed(of: CollectorRegistry, settings: Pipeline) -> bool:
    """Whether a Pushgateway took the metrics in place of those of the run before."""
    try:
        push_to_gateway(settings.pushgateway, job=settings.job, registry=of, timeout=PUSH_SECONDS)
    except (OSError, HTTPException, ValueError):  # nothing there, no HTTP, no address
        return False
    return True
