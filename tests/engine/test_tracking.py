"""What a stage's run leaves with MLflow and Weights & Biases, read back by their own clients and formats."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmrec import config, storage
from llmrec.engine import stages, tracking
from llmrec.engine.tracking import numbers, tracked
from llmrec.errors import UserError
from llmrec.layout import Layout

HERE = Path(__file__).parents[2]
CURVES = {"metric": "validation_ndcg@10", "loss": [[1, 2.5], [2, 1.25]], "validation": [[2, 0.5]]}
SUMMARY = {"ranker": "somewhere", "version": "abc123", "steps": 2, "best": 0.5, "seconds": 1.5}


def settings(root: Path, **asked: Any) -> config.Config:
    return config.build({"root": str(root), "train": {"learning_rate": 0.25}, "tracking": asked})


def trained(wanted: config.Config, say: Any = lambda _: None) -> dict[str, Any]:
    """What train leaves, and its record."""
    layout = Layout.of(wanted)
    storage.write_json(layout.curves, CURVES)
    return tracked("train", wanted, layout, say, lambda: dict(SUMMARY))


@pytest.fixture
def store(tmp_path: Path) -> tuple[str, Any]:
    """An MLflow database, its artefacts beside it, and MLflow's client."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    pytest.importorskip("sqlalchemy", reason="no database without SQLAlchemy")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=uri)
    client.create_experiment("recommender", artifact_location=str(tmp_path / "artefacts"))
    return uri, client


def runs(client: Any) -> list[Any]:
    return client.search_runs([client.get_experiment_by_name("recommender").experiment_id])


def test_mlflow_has_what_the_run_was_of_its_figures_curves_and_files(tmp_path: Path, store: tuple[str, Any]) -> None:
    uri, client = store
    wanted = settings(tmp_path / "root", mlflow={"uri": uri, "experiment": "recommender"})
    assert trained(wanted) == SUMMARY
    (run,) = runs(client)
    assert run.info.status == "FINISHED" and run.info.run_name == "train"
    assert run.info.end_time >= run.info.start_time > 1e12
    tags = {k.removeprefix("llmrec."): v for k, v in run.data.tags.items() if k.startswith("llmrec.")}
    assert (tags["stage"], tags["root"], tags["model_version"]) == ("train", str(tmp_path / "root"), "abc123")
    assert len(tags["code"]) == 12 and tags["package_version"]
    assert run.data.params["train.learning_rate"] == "0.25" and run.data.params["train.seed"] == "0"
    assert run.data.metrics["steps"] == 2 and run.data.metrics["best"] == 0.5
    loss = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in loss] == [(1, 2.5), (2, 1.25)]
    found = client.get_metric_history(run.info.run_id, "validation/validation_ndcg_at_10")
    assert [(m.step, m.value) for m in found] == [(2, 0.5)]
    file = client.download_artifacts(run.info.run_id, "config.yaml", str(tmp_path))
    assert config.build(yaml.safe_load(Path(file).read_text())) == wanted


def test_evaluation_and_its_page_are_artefacts(tmp_path: Path, store: tuple[str, Any]) -> None:
    uri, client = store
    wanted = settings(tmp_path / "root", mlflow={"uri": uri, "experiment": "recommender"})
    layout = Layout.of(wanted)
    storage.write_json(layout.evaluation, {"x": 1})
    storage.write_bytes(layout.report, b"<html>")
    row = {"name": "rankings", "users": 7, "values": {"ndcg@10": 0.25}, "interval": {"ndcg@10": [0.2, 0.3]}}
    tracked("evaluate", wanted, layout, lambda _: None, lambda: {"run_id": "r1", "all_users": [row]})
    (run,) = runs(client)
    assert run.data.tags["llmrec.run_id"] == "r1"
    assert run.data.metrics["all_users.rankings.values.ndcg_at_10"] == 0.25
    names = {of.path for of in client.list_artifacts(run.info.run_id)}
    assert names == {"config.yaml", "evaluation.json", "report.html"}


