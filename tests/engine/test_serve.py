"""The service on Ray Serve, on a mini cluster, over tables in a real S3 server, beside the score job's own rankings."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ray import serve
from served import USERS, candidates_of, settings_of

from llmrec import config, storage
from llmrec.engine import stages
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.serving import app
from llmrec.tables import rankings

HERE = Path(__file__).parents[2]
TOKEN = os.environ["LLMREC_SERVE_TOKEN"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


PORT = free_port()
LIMITS = {"port": PORT, "batch": 4, "max_ongoing": 4, "max_queued": 3, "batch_wait_ms": 20, "cpus_per_replica": 0.5}


def call(path: str, body: Any = None, token: str = TOKEN) -> tuple[int, Any, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}{path}", data, {"Authorization": f"Bearer {token}"} if data else {}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read()), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


@pytest.fixture(scope="module")
def ended(cluster: Any) -> Iterator[None]:
    yield
    serve.shutdown()


@pytest.fixture
def running(ended: None, tmp_path: Path, tiny_model: Path, request: Any) -> Iterator[config.Config]:
    root = f"s3://llmrec-test/serve-{request.param}"
    wanted = settings_of(root, tmp_path, tiny_model, request.param, {"serve": LIMITS})
    for stage in ("prepare", "recall"):
        storage.write_json(Layout(root).summary(stage), {})
    app.start(wanted, Layout(root))
    yield wanted
    app.stop()


@pytest.mark.parametrize("running", ["text", "token"], indirect=True)
def test_it_ranks_as_the_score_job_does(running: config.Config) -> None:
    stages.run("score", running, lambda _: None)
    job: dict[int, list[tuple[int, float]]] = {}
    for row in rankings.read(Layout.of(running).rankings).to_pylist():
        job.setdefault(row["user_id"], []).append((row["item_id"], row["ranker_score"]))
    assert len(job) == USERS
    status, health, _ = call("/healthz")
    assert status == 200 and health["model_loaded"] and len(health["model_version"]) >= 12
    assert call("/readyz")[0] == 200
    with ThreadPoolExecutor(3) as several:  # so that some are scored together
        found = list(several.map(lambda u: call("/rank", {"user_id": u, "candidates": candidates_of(u)}), range(USERS)))
    for user, (status, answer, _) in enumerate(found):
        assert status == 200 and answer["model_version"] == health["model_version"], answer
        assert [i["item_id"] for i in answer["items"]] == [item for item, _ in job[user]]
        scores = [i["ranker_score"] for i in answer["items"]]
        assert scores == pytest.approx([score for _, score in job[user]], rel=1e-4, abs=1e-4)
    status, own, _ = call("/rank", {"user_id": 7})
    assert status == 200 and [i["item_id"] for i in own["items"]] == [item for item, _ in job[7]]
    status, told, _ = call("/rank", {"user_id": 4711})
    assert status == 422 and json.loads(told)["error"].startswith("candidates: missing")
    assert call("/rank", {"candidates": [1]}, "wrong")[0] == 401
    status, told, _ = call("/rank", {"candidates": ["a"]})
    assert status == 422 and json.loads(told)["error"].startswith("candidates.0: 'a' is no int64 id")
    if running.model.items == "token":
        sheds_load()


def sheds_load() -> None:
    """Many at once: some are answered, the others are told to come again, and health is told in the end."""
    long = {"history": list(range(20)) * 40, "candidates": list(range(20, 24)) * 100}
    start = threading.Barrier(40)

    def one(_: int) -> tuple[int, Any]:
        start.wait()
        status, _, headers = call("/rank", long)
        return status, headers["Retry-After"]

    with ThreadPoolExecutor(40) as many:
        found = list(many.map(one, range(40)))
    assert {status for status, _ in found} == {200, 429}, found
    assert {retry for status, retry in found if status == 429} == {"1"}
    assert call("/readyz")[0] == 200


@pytest.mark.usefixtures("ended")
def test_what_cannot_be_served_is_one_line(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = settings_of(str(tmp_path), tmp_path, tiny_model, "token", {"serve": LIMITS})
    layout = Layout.of(wanted)

    def refused(settings: config.Config) -> str:
        with pytest.raises(UserError) as caught:
            app.start(settings, layout)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    with monkeypatch.context() as patched:
        patched.delenv("LLMREC_SERVE_TOKEN")
        assert "set the variable LLMREC_SERVE_TOKEN" in refused(wanted)
    gone = wanted.model_copy(update={"score": wanted.score.model_copy(update={"model": "/nowhere"})})
    assert refused(gone) == "/nowhere: no such directory"
    # What only the replica finds: it needs a relation that no graph has.
    locked = wanted.model_copy(update={"score": wanted.score.model_copy(update={"requires": "needs"})})
    assert refused(locked).startswith("score.requires: ") and serve.status().applications == {}


def test_the_command_serves_until_it_is_told_to_stop(cluster: Any, tmp_path: Path, tiny_model: Path) -> None:
    wanted = settings_of(str(tmp_path), tmp_path, tiny_model, "text", {"serve": LIMITS})
    serve.shutdown()
    file = tmp_path / "config.json"
    values = wanted.model_dump(mode="json", exclude_unset=True) | {"cluster": {"address": cluster.address}}
    file.write_text(json.dumps(values))
    assert isinstance(app.build({"config": str(file)}), serve.Application)
    process = subprocess.Popen(
        [sys.executable, "-m", "llmrec.cli", "serve", "--config", str(file)], cwd=HERE, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(HERE)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert f"answers at http://127.0.0.1:{PORT}/rank" in line, line + process.stdout.read()
        assert call("/rank", {"user_id": 3, "candidates": [1, 2]})[0] == 200
        process.terminate()
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and out.strip().endswith("stopping") and TOKEN not in line + out
    finally:
        process.kill()
    deadline = time.monotonic() + 30
    while call("/healthz")[0] == 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
