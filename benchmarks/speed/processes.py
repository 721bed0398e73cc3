"""Child processes: one per engine, so that its memory is its own and its crash is a line in the table."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.speed.child import RESULT

ROOT = Path(__file__).resolve().parents[2]


def run(
    python: str,
    module: str,
    task: dict[str, Any],
    log: Path,
    timeout: float,
    record: Callable[[dict[str, Any]], None],
    package: str = "benchmarks.speed",
) -> str | None:
    """Run `python -m <package>.<module> <task>`, hand on each record that it prints; all else goes to `log`.

    Returns None, or why it failed. The child and all that it started are ended after `timeout` seconds and on
    any error here.
    """
    threads = str(task["threads"])
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads,
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    command = [python, "-m", f"{package}.{module}", json.dumps(task)]
    with log.open("w") as stream:
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=stream, text=True,
            start_new_session=True,
        )  # fmt: skip
        late = threading.Timer(timeout, _end, [child.pid])
        late.start()
        try:
            assert child.stdout is not None
            for line in child.stdout:
                if line.startswith(RESULT):
                    record(json.loads(line.removeprefix(RESULT)))
                else:
                    stream.write(line)
            code = child.wait()
            expired = not late.is_alive()
        finally:
            late.cancel()
            _end(child.pid)
    if expired:
        return f"ended after {timeout:.0f} s"
    return None if code == 0 else _reason(code, log)


def processor() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _end(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _reason(code: int, log: Path) -> str:
    if code < 0:
        return signal.Signals(-code).name
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"exit status {code}"
