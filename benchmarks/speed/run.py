"""What all parts of a run share, and an engine's process in it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed import processes
from benchmarks.speed.engines import REFERENCE, Engine
from benchmarks.speed.environments import INTERPRETERS
from benchmarks.speed.request import UserRequest, write_requests
from benchmarks.speed.weights import write_classifier, write_gguf


@dataclass(frozen=True)
class Run:
    """What all parts share: the options, the model's directory, one for weights and requests, and progress lines."""

    options: argparse.Namespace
    model: str
    work: Path
    say: Callable[[str], None]

    def child(
        self, python: str, module: str, log: str, task: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], str | None]:
        """The records of a child process, each also said as it comes, and why it failed if it did."""
        records: list[dict[str, Any]] = []

        def record(found: dict[str, Any]) -> None:
            records.append(found)
            if "case" in found:
                rate, others = found["pairs"] / found["seconds"], found["cpus_of_others"]
                busy = f"; other processes kept {others:.1f} processors busy" if others > 0.1 else ""
                self.say(f"{log} {found['case']}: {rate:.1f} pairs/s, {found['users']} users{busy}")

        self.say(f"{log} starts")
        file = self.options.out / f"{log}.log"
        task = {"threads": self.options.threads, "repeats": self.options.repeats, **task}
        failure = processes.run(python, module, task, file, self.options.timeout, record)
        if failure:
            self.say(f"{log} failed: {failure}")
        return records, failure


def timed(
    run: Run, engine: Engine, cases: list[dict[str, str]], seconds: float
) -> tuple[list[dict[str, Any]], str | None]:
    """What one engine's process says of these cases, and why it failed if it did."""
    try:
        python, form = interpreter(run, engine), weights(run, engine)
    except (ImportError, OSError, RuntimeError) as error:
        run.say(f"{engine.name} not run: {error}")
        return [], str(error)
    task = {
        "module": engine.module,
        "weights": form,
        "precision": engine.precision,
        "options": engine.options,
        "warm_up_whole": engine.whole,
        "score_all": engine.name == REFERENCE,
        "cases": cases,
        "seconds": seconds,
    }
    return run.child(python, "child", engine.name, task)


def interpreter(run: Run, engine: Engine) -> str:
    if engine.environment == "this":
        return sys.executable
    given = getattr(run.options, f"{engine.environment}_python")
    return given or INTERPRETERS[engine.environment](run.say)


def weights(run: Run, engine: Engine) -> str:
    """The model in the form that this engine reads, written on first use."""
    if engine.weights == "model":
        return run.model
    if engine.weights == "classifier":
        directory = run.work / "classifier"
        return str(directory if directory.exists() else write_classifier(run.model, directory))
    file = run.work / f"{engine.precision}.gguf"
    return str(file if file.exists() else write_gguf(run.model, engine.precision, file))


def case(run: Run, name: str, requests: list[UserRequest]) -> dict[str, str]:
    return {"name": name, "requests": str(write_requests(requests, run.work / f"{name}.json"))}
