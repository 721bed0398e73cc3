"""One engine in a process of its own: loads it, scores each case several times, prints one RESULT line per case."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.request import Scored, UserRequest, read_requests

RESULT = "RESULT "

Scorer = Callable[[Sequence[UserRequest]], Scored]


def main() -> None:
    task = json.loads(sys.argv[1])
    os.environ["OMP_NUM_THREADS"] = str(task["threads"])
    module = importlib.import_module(f"benchmarks.speed.{task['module']}")
    score: Scorer = module.load(task["weights"], task["precision"], task["threads"], **task["options"])
    tell({"versions": {name: importlib.metadata.version(name) for name in module.PACKAGES}})
    for case in task["cases"]:
        requests = read_requests(case["requests"])
        forget_peak()
        start, before = time.monotonic(), others_cpu_seconds()
        found = measure(score, requests, task["repeats"], task["seconds"], task["warm_up_whole"])
        found["peak_mb"] = peak_mb()
        found["cpus_of_others"] = (others_cpu_seconds() - before) / (time.monotonic() - start)
        rest = requests[found["users"] :] if task["score_all"] else []
        found["scores"] += score(rest).scores if rest else []
        tell({"case": case["name"], **found})


def tell(record: dict[str, Any]) -> None:
    """Hand a record to the parent process."""
    print(RESULT + json.dumps(record), flush=True)


def measure(
    score: Scorer, requests: Sequence[UserRequest], repeats: int, seconds: float, warm_up_whole: bool
) -> dict[str, Any]:
    """The fastest of several passes over as many users as a pass of about `seconds` can take, one at least.

    A first user who alone takes longer than that is the one pass there is. `warm_up_whole` is for engines that compile:
    they see all requests once before.
    """
    for warming in [requests, requests[:1]] if warm_up_whole else [[requests[0].first(8)]]:
        score(warming)
    first = timed(score, requests[:1])
    users = max(1, min(len(requests), int(seconds / first[0])))
    passes = [first] if users == 1 else []
    while len(passes) < repeats and sum(p[0] for p in passes) < seconds:
        passes.append(timed(score, requests[:users]))
    best, scored = min(passes, key=lambda p: p[0])
    return {
        "users": users,
        "seconds": best,
        "passes": [p[0] for p in passes],
        "pairs": sum(len(r.items) for r in requests[:users]),
        "tokens": scored.tokens,
        "naive_tokens": sum(len(pair) for r in requests[:users] for pair in r.pairs),
        "visible": scored.visible,
        "padding": scored.padding,
        "scores": scored.scores,
    }


def timed(score: Scorer, requests: Sequence[UserRequest]) -> tuple[float, Scored]:
    start = time.perf_counter()
    scored = score(requests)
    return time.perf_counter() - start, scored


def forget_peak() -> None:
    """Let the peak of memory start anew, where the system can (Linux)."""
    for pid in family():
        file = Path(f"/proc/{pid}/clear_refs")
        if file.exists():
            file.write_text("5")


def peak_mb() -> float:
    """Most memory resident since `forget_peak`, of this process and its children."""
    kilobytes = 0
    for pid in family():
        status = Path(f"/proc/{pid}/status")
        if status.exists():
            kilobytes += int(status.read_text().split("VmHWM:")[1].split()[0])
    return (kilobytes or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024


def others_cpu_seconds() -> float:
    """Seconds that processors have worked for other processes than this one and its children, since some time ago."""
    if not Path("/proc/stat").exists():
        return 0.0
    user, nice, system = (int(ticks) for ticks in Path("/proc/stat").read_text().split()[1:4])
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in family()]
    return (user + nice + system - sum(int(f[11]) + int(f[12]) for f in fields)) / os.sysconf("SC_CLK_TCK")


def family() -> list[int]:
    """This process and all below it."""
    family = [os.getpid()]
    for pid in family:
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            family += [int(child) for child in file.read_text().split()]
    return family


if __name__ == "__main__":
    main()
