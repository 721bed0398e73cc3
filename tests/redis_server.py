"""A real Redis server on a free port, with a password."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PASSWORD = os.environ["LLMREC_REDIS_PASSWORD"]


@dataclass(frozen=True)
class Server:
    url: str
    process: subprocess.Popen[bytes]

    def client(self) -> Any:
        import redis

        return redis.Redis.from_url(self.url, password=PASSWORD, decode_responses=True)


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server here; it comes with the Debian package redis-server")
    pytest.importorskip("redis")
    folder.mkdir()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    settings = f'port {port}\nbind 127.0.0.1\nrequirepass {PASSWORD}\ndir {folder}\nsave ""\n'
    (folder / "redis.conf").write_text(settings)
    process = subprocess.Popen([binary, str(folder / "redis.conf")], stdout=subprocess.DEVNULL)
    server = Server(f"redis://127.0.0.1:{port}/0", process)
    try:
        import redis

        deadline = time.monotonic() + 10
        while True:
            try:
                server.client().ping()
                break
            except redis.ConnectionError:
                assert process.poll() is None and time.monotonic() < deadline, "redis-server does not come up"
                time.sleep(0.02)
        yield server
    finally:
        process.kill()
        process.wait()
