"""What a pipeline did, and what has drifted, for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmrec.report.gate import print_gate
from llmrec.report.terminal import console, print_rows


def print_pipeline(done: Mapping[str, Any]) -> None:
    """done: a `Pipelined` as a dict."""
    if done["drift"] is not None:
        print_drift(done["drift"])
    if done["gate"] is not None:
        print_gate(done["gate"])
    print_rows(
        "pipeline", ["step", "", "seconds", "what"],
        [[of["name"], of["status"], of["seconds"], of["what"]] for of in done["steps"]],
    )  # fmt: skip
    if done["refused"]:
        console().print(f"NOT published: {done['refused']}")
        console().print("readers still see the run before")
    elif done["published"]:
        told = "published" if done["new"] else "shown already"
        console().print(f"run {done['run_id']} is {told}: {done['table']}")
    else:
        console().print(f"run {done['run_id']} is staged (score.publish = false); jobs/publish.py shows it to readers")
    if done["report"]:
        console().print(f"report: {done['report']}")
    console().print(f"metrics: {done['metrics']}; {done['seconds']:,.0f} s in all")


def print_drift(done: Mapping[str, Any]) -> None:
    """done: a `Drifted` as a dict."""
    if done["reference_run"] is None and not done["drifts"]:
        console().print("drift: nothing to compare with; the pipeline keeps a reference when it publishes")
        return
    print_rows(
        f"drift since run {done['reference_run']} was published", ["of", "PSI", "by chance", "", "moved most"],
        [
            [
                of["of"], of["psi"], of["chance"], of["level"],
                ", ".join(f"{name}: {before:.1%} to {now:.1%}" for name, (before, now) in of["moved"].items()),
            ]
            for of in done["drifts"]
        ],
    )  # fmt: skip
    if done["event_age_hours"] is not None:
        stale = ", more than drift.max_event_age_hours allows" if done["stale"] else ""
        console().print(f"the newest event is {done['event_age_hours']:,.1f} hours old{stale}")
