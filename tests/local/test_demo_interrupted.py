"""Ctrl-C in the middle of the demo stops everything that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil

from llmrec import assets

HERE = Path(__file__).parents[2]


def test_ctrl_c_stops_the_cluster_and_the_store(tmp_path: Path) -> None:
    assets.fetch("ml-100k")
    assets.fetch("smollm2-135m-instruct")
    assets.fetch("all-minilm-l6-v2")
    (tmp_path / "assets").symlink_to(assets.cache_directory() / "assets")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_", "LLMREC_"))}
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "llmrec"), "demo"],
        cwd=HERE,
        env={**clean, "LLMREC_CACHE": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A shell that runs this in the background has Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "[prepare" in line:
            break
    family = psutil.Process(process.pid).children(recursive=True)
    names = {p.name() for p in family}
    assert {"weed", "raylet"} <= names, (names, lines)
    os.killpg(process.pid, signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait() == 130, rest
    watchdog.cancel()
    assert "interrupted" in rest and "Traceback" not in rest
    _, alive = psutil.wait_procs(family, timeout=15)
    assert alive == []
