"""What a stage's run leaves with a tracking server: MLflow, Weights & Biases, both, or none.

Neither package is imported unless the configuration asks for it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

import llmrec
from llmrec import storage
from llmrec.config import Config, Tracking
from llmrec.engine.session import user_error_in
from llmrec.errors import UserError
from llmrec.layout import Layout

LONGEST = 500  # characters of a parameter's value


@dataclass(frozen=True)
class Record:
    """One run of a stage. tags: what it was a run of; parameters: the configuration by whole key; metrics: the numbers
    of its summary; curves: (step, value) by name; files: content by name; error: why it failed, or empty; started,
    ended: unix seconds."""

    stage: str
    started: float
    ended: float
    tags: dict[str, str]
    parameters: dict[str, str]
    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    error: str = ""


def check(tracking: Tracking) -> None:
    """
    Raises:
        UserError: a package that is asked for is not installed.
    """
    for name, on in (("mlflow", tracking.mlflow.uri), ("wandb", tracking.wandb.project)):
        if on and importlib.util.find_spec(name) is None:
            raise UserError(f"tracking.{name} takes a package that is not installed; pip install 'llmrec[{name}]'")


def tracked(
    stage: str, config: Config, layout: Layout, say: Callable[[str], None], work: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Do a stage's work and leave a record of it, if any is asked for, also where it fails; the work's summary.

    Raises:
        UserError: tracking.strict is set, and a server does not take the record of work that is done.
    """
    if not config.tracking.on:
        return work()
    started = time.time()
    try:
        summary = work()
    except Exception as error:
        told = storage.redact(str(user_error_in(error) or f"{type(error).__name__}: {error}"))
        failed = partial(_record, stage, config, layout, {}, started, time.time(), told[:LONGEST])
        _leave(failed, stage, config.tracking, say, strict=False)
        raise
    done = partial(_record, stage, config, layout, summary, started, time.time())
    _leave(done, stage, config.tracking, say, config.tracking.strict)
    return summary


def numbers(summary: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a summary by their path in it; of a list, those of entries that have a name. In names there is
    nothing but what MLflow takes, and `@` is `_at_`."""
    for key, value in summary.items():
        name = prefix + re.sub(r"[^\w\-. /]", "_", str(key).replace("@", "_at_"))
        if isinstance(value, (bool, int, float)):
            yield name, float(value)
        elif isinstance(value, Mapping):
            yield from numbers(value, f"{name}.")
        elif isinstance(value, (list, tuple)):
            named = {of["name"]: of for of in value if isinstance(of, Mapping) and "name" in of}
            yield from numbers(named, f"{name}.")


def parameters(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings by their whole key, without secrets."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from parameters(value, f"{prefix}{key}.")
        else:
            yield re.sub(r"[^\w\-. /]", "_", prefix + str(key)), storage.redact(str(value))[:LONGEST]


def _leave(
    make: Callable[[], Record], stage: str, tracking: Tracking, say: Callable[[str], None], strict: bool
) -> None:
    """make: the record, for which files are read that the store may not give."""
    for name, on, leave in (
        ("mlflow", tracking.mlflow.uri, _to_mlflow), ("wandb", tracking.wandb.project, _to_wandb)
    ):  # fmt: skip
        if not on:
            continue
        try:
            leave(make(), tracking)
        except Exception as error:
            # Whatever a server, its client or the store comes up with: the work is done.
            reason = storage.redact(" ".join(str(error).split()))[:300] or type(error).__name__
            if strict:
                raise UserError(f"tracking.{name}: {stage} is done, but its record was not taken: {reason}") from error
            say(f"warning: tracking.{name}: no record of this run: {reason}")


def _to_mlflow(record: Record, tracking: Tracking) -> None:
    from llmrec.engine import tracking_mlflow

    tracking_mlflow.leave(record, tracking.mlflow)


def _to_wandb(record: Record, tracking: Tracking) -> None:
    from llmrec.engine import tracking_wandb

    tracking_wandb.leave(record, tracking.wandb)


def _record(
    stage: str, config: Config, layout: Layout, summary: Mapping[str, Any], started: float, ended: float,
    error: str = "",
) -> Record:  # fmt: skip
    values = config.model_dump(mode="json")
    tags = {"stage": stage, "root": storage.redact(layout.root), "package_version": _version(), "code": _code()}
    model = summary.get("model_version") or (summary.get("version") if stage == "train" else None)
    tags |= {"model_version": str(model)} if model else {}
    tags |= {"run_id": str(summary["run_id"])} if "run_id" in summary else {}
    files = {"config.yaml": storage.redact(yaml.safe_dump(values, sort_keys=False, allow_unicode=True)).encode()}
    files |= {name: storage.read_bytes(uri) for name, uri in _artefacts(stage, layout, summary).items()}
    return Record(
        stage, started, ended, tags, dict(parameters(values)), dict(numbers(summary)),
        _curves(stage, layout, summary), files, error,
    )  # fmt: skip


def _artefacts(stage: str, layout: Layout, summary: Mapping[str, Any]) -> dict[str, str]:
    """Names and URIs of what a stage that is done left for people to look at."""
    if not summary:
        return {}
    if stage == "evaluate":
        return {"evaluation.json": layout.evaluation, "report.html": layout.report}
    if stage == "search":
        return {"best.yaml": summary["config"], "trials.json": summary["table"]}
    return {}


def _curves(stage: str, layout: Layout, summary: Mapping[str, Any]) -> dict[str, list[tuple[int, float]]]:
    if stage == "search" and summary:
        metric = _plain(summary["metric"])
        return {f"trials/{of['number']}/{metric}": of["curve"] for of in summary["trials"]}
    if stage == "train" and summary and storage.exists(layout.curves):
        found = storage.read_json(layout.curves)
        return {"train/loss": found["loss"], f"validation/{_plain(found['metric'])}": found["validation"]}
    return {}


def _plain(metric: str) -> str:
    return metric.replace("@", "_at_")


def _version() -> str:
    try:
        return importlib.metadata.version("llmrec")
    except importlib.metadata.PackageNotFoundError:  # read from a checkout
        return "unknown"


@functools.cache
def _code() -> str:
    """A hash of the package's source: the same code has the same, installed or not."""
    folder = Path(llmrec.__file__).parent
    found = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        found.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return found.hexdigest()[:12]
