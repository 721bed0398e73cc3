"""Published rankings to a real Redis server by the tasks of a mini cluster, from a real S3 server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from redis_server import PASSWORD

from llmrec import config, schema, storage
from llmrec.engine import stages
from llmrec.engine.job import guarded
from llmrec.engine.session import user_error_in
from llmrec.layout import Layout
from llmrec.tables import buckets, rankings, redis_lists

HERE = Path(__file__).parents[2]
ROOT, BUCKETS = "s3://llmrec-test/redis", 4
USERS = [f"u{i:04}" for i in range(2000)]


def publish(run_id: str, last: float) -> None:
    """Two items a user, the second with this score."""
    n, table = len(USERS), Layout(ROOT).rankings
    columns = {
        "user_id": [u for u in USERS for _ in range(2)], "rank": [1, 2] * n, "item_id": [7, 9] * n,
        "score": [2.0, last] * n, "probability": [0.75, 0.25] * n, "source": [""] * 2 * n,
        "model_version": ["m"] * 2 * n, "run_id": [run_id] * 2 * n,
    }  # fmt: skip
    wanted = schema.rankings(pa.string(), pa.int64())
    rows = pa.table([pa.array(columns.get(f.name, [None] * 2 * n), f.type) for f in wanted], schema=wanted)
    which, files = buckets.bucket_of(rows["user_id"], BUCKETS), []
    for b in range(BUCKETS):
        part, path = rows.filter(pa.array(which == b)), rankings.staged_path(run_id, b)
        size = buckets.write_parquet(part, storage.join(table, path))
        files.append(rankings.StagedFile(b, path, size, part.num_rows))
    rankings.publish(table, files, BUCKETS, wanted, run_id)


def settings(url: str, **redis: Any) -> config.Config:
    return config.build({"root": ROOT, "export": {"form": "redis", "redis": {"url": url, "batch": 50, **redis}}})


def lines() -> tuple[list[str], Any]:
    said: list[str] = []
    return said, said.append


@pytest.mark.usefixtures("cluster")
def test_every_user_is_served_the_run_and_then_the_next(redis_server: Any) -> None:
    publish("r1", 1.5)
    wanted, found = settings(redis_server.url), redis_server.client()
    said, say = lines()
    done = stages.run("export", wanted, say)
    assert (done["run_id"], done["version"], done["users"], done["new"]) == ("r1", "r1-v0", 2000, True)
    assert found.get("llmrec:current") == "r1-v0"
    value = '{"items":[{"item_id":7,"score":2.0,"probability":0.75},{"item_id":9,"score":1.5,"probability":0.25}]}'
    assert found.mget([f"llmrec:r1-v0:{u}" for u in USERS]) == [value] * 2000
    assert found.dbsize() == 2002 and done["bytes"] == 2000 * len(value)
    publish("r2", 1.25)
    done = stages.run("export", wanted, say)
    assert (done["previous"], done["deleted"], found.get("llmrec:current")) == ("r1-v0", [], "r2-v1")
    again = stages.run("export", wanted, say)
    assert (again["new"], again["users"], found.dbsize()) == (False, 2000, 4002)
    assert found.get("llmrec:r2-v1:u0007") == value.replace("1.5", "1.25")
    everything = json.dumps([done, said]) + "".join(map(str, found.hgetall("llmrec:versions").items()))
    assert PASSWORD not in everything and PASSWORD.encode() not in storage.read_bytes(Layout(ROOT).summary("export"))
    # What is served stays served when the server refuses in the middle, which is one line.
    publish("r3", 1.0)
    found.config_set("maxmemory", 1)
    with pytest.raises(Exception) as caught:
        stages.run("export", wanted, say)
    told = str(user_error_in(caught.value))
    del caught
    assert re.match(r"on a worker of the cluster: redis://127.0.0.1:\d+/0: the server refuses \(.*maxmemory", told)
    assert "what was served before still is" in told and "\n" not in told
    assert found.get("llmrec:current") == "r2-v1"


def test_a_killed_export_leaves_the_old_version_served(
    cluster: Any, redis_server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish("r4", 0.5)
    found = redis_server.client()
    stages.run("export", settings(redis_server.url), lines()[1])
    before = found.get("llmrec:current")
    publish("r5", 0.25)
    file = tmp_path / "config.json"
    slow = settings(redis_server.url, batch=1, writers=1).model_dump(mode="json", exclude_unset=True)
    file.write_text(json.dumps(slow | {"cluster": {"address": cluster.address}}))

    def written() -> list[str]:
        return found.keys("llmrec:r5-*")

    killed, deadline = subprocess.Popen(
        [sys.executable, "jobs/export.py", "--config", str(file)], cwd=HERE, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(HERE)},
    ), time.monotonic() + 100  # fmt: skip
    while not written():
        assert killed.poll() is None and time.monotonic() < deadline, killed.communicate()
        time.sleep(0.002)
    found.client_pause(2000, all=False)  # writes wait, so that it is still in the middle when it dies
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert 0 < len(written()) < len(USERS)
    assert found.get("llmrec:current") == before and found.get(f"llmrec:{before}:u1999")
    resumed = stages.run("export", settings(redis_server.url), lines()[1])
    assert resumed["users"] == len(written()) == len(USERS) and found.get("llmrec:current").startswith("r5-")
    redis_server.process.kill()
    redis_server.process.wait()
    assert guarded(lambda: stages.run("export", settings(redis_server.url), lines()[1])) == 2
    out, error = capsys.readouterr()
    assert error.startswith("error: redis://") and len(error.splitlines()) == 1 and PASSWORD not in out + error
    assert "no answer; is export.redis.url right and the server up?" in error


def test_lost_in_the_middle(cluster: Any, redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server dies between the driver's first question and the tasks."""
    publish("r6", 0.1)
    served = redis_lists.served

    def last_answer(*arguments: Any) -> str | None:
        answer = served(*arguments)
        redis_server.process.kill()
        redis_server.process.wait()
        return answer

    monkeypatch.setattr(redis_lists, "served", last_answer)
    with pytest.raises(Exception) as caught:
        stages.run("export", settings(redis_server.url), lines()[1])
    told = str(user_error_in(caught.value))
    assert told.startswith("on a worker of the cluster: redis://") and "no answer" in told and "\n" not in told
