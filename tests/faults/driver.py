"""A scoring job as its own process, to be killed: python driver.py CONFIG SECONDS_PER_USER [USER_THAT_KILLS]."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch  # noqa: F401 - before Ray's threads
import xxhash

from benchmarks.scale.free_scorer import FreeScorer
from llmrec import config
from llmrec.engine import publish, score
from llmrec.engine.job import guarded, terminating
from llmrec.engine.session import connected
from llmrec.layout import Layout
from llmrec.tables.requests import Work

SECONDS = float(sys.argv[2])
KILLER = sys.argv[3] if len(sys.argv) > 3 else None


class Hashing(FreeScorer):
    """Scores that look random and depend on the user and the item alone, at a pace that leaves time to disturb it."""

    def score(self, work: Work, users: Sequence[int]) -> list[np.ndarray]:
        found = []
        for user in users:
            name = str(work.users[user].as_py())
            if name == KILLER:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(SECONDS)
            scores = [
                xxhash.xxh3_64_intdigest(f"{name} {row}".encode()) / 2**64 for row in work.candidates[user].tolist()
            ]
            found.append(np.asarray(scores, np.float32))
            self.beating(len(scores))
        return found


def main() -> None:
    settings = config.build(json.loads(Path(sys.argv[1]).read_text()))
    layout = Layout.of(settings)
    with terminating(), connected(settings.cluster, layout.root):
        done = score.score(settings, layout, lambda line: print(line, flush=True), scorer=Hashing)
        shown = publish.publish(layout, done.run_id)
    print(json.dumps({"run_id": done.run_id, "new": shown.new, "retried": done.retried, "resumed": done.resumed}))


if __name__ == "__main__":
    sys.exit(guarded(main))
