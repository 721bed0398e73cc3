"""A record of a run to Weights & Biases, or with mode = offline to files that `wandb sync` sends later."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from llmrec.config import WandbTracking
from llmrec.engine.tracking import Record
from llmrec.errors import UserError

INIT_SECONDS = 30.0


def leave(record: Record, settings: WandbTracking) -> None:
    """Write a record as one run of a project.

    Raises:
        UserError: mode = online, and there is no API key; a job does not stop to ask for one.
    """
    import wandb

    if settings.mode == "online" and not wandb.login(prompt=False, verify=False):
        raise UserError("no API key; set WANDB_API_KEY, or tracking.wandb.mode to offline")
    run = wandb.init(
        project=settings.project, name=record.stage, job_type=record.stage, mode=settings.mode, reinit="create_new",
        config={**record.parameters, **{f"llmrec.{name}": value for name, value in record.tags.items()}},
        settings=wandb.Settings(
            silent=True, console="off", save_code=False, disable_git=True, x_disable_stats=True,
            init_timeout=INIT_SECONDS,
        ),
    )  # fmt: skip
    failed = True
    with tempfile.TemporaryDirectory(prefix="llmrec-wandb-") as folder:
        try:
            _fill(run, record, Path(folder))
            failed = bool(record.error)
        finally:
            run.finish(exit_code=1 if failed else 0)


def _fill(run: Any, record: Record, folder: Path) -> None:
    """folder: for the files, which have to lie somewhere."""
    import wandb

    for name, curve in record.curves.items():
        steps = f"{name.rsplit('/', 1)[0]}/step"
        run.define_metric(steps, hidden=True)
        run.define_metric(name, step_metric=steps)
        for step, value in curve:
            run.log({steps: step, name: value})
    run.summary.update(record.metrics)
    if record.error:
        run.summary["error"] = record.error
    artefact = wandb.Artifact(f"llmrec-{record.stage}", type="llmrec")
    for name, content in record.files.items():
        file = folder / name
        file.write_bytes(content)
        artefact.add_file(str(file))
    run.log_artifact(artefact)
