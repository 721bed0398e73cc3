"""Training survives a killed worker."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_bad_input import log, settings

from llmrec import storage
from llmrec.engine import stages
from llmrec.layout import Layout


def worker_processes() -> list[psutil.Process]:
    """The processes of Ray Train workers on this machine that belong to this session's cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may be gone by now
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.faults
@pytest.mark.timeout(280)
def test_training_goes_on_from_its_checkpoint_after_a_worker_is_killed(
    cluster: Any, tmp_path: Path, tiny_model: Path
) -> None:
    wanted = settings(
        "s3://llmrec-test/killed", log(users=60), tiny_model,
        train={"max_steps": 60, "validate_every": 10, "users_per_step": 2, "patience": 1000},
    )  # fmt: skip
    stages.run("prepare", wanted, lambda _: None)
    said: list[str] = []
    killed: list[int] = []

    def kill_one_when_a_checkpoint_is_known() -> None:
        # The second validation comes after the first one's checkpoint has been registered.
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            if sum("validation" in line for line in said) > 1 and (workers := worker_processes()):
                workers[0].kill()
                killed.append(workers[0].pid)
                return
            time.sleep(0.2)

    killer = threading.Thread(target=kill_one_when_a_checkpoint_is_known)
    killer.start()
    summary = stages.run("train", wanted, said.append)
    killer.join()
    assert killed, said
    assert summary["steps"] == summary["steps_planned"] == 60
    assert storage.exists(storage.join(Layout.of(wanted).ranker, "ranker.json"))
    steps = [int(line.split()[1].split("/")[0]) for line in said if "validation" in line]
    again = [b for a, b in itertools.pairwise(steps) if b <= a]
    assert all(step > 10 for step in again), f"it began anew: {steps}"
    curves = storage.read_json(Layout.of(wanted).curves)
    assert [step for step, _ in curves["loss"]] == list(range(1, 61)), "a step is there twice or not at all"
    assert [step for step, _ in curves["validation"]] == list(range(10, 61, 10))
