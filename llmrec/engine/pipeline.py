"""pipeline: the whole daily run as one job: every stage that something changed for, guards, gate, publish, report.

It is run again after anything that ended it: what is done is skipped, training goes on from its checkpoint and scoring
with the buckets that are missing. Nothing is published that a guard or a condition refuses.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from llmrec import config, storage
from llmrec.engine import drift, stages
from llmrec.engine.drift import OF_INPUTS, OF_SCORES, Drifted, Profile
from llmrec.engine.gate import Gated, gate
from llmrec.evaluation import conditions
from llmrec.evaluation.verdict import main_metric
from llmrec.layout import Layout
from llmrec.report import prometheus
from llmrec.tables import rankings

Say = Callable[[str], None]
Status = Literal["ran", "reused", "refused", "failed"]
PUBLISH, GATE = "publish", "gate"


@dataclass(frozen=True)
class Step:
    name: str
    status: Status
    seconds: float
    what: str


@dataclass
class Pipelined:
    """What a pipeline did. run_id: of what was scored, None if it did not come to that; published: readers see it now;
    new: since this pipeline; refused: why it is not shown, empty if it is; metrics: the file for Prometheus."""

    run_id: str | None = None
    published: bool = False
    new: bool = False
    refused: str = ""
    steps: list[Step] = field(default_factory=list)
    drift: Drifted | None = None
    gate: Gated | None = None
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    table: str = ""
    report: str = ""
    metrics: str = ""
    seconds: float = 0.0


def pipeline(settings: config.Config, layout: Layout, say: Callable[[str], Say], accept: bool = False) -> Pipelined:
    """Run what has to be run, and publish it if nothing speaks against that.

    say: makes, of a stage's name, what prints its lines; accept: whatever has drifted is right and stops nothing.

    Raises:
        UserError: of a stage; what came before it stays, and the metrics tell of the failure.
    """
    started, asked = time.monotonic(), [conditions.parse(text) for text in settings.evaluate.promote_if]
    table = storage.absolute(settings.score.output or layout.rankings)
    done = Pipelined(table=table, metrics=layout.metrics)
    staged = settings.model_copy(update={"score": settings.score.model_copy(update={"publish": False})})
    names = [n for n in stages.order(settings) if n != "evaluate" or settings.data.split != "none"]
    before = drift.reference(layout)
    inputs: Profile | None = None
    current = ""
    try:
        for name in names:
            current = name
            if name == PUBLISH:
                assert inputs is not None
                done.run_id = done.summaries["score"]["run_id"]
                now, kept = drift.profile_scores(inputs, layout, str(done.run_id), before, say("drift"))
                _drifted(done, settings.drift, now, before, (*OF_INPUTS, *OF_SCORES), "drift of scores")
                if _stopped(done, accept) or not _passes(done, settings, layout, asked, table, say(GATE)):
                    break
            _stage(name, staged if name in ("score", PUBLISH) else settings, done, say(name))
            if name == "prepare":
                inputs = drift.profile_inputs(settings.drift, layout, before, say("drift"))
                _drifted(done, settings.drift, inputs, before, OF_INPUTS, "drift of inputs")
                if _stopped(done, accept):
                    break
            if name == PUBLISH:
                done.published, done.new = True, bool(done.summaries[name]["new"])
                drift.keep(kept, layout)
    except BaseException:
        done.steps.append(Step(current, "failed", 0.0, ""))
        done.seconds = round(time.monotonic() - started, 1)
        with contextlib.suppress(Exception):  # what ended it is what is told, also if it was the store
            _tell(done, settings, layout, say("metrics"), succeeded=False)
        raise
    done.report = done.summaries.get("evaluate", {}).get("report", "")
    done.seconds = round(time.monotonic() - started, 1)
    _tell(done, settings, layout, say("metrics"), succeeded=not done.refused)
    return done


def _stage(name: str, settings: config.Config, done: Pipelined, say: Say) -> None:
    started = time.monotonic()
    summary = stages.run(name, settings, say, reuse=True)
    done.summaries[name] = summary
    again = summary.get("reused") is True or _had_all(name, summary)
    if again:
        say("nothing changed, reused")
    seconds = round(time.monotonic() - started, 1)
    done.steps.append(Step(name, "reused" if again else "ran", seconds, _what(name, summary)))


def _had_all(name: str, summary: dict[str, Any]) -> bool:
    """Whether a stage that looks by itself what is left to do found nothing."""
    if name == "score":
        return bool(summary["resumed"] == summary["staged"])
    return name == PUBLISH and not summary["new"]


def _what(name: str, summary: dict[str, Any]) -> str:
    """A stage in a few words."""
    told = {
        "feedback": ("outcomes", "impressions"), "prepare": ("users", "items", "events_kept"), "embed": ("encoded",),
        "train": ("users", "steps", "best"), "recall": ("users",), "fuse": ("users", "found"),
        "score": ("users", "rows", "users_copied"), "publish": ("version", "rows"), "explain": ("reasons",),
    }.get(name, ())  # fmt: skip
    values = {key: summary[key] for key in told if summary.get(key) is not None}
    if name == "evaluate":
        measured = summary["all_users"][0]["values"]
        metric = main_metric(measured)
        values = {metric: measured[metric]}
    shown = {key: f"{v:.4f}" if isinstance(v, float) else f"{v:,}" for key, v in values.items()}
    return ", ".join(f"{key.replace('_', ' ')} {text}" for key, text in shown.items())


def _drifted(
    done: Pipelined, settings: config.Drift, now: Profile, before: Profile | None, names: tuple[str, ...], what: str
) -> None:
    done.drift = drift.compare(settings, now, before, names)
    moved = [f"{of.of} {of.psi:.3f}" for of in done.drift.drifts if of.level != "steady"]
    told = "nothing to compare with yet" if before is None else ", ".join(moved) or "steady"
    done.steps.append(Step(what, "refused" if done.drift.stop else "ran", 0.0, told))


def _stopped(done: Pipelined, accept: bool) -> bool:
    assert done.drift is not None
    if not done.drift.stop or accept:
        return False
    done.refused = f"{done.drift.reasons()}; if that is right, run it again with --accept-drift"
    return True


def _passes(
    done: Pipelined, settings: config.Config, layout: Layout, asked: list[conditions.Condition], table: str, say: Say
) -> bool:
    """Whether the conditions hold of the staged run; nobody asks them of one that is shown already."""
    shown = rankings.snapshot(table).run_id if rankings.opened(table) is not None else None
    if not asked or shown == done.run_id:
        return True
    started = time.monotonic()
    found = gate(settings, layout, asked, done.run_id, say)
    done.gate = found
    failed = [f"{d.condition} ({d.metric} {d.candidate:.4f})" for d in found.decisions if not d.holds]
    told = ", ".join(failed) or f"{len(found.decisions)} conditions hold"
    seconds = round(time.monotonic() - started, 1)
    done.steps.append(Step(GATE, "ran" if found.holds else "refused", seconds, told))
    done.refused = "" if found.holds else f"does not hold: {told}"
    return found.holds


def _tell(done: Pipelined, settings: config.Config, layout: Layout, say: Say, succeeded: bool) -> None:
    """Metrics as a file under the root and, if so set, to a gateway, whose silence is no reason to fail."""
    run = rankings.snapshot(done.table) if rankings.opened(done.table) is not None else None
    registry = prometheus.registry(asdict(done), None if run is None else run.time.timestamp(), succeeded)
    storage.write_bytes(layout.metrics, prometheus.text(registry))
    if settings.pipeline.pushgateway and not prometheus.pushed(registry, settings.pipeline):
        say(f"pipeline.pushgateway = {settings.pipeline.pushgateway}: no answer; the metrics are in {layout.metrics}")
