"""The mini cluster and the object store as a background service: what `llmrec cluster up` starts.

The service is one process that holds both; its state file says how to reach them. Ending the process ends everything.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmrec.assets import cache_directory
from llmrec.config import Cluster
from llmrec.errors import UserError
from llmrec.local.object_store import gone

BUCKET = "llmrec"
START_SECONDS, STOP_SECONDS = 180, 60


def store_directory() -> Path:
    """Where the local object store keeps its data."""
    return cache_directory() / "store"


def state_file() -> Path:
    return cache_directory() / "service.json"


def state() -> dict[str, Any] | None:
    """How to reach the running service: pid, ray_address, dashboard, environment; None if none runs."""
    try:
        found: dict[str, Any] = json.loads(state_file().read_text())
    except FileNotFoundError:
        return None
    if not _runs():
        state_file().unlink(missing_ok=True)
        return None
    return found


def _runs() -> bool:
    """Whether a service does: it holds a lock as long as it lives, where the id of a process comes to another's."""
    with contextlib.suppress(FileNotFoundError), _lock_file().open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _lock_file() -> Path:
    return cache_directory() / "service.lock"


def up(cluster: Cluster, say: Callable[[str], None]) -> dict[str, Any]:
    """Start the service if none runs, and wait until it answers.

    Raises:
        UserError: it did not come up; its log is named.
    """
    if found := state():
        return found
    cache_directory().mkdir(parents=True, exist_ok=True)
    log = cache_directory() / "service.log"
    say(f"starting {cluster.nodes} Ray nodes and the object store (log: {log})")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "llmrec.local.service", cluster.model_dump_json()],
            stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if found := state():
            return found
        if process.poll() is not None:
            break
        time.sleep(0.2)
    process.terminate()
    process.wait(STOP_SECONDS)
    lines = log.read_text(errors="replace").strip().splitlines()
    raise UserError(f"the local cluster did not start in time: {lines[-1] if lines else 'no message'} (see {log})")


def down() -> bool:
    """Stop the service; whether one ran.

    Raises:
        UserError: it did not end in time.
    """
    found = state()
    if found is None:
        return False
    os.kill(found["pid"], signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        if gone(found["pid"]):
            state_file().unlink(missing_ok=True)
            return True
        time.sleep(0.1)
    raise UserError(f"process {found['pid']} did not end in {STOP_SECONDS} s; end it by hand and run again")


def apply(found: dict[str, Any]) -> None:
    """Let this process talk to the service: set its variables where the user has not set his own."""
    for name, value in found["environment"].items():
        os.environ.setdefault(name, value)


def serve(cluster: Cluster) -> None:
    """Hold the cluster and the store until a signal ends this process."""
    from llmrec.local.object_store import object_store

    lock = _lock_file().open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("another service runs, or is starting")
    token = cache_directory() / "ray-token"
    if not token.exists():
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    os.environ.update(ours)
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    with object_store(store_directory(), BUCKET) as store:
        from llmrec.local.cluster import mini_cluster

        with mini_cluster(cluster, dashboard=True) as running:
            dashboard = f"http://{running.head_node.webui_url}"
            _wait_for_jobs(dashboard)
            found = {
                "pid": os.getpid(),
                "ray_address": running.address,
                "dashboard": dashboard,
                "environment": {
                    **store.environment(), **ours, "RAY_ADDRESS": running.address, "RAY_API_SERVER_ADDRESS": dashboard,
                },
            }  # fmt: skip
            file = state_file()
            temporary = file.with_suffix(".tmp")
            temporary.touch(mode=0o600)
            temporary.write_text(json.dumps(found))
            temporary.replace(file)
            ending.wait()
            file.unlink(missing_ok=True)
    lock.close()


def _wait_for_jobs(dashboard: str) -> None:
    """Until the job server runs a job: its agent on the head comes up some seconds after the dashboard."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    deadline = time.monotonic() + START_SECONDS
    client = JobSubmissionClient(dashboard)
    while True:
        try:
            job = client.submit_job(entrypoint="true")
            break
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
    while client.get_job_status(job) in (JobStatus.PENDING, JobStatus.RUNNING) and time.monotonic() < deadline:
        time.sleep(0.2)
    client.delete_job(job)


if __name__ == "__main__":
    serve(Cluster.model_validate_json(sys.argv[1]))
