"""The scoring job and publication, on a Ray cluster of its own, with a scorer that costs nothing: a child process."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch  # noqa: F401 - before Ray's threads

from benchmarks.scale.free_scorer import FreeScorer
from benchmarks.scale.usage import Usage
from benchmarks.speed.child import tell
from llmrec import config
from llmrec.engine import publish, score
from llmrec.engine.session import connected, prepare_environment, start_driver
from llmrec.layout import Layout


def main() -> None:
    task = json.loads(sys.argv[1])
    root = Path(task["root"])
    model = root / "model"
    model.mkdir(exist_ok=True)
    (model / "none").write_text("The scorer needs no model, but a run is named by one.\n")
    wanted = {
        "model": str(model), "top_k": task["top_k"], "max_candidates": task["per_user"],
        # Actors that outrun their readers would else be ended and started again.
        "min_actors": task["threads"], "max_actors": task["threads"],
        "canary_from": 1_000_000,  # or larger sizes would start their actors twice
    }  # fmt: skip
    settings = config.build({"root": str(root), "score": wanted})
    layout = Layout.of(settings)
    before = time.monotonic()
    # As `connected` starts a cluster, but with an object store whose size does not depend on the machine's memory.
    prepare_environment(settings.cluster.no_progress_seconds)
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    start_driver(
        address="local", include_dashboard=False, num_cpus=2 * task["threads"],
        object_store_memory=task["object_store_mb"] << 20,
    )  # fmt: skip
    with connected(settings.cluster, layout.root):
        cluster = time.monotonic() - before
        with Usage() as usage:
            done = score.score(settings, layout, lambda line: print(line, flush=True), scorer=FreeScorer)
            scored = time.monotonic()
            shown = publish.publish(layout, done.run_id)
            published = time.monotonic()
    assert done.pairs["in"] == done.pairs["ranked"] + done.pairs["below_top_k"]
    tell(usage.figures() | {
        "pairs": done.pairs["in"], "rows": shown.rows, "publish_seconds": published - scored,
        "cluster_seconds": cluster, "version": None,
    })  # fmt: skip


if __name__ == "__main__":
    main()
