"""A record of a run to an MLflow server or database, by a client of its own: MLflow's global state stays as it is."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmrec.config import MlflowTracking
from llmrec.engine.tracking import Record

# A server that does not answer holds a job up by seconds, not by MLflow's minutes.
DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
AT_ONCE = 100  # parameters a call; MLflow takes no more


def leave(record: Record, settings: MlflowTracking) -> None:
    """Write a record as one run of an experiment, which is made if there is none."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow
    from mlflow.entities import Param, RunTag

    client = mlflow.MlflowClient(tracking_uri=settings.uri)
    experiment = client.get_experiment_by_name(settings.experiment)
    experiment_id = client.create_experiment(settings.experiment) if experiment is None else experiment.experiment_id
    run = client.create_run(experiment_id, start_time=_milliseconds(record.started), run_name=record.stage)
    run_id = run.info.run_id
    try:
        tags = record.tags | ({"error": record.error} if record.error else {})
        client.log_batch(run_id, tags=[RunTag(f"llmrec.{name}", value) for name, value in tags.items()])
        for some in _parts([Param(name, value) for name, value in record.parameters.items()]):
            client.log_batch(run_id, params=some)
        for some in _parts(list(_metrics(record))):
            client.log_batch(run_id, metrics=some)
        with tempfile.TemporaryDirectory(prefix="llmrec-mlflow-") as folder:
            for name, content in record.files.items():
                (Path(folder) / name).write_bytes(content)
            client.log_artifacts(run_id, folder)
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FAILED" if record.error else "FINISHED", _milliseconds(record.ended))


def _metrics(record: Record) -> Iterator[Any]:
    from mlflow.entities import Metric

    at = _milliseconds(record.ended)
    for name, value in record.metrics.items():
        yield Metric(name, value, at, 0)
    for name, curve in record.curves.items():
        for step, value in curve:
            yield Metric(name, value, at, step)


def _parts(found: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(found), AT_ONCE):
        yield found[start : start + AT_ONCE]


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
