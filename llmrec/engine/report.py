"""report: what a page on the evaluated run shows, gathered from what the stages left. Needs no cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from llmrec import config, storage
from llmrec.engine import score_parts
from llmrec.engine.ranking_lists import OURS, RANKER_ALONE
from llmrec.engine.run import as_run
from llmrec.errors import UserError
from llmrec.evaluation import sources, verdict
from llmrec.fusion.ablations import Fitted
from llmrec.layout import Layout
from llmrec.report.page import render
from llmrec.report.users import sample
from llmrec.schema import TIMESTAMPS
from llmrec.tables import buckets, rankings

STAGES = ("feedback", "prepare", "embed", "train", "recall", "bucket", "fuse", "score", "evaluate")
WITHOUT = "fused without "
NO_BASELINES = (sources.UNION, sources.SCORED, score_parts.RETRIEVE)
SAMPLE_USERS, RECENT_EVENTS, SHOWN_PLACES = 4, 10, 10


def write(shown: Mapping[str, Any], *uris: str) -> None:
    """One HTML file that needs nothing beside it, wherever it is to lie."""
    page = render(shown).encode()
    for uri in uris:
        storage.write_bytes(uri, page)


def gather(settings: config.Config, layout: Layout) -> dict[str, Any]:
    """Everything that the page shows, as one mapping that JSON can hold. Parts that no stage left are None or empty.

    Raises:
        UserError: nothing has been evaluated under this root.
    """
    if not storage.exists(layout.evaluation):
        raise UserError(f"{layout.evaluation}: nothing has been evaluated there; run jobs/evaluate.py first")
    evaluated = storage.read_json(layout.evaluation)
    if "run_id" not in evaluated:
        raise UserError(f"{layout.evaluation}: does not tell of which run it is; run jobs/evaluate.py again")
    table = storage.absolute(settings.score.output or layout.rankings)
    run_id = evaluated["run_id"]
    metric = verdict.main_metric(list(evaluated["all_users"][0]["values"]))
    summaries = {
        stage: storage.read_json(layout.summary(stage))["summary"]
        for stage in STAGES if storage.exists(layout.summary(stage))
    }  # fmt: skip
    kept = layout.run_summary(run_id)
    run = _snapshot(table, run_id)
    baselines = [s["name"] for s in evaluated["sources"] if s["name"] not in NO_BASELINES]
    without = WITHOUT + score_parts.RANKER
    compared = _comparisons(evaluated["all_users"], metric)
    return {
        "verdict": asdict(verdict.verdict(evaluated["all_users"], OURS, baselines, without, metric)),
        "comparisons": compared,
        "ablations": [name for name in compared if name == RANKER_ALONE or name.startswith(WITHOUT)],
        "by_metric": _by_metric(evaluated["all_users"], baselines),
        "same_users": {
            name: {
                "rows": rows,
                "comparisons": _comparisons(rows, metric) if rows else {},
                "by_metric": _by_metric(rows, [*baselines, name]) if rows else {},
            }
            for name, rows in evaluated["same_users"].items()
        },
        "ours": OURS,
        "baselines": baselines,
        "metric": metric,
        "run": {
            "run_id": run_id, "table": table,
            "published": None if run is None else {"version": run.version, "time": f"{run.time:%Y-%m-%d %H:%M} UTC"},
        },
        "settings": _changed(as_run(settings, layout, run_id).model_dump(mode="json")),
        "period": _period(layout),
        "summaries": summaries,
        "score": storage.read_json(kept) if storage.exists(kept) else None,
        "price_per_hour": settings.score.price_per_hour,
        "evaluation": evaluated,
        "importance": _importance(layout.fusion_of(run_id)),
        "curves": storage.read_json(layout.curves) if storage.exists(layout.curves) else None,
        "users": [] if run is None else sample(layout, run, SAMPLE_USERS, RECENT_EVENTS, SHOWN_PLACES),
    }  # fmt: skip


def _snapshot(table: str, run_id: str) -> rankings.Snapshot | None:
    """None if its rows are gone by now."""
    try:
        return rankings.snapshot(table, run_id)
    except UserError:
        return None


def _comparisons(rows: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """By the name of each other ranking: ours against it."""
    ours = next(row for row in rows if row["name"] == OURS)
    return {row["name"]: asdict(verdict.compare(ours, row, metric)) for row in rows if row is not ours}


def _by_metric(rows: list[dict[str, Any]], others: list[str]) -> dict[str, Any]:
    """By every metric: ours against the best of some others, if there is any."""
    found = {metric: verdict.against_best(rows, OURS, others, metric) for metric in rows[0]["values"]}
    return {metric: asdict(comparison) for metric, comparison in found.items() if comparison is not None}


def _changed(found: Mapping[str, Any], of: type[BaseModel] = config.Config, prefix: str = "") -> list[dict[str, str]]:
    """Settings that differ from their defaults."""
    rows = []
    for name, field in of.model_fields.items():
        if name not in found:  # a dump leaves out what is at its default, where the field says so
            continue
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            rows += _changed(found[name], kind, f"{prefix}{name}.")
            continue
        default = field.default
        default = list(default) if isinstance(default, tuple) else default
        if found[name] != default:
            rows.append({
                "key": prefix + name, "value": storage.redact(_text(found[name])), "default": _text(default),
            })  # fmt: skip
    return rows


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_text(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return "none" if value in ("", None) else str(value)


def _period(layout: Layout) -> list[str] | None:
    """The first and the last day of the events in histories."""
    files = buckets.bucket_files(layout.histories).values()
    told = [b for b in storage.each(lambda uri: buckets.bounds(uri, TIMESTAMPS), files) if b is not None]
    ends = (min(b[0] for b in told), max(b[1] for b in told)) if told else ()
    return [datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%d") for end in ends] or None


def _importance(uri: str) -> dict[str, float] | None:
    """What each part of a run's fusion counts."""
    if not storage.exists(uri):
        return None
    return Fitted.from_json(storage.read_bytes(uri), uri).full.importance()
