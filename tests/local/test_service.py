"""The background cluster as a person uses it: up, jobs submitted with a token, a question, down."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from llmrec import assets
from llmrec.local import service

HERE = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def run(*arguments: str, environment: dict[str, str], check: bool = True) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [str(BIN / arguments[0]), *arguments[1:]],
        cwd=HERE,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert not check or ended.returncode == 0, ended.stdout + ended.stderr
    return ended


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment that knows no cluster and no store, with a cache of its own that has the assets."""
    cache = tmp_path_factory.mktemp("cache")
    assets.fetch("ml-100k")
    (cache / "assets").symlink_to(assets.cache_directory() / "assets")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_", "LLMREC_"))}
    return {**clean, "LLMREC_CACHE": str(cache)}


@pytest.fixture(scope="module")
def up(environment: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The running service as `cluster up --json` tells it."""
    found = json.loads(run("llmrec", "cluster", "up", "--json", environment=environment).stdout)
    yield found
    family = psutil.Process(found["pid"]).children(recursive=True)
    assert json.loads(run("llmrec", "cluster", "down", "--json", environment=environment).stdout) == {"stopped": True}
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == [], "cluster down left processes behind"


@pytest.fixture(scope="module")
def with_cluster(up: dict[str, Any], environment: dict[str, str]) -> dict[str, str]:
    """The environment after eval "$(llmrec cluster env)"."""
    printed = run("llmrec", "cluster", "env", environment=environment).stdout
    pairs = (line.removeprefix("export ").split("=", 1) for line in printed.splitlines())
    return {**environment, **{name: value.strip("'") for name, value in pairs}}


@pytest.fixture(scope="module")
def config_in_the_store(with_cluster: dict[str, str], movielens: dict[str, Any]) -> str:
    """A configuration and its input, both in the service's bucket."""
    settings = {
        "root": "s3://llmrec/submitted",
        "data": {
            "items": "s3://llmrec/in/items.parquet",
            "interactions": "s3://llmrec/in/interactions.parquet",
            "buckets": 2,
        },
    }  # fmt: skip
    code = (
        "import sys, yaml; from llmrec import storage; from llmrec.tables.buckets import write_parquet; "
        "from llmrec import assets; from llmrec.data import movielens\n"
        "for name, table in movielens.tables(assets.fetch('ml-100k')).items(): "
        "write_parquet(table, f's3://llmrec/in/{name}.parquet')\n"
        "storage.write_bytes('s3://llmrec/job.yaml', sys.argv[1].encode())"
    )
    run("python", "-c", code, yaml.safe_dump(settings), environment=with_cluster)
    return "s3://llmrec/job.yaml"


@pytest.mark.timeout(400)
def test_jobs_are_submitted_with_a_token_and_a_config_in_the_store(
    with_cluster: dict[str, str], config_in_the_store: str, tmp_path: Path
) -> None:
    for job in ("prepare", "recall"):
        # Directories that differ: Ray deletes a package when its job ends, which the next submission of an equal one
        # may not notice in time.
        directory = tmp_path / job
        for part in ("jobs", "llmrec"):
            shutil.copytree(HERE / part, directory / part)
        (directory / "which").write_text(job)
        submit = ["ray", "job", "submit", "--working-dir", str(directory)]
        ended = run(
            *submit, "--", str(BIN / "python"), f"jobs/{job}.py", "--config", config_in_the_store,
            "--recall.candidates", "50", environment=with_cluster,
        )  # fmt: skip
        assert f"{job}: done" in ended.stdout
    assert with_cluster["AWS_SECRET_ACCESS_KEY"] not in ended.stdout + ended.stderr


def test_without_the_token_a_job_is_refused(with_cluster: dict[str, str]) -> None:
    stranger = {k: v for k, v in with_cluster.items() if not k.startswith("RAY_AUTH")}
    ended = run("ray", "job", "submit", "--", "true", environment=stranger, check=False)
    assert ended.returncode != 0
    assert "uthenticat" in ended.stdout + ended.stderr


def test_doctor_and_status_find_the_running_parts(
    up: dict[str, Any], with_cluster: dict[str, str], config_in_the_store: str
) -> None:
    ended = run("llmrec", "doctor", "--config", config_in_the_store, "--json", environment=with_cluster)
    found = json.loads(ended.stdout)
    assert found["ray cluster"]["ok"] and "3 nodes" in found["ray cluster"]["what"]
    assert found["root"]["ok"] and found["asset ml-100k"]["ok"]
    status = json.loads(run("llmrec", "cluster", "status", "--json", environment=with_cluster).stdout)
    assert status == up


def test_show_says_when_nothing_is_published(with_cluster: dict[str, str]) -> None:
    ended = run("llmrec", "show", "17", "--root", "s3://llmrec/nothing", environment=with_cluster, check=False)
    assert ended.returncode == 2
    assert ended.stderr.strip().endswith("run jobs/score.py first") and len(ended.stderr.strip().splitlines()) == 1


def test_status_without_a_cluster_exits_with_one(environment: dict[str, str], tmp_path: Path) -> None:
    ended = run("llmrec", "cluster", "status", environment={**environment, "LLMREC_CACHE": str(tmp_path)}, check=False)
    assert ended.returncode == 1 and "not running" in ended.stdout


def test_a_process_that_has_come_to_the_services_id_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a reboot or a kill leaves behind says nothing of who has that id now."""
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path))
    with subprocess.Popen(["sleep", "60"]) as other:
        service.state_file().write_text(json.dumps({"pid": other.pid, "environment": {"AWS_ENDPOINT_URL": "gone"}}))
        (tmp_path / "service.lock").touch()
        assert service.state() is None and not service.state_file().exists()
        service.state_file().write_text(json.dumps({"pid": other.pid, "environment": {}}))
        assert not service.down() and other.poll() is None
        other.kill()