def test_a_failed_stage_leaves_its_reason_and_no_secret(
    tmp_path: Path, store: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    uri, client = store
    wanted = settings(tmp_path / "root", mlflow={"uri": uri, "experiment": "recommender"})
    wanted = config.varied(wanted, {"data.items": "s3://me:word@bucket/very-secret/items"}, "test")

    def fails() -> dict[str, Any]:
        raise UserError("no such table: very-secret")

    with pytest.raises(UserError, match="no such table"):
        tracked("prepare", wanted, Layout.of(wanted), lambda _: None, fails)
    (run,) = runs(client)
    assert run.info.status == "FAILED" and run.data.tags["llmrec.error"] == "no such table: ***"
    assert run.data.params["data.items"] == "s3://***@bucket/***/items"
    everything = json.dumps([run.data.params, run.data.tags])
    file = client.download_artifacts(run.info.run_id, "config.yaml", str(tmp_path))
    assert "very-secret" not in everything + Path(file).read_text()


def test_a_server_that_does_not_answer_costs_a_warning_or_if_asked_an_error(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    nobody = {"uri": "http://127.0.0.1:9"}
    said: list[str] = []
    assert trained(settings(tmp_path, mlflow=nobody), said.append) == SUMMARY
    assert len(said) == 1 and said[0].startswith("warning: tracking.mlflow: no record of this run: "), said
    with pytest.raises(UserError, match=r"tracking\.mlflow: train is done, but its record was not taken"):
        trained(settings(tmp_path, mlflow=nobody, strict=True))


def test_wandb_without_a_key_costs_a_warning_and_no_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    for name, value in {"HOME": tmp_path, "NETRC": tmp_path / "netrc", "WANDB_DIR": tmp_path}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    said: list[str] = []
    try:
        assert trained(settings(tmp_path, wandb={"project": "shop"}), said.append) == SUMMARY
    finally:
        wandb.teardown()
    assert said == [
        "warning: tracking.wandb: no record of this run: no API key; set WANDB_API_KEY, or tracking.wandb.mode to "
        "offline"
    ]


def records(file: Path) -> list[Any]:
    """The records of a .wandb file: blocks of 32 KiB behind a header of 7 bytes, LevelDB's log format, of wandb's own
    protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, found, part, at = file.read_bytes(), [], b"", 7
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(part))
            part = b""
    return found


def test_wandb_offline_has_the_run_in_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    try:
        trained(settings(tmp_path / "root", wandb={"project": "shop", "mode": "offline"}))
    finally:
        wandb.teardown()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    found = records(file)
    (run,) = [r.run for r in found if r.WhichOneof("record_type") == "run"][:1]
    assert (run.project, run.display_name, run.job_type) == ("shop", "train", "train")
    options = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert options["train.learning_rate"] == "0.25" and options["llmrec.model_version"] == "abc123"
    rows = [
        {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item}
        for r in found
        if r.WhichOneof("record_type") == "history"
    ]
    curve = [(row["train/step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert curve == [(1, 2.5), (2, 1.25)]
    name = "validation/validation_ndcg_at_10"
    assert [(row["validation/step"], row[name]) for row in rows if name in row] == [(2, 0.5)]
    summary = {
        "/".join(i.nested_key) or i.key: json.loads(i.value_json)
        for r in found
        if r.WhichOneof("record_type") == "summary"
        for i in r.summary.update
    }
    assert summary["best"] == 0.5 and summary["steps"] == 2
    artefacts = [r.request.log_artifact.artifact for r in found if r.request.WhichOneof("request_type")]
    artefacts += [r.artifact for r in found if r.WhichOneof("record_type") == "artifact"]
    assert "llmrec-train" in {of.name for of in artefacts}


@pytest.mark.parametrize(("asked", "imported"), [({}, False), ({"mlflow": {"uri": "sqlite:///HERE/x.db"}}, True)])
def test_neither_package_is_imported_unless_asked_for(tmp_path: Path, asked: dict[str, Any], imported: bool) -> None:
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    code = (
        "import json, sys\n"
        "from llmrec import config\n"
        "from llmrec.engine import stages, tracking\n"
        "from llmrec.layout import Layout\n"
        f"wanted = config.build({{'root': {str(tmp_path)!r}, 'tracking': json.loads(sys.argv[1])}})\n"
        "stages.check('train', wanted)\n"
        "tracking.tracked('train', wanted, Layout.of(wanted), lambda m: sys.exit(m), lambda: {'steps': 1})\n"
        "print([name in sys.modules for name in ('mlflow', 'wandb', 'optuna')])\n"
    )
    text = json.dumps(asked).replace("HERE", str(tmp_path))
    ran = subprocess.run(
        [sys.executable, "-c", code, text], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(HERE)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout.splitlines()[-1] == str([imported, False, False]), ran.stdout + ran.stderr


def test_numbers_of_a_summary_go_by_names_that_a_server_takes() -> None:
    found = dict(numbers({"a": {"b@5": 1, "c": None, "d": "text"}, "list": [1, 2], "on": True, "odd (x)": 2.5}))
    assert found == {"a.b_at_5": 1.0, "on": 1.0, "odd _x_": 2.5}


def test_what_is_wrong_is_told_before_a_stage_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="credentials; give them as MLFLOW_TRACKING_USERNAME"):
        settings(tmp_path, mlflow={"uri": "https://me:word@server"})
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'llmrec\[wandb\]'"):
        stages.check("train", settings(tmp_path, wandb={"project": "shop"}))
