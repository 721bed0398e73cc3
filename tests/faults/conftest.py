"""Faults are injected into a job that is a process of its own, on a mini cluster that nothing else runs on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from llmrec import config, storage
from llmrec.config import Cluster
from llmrec.engine import run
from llmrec.layout import Layout
from llmrec.local.cluster import mini_cluster
from llmrec.tables import buckets

HERE = Path(__file__).parents[2]
DRIVER = Path(__file__).parent / "driver.py"
USERS, ITEMS, CANDIDATES, BUCKETS = 96, 50, 12, 8


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Any]:
    """A mini cluster that this process has not joined, so that its nodes can be lost."""
    with mini_cluster(Cluster(no_progress_seconds=120)) as running:
        yield running


@dataclass
class Job:
    """A job over small tables under `root`, its files as an undisturbed run left them, and drivers to run it."""

    root: str
    address: str
    tmp: Path
    wanted: dict[str, bytes] = field(default_factory=dict)
    sections: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        score = {"top_k": 5, "model": str(self.tmp / "ranker"), "max_actors": 2, "max_constant_users": 1, "max_tied": 1}
        cluster = {"address": self.address, "no_progress_seconds": 100}
        return {
            "root": self.root,
            "score": score | self.sections.get("score", {}),
            "cluster": cluster | self.sections.get("cluster", {}),
        }

    @property
    def layout(self) -> Layout:
        return Layout.of(config.build(self.settings))

    @property
    def run_id(self) -> str:
        loaded = config.build(self.settings)
        return run.resolve(loaded, self.layout)[0].run_id

    def start(self, seconds_per_user: float = 0.1, killer: str = "") -> subprocess.Popen[str]:
        file = self.tmp / "config.json"
        file.write_text(json.dumps(self.settings))
        command = [sys.executable, str(DRIVER), str(file), str(seconds_per_user), *([killer] if killer else [])]
        return subprocess.Popen(
            command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(HERE)},
        )  # fmt: skip

    def finish(self, driver: subprocess.Popen[str], timeout: float = 180) -> dict[str, Any]:
        out, err = driver.communicate(timeout=timeout)
        assert driver.returncode == 0, out + err
        return dict(json.loads(out.splitlines()[-1]))

    def files(self) -> dict[str, bytes]:
        """Every staged file, by its path under the table."""
        table = self.layout.rankings
        return {
            uri.removeprefix(table): storage.read_bytes(uri)
            for uri, _ in storage.list_files(storage.join(table, "runs"), ".parquet")
        }

    def staged(self) -> int:
        return len(storage.list_files(storage.join(self.layout.run(self.run_id), "ledger"), ".json"))

    def forget(self) -> None:
        """As if the job had never run."""
        for uri in (storage.join(self.root, "runs"), self.layout.rankings, storage.join(self.root, "quarantine")):
            storage.delete(uri)


def write_tables(root: str) -> None:
    layout = Layout(root)
    items = list(range(ITEMS))
    buckets.write_parquet(pa.table({"item_id": items, "title": [f"w{i}" for i in items]}), layout.items)
    users = pa.array(range(USERS))
    of = buckets.bucket_of(users, BUCKETS)
    for bucket in range(BUCKETS):
        here = [u for u in range(USERS) if of[u] == bucket]
        lists = [[(u * 7 + i * 3) % ITEMS for i in range(CANDIDATES)] for u in here]
        kind = pa.list_(pa.int64())
        candidates = {"user_id": pa.array(here, pa.int64()), "item_ids": pa.array(lists, kind)}
        histories = {"user_id": pa.array(here, pa.int64()), "item_ids": pa.array([[] for _ in here], kind)}
        for table, columns in ((layout.candidates(), candidates), (layout.histories, histories)):
            buckets.write_parquet(pa.table(columns), buckets.bucket_file(table, bucket))


def actors(cluster: Any, name: str = "PoolActor") -> list[psutil.Process]:
    """The processes of a pool's actors on a mini cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if name in " ".join(process.cmdline()) and belongs_to(process, cluster):
                found.append(process)
    return found


def belongs_to(process: psutil.Process, cluster: Any) -> bool:
    return any(cluster.address in " ".join(p.cmdline()) for p in process.parents())


def wait_for(condition: Callable[[], bool], job: subprocess.Popen[str] | None = None, seconds: float = 200) -> None:
    """job: one that must not end meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert job is None or job.poll() is None, job.communicate()
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.05)


def finish(job: subprocess.Popen[str], root: Path) -> dict[str, Any]:
    """What a job told of itself in a file under its root."""
    out, err = job.communicate(timeout=250)
    assert job.returncode == 0, out + err
    return dict(storage.read_json(str(root / "done.json")))


def make_job(root: str, tmp: Path, cluster: Any) -> Job:
    write_tables(root)
    (tmp / "ranker").mkdir()
    (tmp / "ranker" / "model").write_text("stands for a model: the scorer of these tests needs none")
    job = Job(root, cluster.address, tmp)
    job.finish(job.start(0.0))
    job.wanted = job.files()
    assert len(job.wanted) == BUCKETS
    job.forget()
    return job


@pytest.fixture(scope="module")
def made(own_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Job:
    tmp = tmp_path_factory.mktemp("faults")
    return make_job(str(tmp / "root"), tmp, own_cluster)


@pytest.fixture
def job(made: Job) -> Iterator[Job]:
    yield made
    made.sections.clear()
    made.forget()


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
