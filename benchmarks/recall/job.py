"""The recall job on a Ray cluster of its own: all items' neighbours, then all users' candidates. A child process."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import torch  # noqa: F401 - before Ray's threads

from benchmarks.scale.usage import Usage
from benchmarks.speed.child import tell
from llmrec import config
from llmrec.engine import recall
from llmrec.engine.session import connected, prepare_environment, start_driver
from llmrec.layout import Layout


def settings(root: str, top: int) -> config.Config:
    sources = {name: {"top": top} for name in ("item_item", "popularity")}
    return config.build({"root": root, "recall": sources | {"merge": list(sources), "candidates": top}})


def measured(wanted: config.Config, layout: Layout) -> dict[str, Any]:
    """Seconds, memory and counts of the recall job on the cluster that runs."""
    told: list[tuple[float, str]] = []

    def say(line: str) -> None:
        told.append((time.monotonic(), line))
        print(line, flush=True)

    with Usage() as usage:
        started = time.monotonic()
        done = recall.recall(wanted.recall, layout, say)
        ended = time.monotonic()
    learned = next(at for at, line in told if line.startswith(recall.LOOKING))
    return usage.figures() | {
        "users": done.users, "per_user": done.per_user, "short_lists": done.short_lists,
        "learn_seconds": learned - started, "candidates_seconds": ended - learned,
        "milliseconds_per_user": 1e3 * (ended - learned) / done.users,
    }  # fmt: skip


def main() -> None:
    task = json.loads(sys.argv[1])
    wanted = settings(task["root"], task["top"])
    layout = Layout.of(wanted)
    # As `connected` starts a cluster, but with an object store whose size does not depend on the machine's memory.
    prepare_environment(wanted.cluster.no_progress_seconds)
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    start_driver(
        address="local", include_dashboard=False, num_cpus=task["threads"],
        object_store_memory=task["object_store_mb"] << 20,
    )  # fmt: skip
    with connected(wanted.cluster, layout.root):
        found = measured(wanted, layout)
    tell(found)


if __name__ == "__main__":
    main()
