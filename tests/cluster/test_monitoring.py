"""The alert rules by Prometheus' own tool, the dashboard by Grafana's schema, both against what a pipeline tells."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmrec.report import prometheus

MONITORING = Path(__file__).resolve().parents[2] / "cluster" / "monitoring"
EVERYTHING: dict[str, Any] = {
    "refused": "", "seconds": 1.0, "steps": [{"name": "train", "seconds": 3.0}],
    "drift": {"drifts": [{"of": "scores", "psi": 0.1}], "event_age_hours": 2.0},
    "summaries": {
        "prepare": {"events_kept": 9, "set_aside": {"null_id": 1}},
        "score": {
            "users": 1, "rows": 2, "pairs_scored": 3, "pairs_per_second": 4.0, "cost": 5.0, "pairs": {"quarantined": 0},
        },
        "evaluate": {"all_users": [{"values": {"ndcg@10": 0.1}}]},
    },
}  # fmt: skip


def told() -> dict[str, set[str]]:
    """Every metric of a pipeline, and its labels."""
    registry = prometheus.registry(EVERYTHING, 99.0, succeeded=True)
    return {family.name: set(family.samples[0].labels) for family in registry.collect()}


def asked(expression: str) -> set[str]:
    return set(re.findall(r"llmrec_[a-z_]+", expression))


@pytest.mark.parametrize("arguments", [["check", "rules", "rules.yaml"], ["test", "rules", "rules_test.yaml"]])
def test_prometheus_takes_the_rules_and_they_fire_when_they_should(arguments: list[str]) -> None:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run([tool, *arguments], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_ask_for_metrics_that_there_are() -> None:
    rules = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"][0]["rules"]
    names = set().union(*(asked(rule["expr"]) for rule in rules))
    assert names and names <= set(told())


def test_grafana_reads_the_dashboard_as_it_is_written() -> None:
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    written = json.loads((MONITORING / "dashboard.json").read_text())
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(written)))
    assert missing(written, read) == [], "what Grafana's schema does not know, or reads as something else"
    assert len({panel["id"] for panel in written["panels"]}) == len(written["panels"]) > 5


def missing(written: Any, read: Any, where: str = "") -> list[str]:
    """Places of `written` that `read` lacks or has otherwise; what it has beside them are defaults."""
    if isinstance(written, dict) and isinstance(read, dict):
        return [line for name, value in written.items() for line in missing(value, read.get(name), f"{where}/{name}")]
    if isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        pairs = enumerate(zip(written, read, strict=True))
        return [line for i, (a, b) in pairs for line in missing(a, b, f"{where}/{i}")]
    return [] if written == read else [f"{where}: {written!r}, read as {read!r}"]


def test_the_dashboard_shows_metrics_and_labels_that_there_are() -> None:
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    known = told()
    for target in (target for panel in panels for target in panel["targets"]):
        names = asked(target["expr"])
        assert names and names <= set(known), target["expr"]
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert all(label in known[name] for name in names), target
