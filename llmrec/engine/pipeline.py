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
from llmrec.errors import UserError
from llmrec.evaluation import conditions
from llmrec.evaluation.verdict import main_metric
from llmrec.layout import Layout
from llmrec.report import prometheus
from llmrec.tables import inputs, rankings

Say = Callable[[str], None]
Status = Literal["ran", "reused", "skipped", "accepted", "refused", "failed"]
FEEDBACK, PUBLISH, GATE = "feedback", "publish", "gate"


@dataclass(frozen=True)
class Step:
    name: str
    status: Status
    seconds: float
    what: str


@dataclass
class Pipelined:
    """What a pipeline did. run_id: of what was scored, None if it did not come to that; published: readers see it now;
    new: since this pipeline; refused: why it is not shown, empty if it is, or was left staged as score.publish = false
    asks; metrics: the file for Prometheus."""

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


def checked(settings: config.Config) -> list[conditions.Condition]:
    """What the gate asks.

    Raises:
        UserError: a condition is none, or nothing is held out that it could be asked of.
    """
    asked = [conditions.parse(text) for text in settings.evaluate.promote_if]
    if asked and settings.data.split == "none":
        raise UserError(
            "evaluate.promote_if asks what only held-out events tell, and data.split = none holds none out; set "
            "data.split to time or leave_one_out, or leave evaluate.promote_if out"
        )
    return asked


def not_begun(settings: config.Config, layout: Layout, say: Say) -> None:
    """Let the metrics tell of a pipeline that failed before it began, or the success before it would stand."""
    _tell(_empty(settings, layout), settings, layout, say, succeeded=False)


def pipeline(settings: config.Config, layout: Layout, say: Callable[[str], Say], accept: bool = False) -> Pipelined:
    """Run what has to be run, and publish it if nothing speaks against that.

    say: makes, of a stage's name, what prints its lines; accept: whatever has drifted is right and stops nothing.

    Raises:
        UserError: of a stage; what came before it stays, and the metrics tell of the failure.
    """
    started, done = time.monotonic(), _empty(settings, layout)
    inputs: Profile | None = None
    current = "begin"
    try:
        asked = checked(settings)
        before = drift.reference(layout)
        settings = _without_feedback(settings, done, say(FEEDBACK))
        staged = settings.model_copy(update={"score": settings.score.model_copy(update={"publish": False})})
        for name in [n for n in stages.order(settings) if n != "evaluate" or settings.data.split != "none"]:
            current = name
            if name == PUBLISH:
                assert inputs is not None
                done.run_id = done.summaries["score"]["run_id"]
                now, kept = drift.profile_scores(inputs, layout, str(done.run_id), before, say("drift"))
                _drifted(done, settings.drift, now, before, (*OF_INPUTS, *OF_SCORES), "drift of scores", accept)
                if _stopped(done, accept) or not _passes(done, settings, layout, asked, say(GATE)):
                    break
                if not settings.score.publish and _shown(done.table) != done.run_id:
                    done.steps.append(Step(PUBLISH, "skipped", 0.0, "score.publish = false"))
                    break
            _stage(name, staged if name in ("score", PUBLISH) else settings, done, say(name))
            if name == "prepare":
                inputs = drift.profile_inputs(settings.drift, layout, before, say("drift"))
                _drifted(done, settings.drift, inputs, before, OF_INPUTS, "drift of inputs", accept)
                if _stopped(done, accept):
                    break
            if name == PUBLISH:
                done.published, done.new = True, bool(done.summaries[name]["new"])
                drift.keep(kept, layout)
    except BaseException:
        done.steps.append(Step(current, "failed", 0.0, ""))
        done.seconds = round(time.monotonic() - started, 1)
        _tell(done, settings, layout, say("metrics"), succeeded=False)
        raise
    done.report = done.summaries.get("evaluate", {}).get("report", "")
    done.seconds = round(time.monotonic() - started, 1)
    _tell(done, settings, layout, say("metrics"), succeeded=not done.refused)
    return done


def _empty(settings: config.Config, layout: Layout) -> Pipelined:
    return Pipelined(table=storage.absolute(settings.score.output or layout.rankings), metrics=layout.metrics)


def _without_feedback(settings: config.Config, done: Pipelined, say: Say) -> config.Config:
    """The settings, without impressions where none lie there: before anything is published, nothing was shown."""
    where = settings.feedback.impressions
    if not where or inputs.found(where):
        return settings
    say(f"{where}: no Parquet files there; going on without impressions")
    done.steps.append(Step(FEEDBACK, "skipped", 0.0, "no impressions there"))
    return settings.model_copy(update={"feedback": settings.feedback.model_copy(update={"impressions": ""})})


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
    done: Pipelined, settings: config.Drift, now: Profile, before: Profile | None, names: tuple[str, ...], what: str,
    accept: bool,
) -> None:  # fmt: skip
    done.drift = drift.compare(settings, now, before, names)
    moved = [f"{of.of} {of.psi:.3f}" for of in done.drift.drifts if of.level != "steady"]
    told = "nothing to compare with yet" if before is None else ", ".join(moved) or "steady"
    status: Status = "ran" if not done.drift.stop else "accepted" if accept else "refused"
    done.steps.append(Step(what, status, 0.0, told))


def _stopped(done: Pipelined, accept: bool) -> bool:
    assert done.drift is not None
    if not done.drift.stop or accept:
        return False
    done.refused = f"{done.drift.reasons()}; if that is right, run it again with --accept-drift"
    return True


def _passes(
    done: Pipelined, settings: config.Config, layout: Layout, asked: list[conditions.Condition], say: Say
) -> bool:
    """Whether the conditions hold of the staged run; nobody asks them of one that is shown already."""
    if not asked:
        say("no condition (evaluate.promote_if)")
        done.steps.append(Step(GATE, "skipped", 0.0, "no condition (evaluate.promote_if)"))
        return True
    if _shown(done.table) == done.run_id:
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


def _shown(table: str) -> str | None:
    return rankings.snapshot(table).run_id if rankings.opened(table) is not None else None


def _tell(done: Pipelined, settings: config.Config, layout: Layout, say: Say, succeeded: bool) -> None:
    """Metrics as a file under the root and, if so set, to a gateway. What hinders it is told, and no reason to fail."""
    try:
        _metrics(done, settings, layout, say, succeeded)
    except Exception as error:  # noqa: BLE001 - of whichever store; the run is what it is without
        told = storage.redact((str(error).splitlines() or [type(error).__name__])[0])
        say(f"{layout.metrics} does not tell of this pipeline: {told[:200]}")


def _metrics(done: Pipelined, settings: config.Config, layout: Layout, say: Say, succeeded: bool) -> None:
    published: float | None = None
    with contextlib.suppress(UserError):  # what cannot be read has no metric
        if rankings.opened(done.table) is not None:
            published = rankings.snapshot(done.table).time.timestamp()
    registry = prometheus.registry(asdict(done), published, succeeded)
    try:
        storage.write_bytes(layout.metrics, prometheus.text(registry))
    finally:
        if settings.pipeline.pushgateway and not prometheus.pushed(registry, settings.pipeline):
            say(f"pipeline.pushgateway = {settings.pipeline.pushgateway}: no answer; see {layout.metrics}")
