"""How the time and memory of this project's engines grow."""

from __future__ import annotations

from typing import Any

from benchmarks.speed import figures, workload
from benchmarks.speed.command_line import HEADLINE
from benchmarks.speed.engines import OURS
from benchmarks.speed.run import Run, case, timed

CANDIDATES, USERS = (20, 50, 100, 200, 400), (1, 2, 4, 8, 16)
WHOLE = 1e9  # seconds that a pass may take where all users must be in it


def curves(run: Run, tokenizer: Any) -> list[dict[str, Any]]:
    """Seconds and peak memory of each llmrec engine over candidates of one user, and over users."""
    many = workload.build(tokenizer, HEADLINE._replace(candidates=max(CANDIDATES)), 1)[0]
    users = workload.build(tokenizer, HEADLINE, max(USERS))
    points = {
        "candidates": {n: [many.first(n)] for n in CANDIDATES},
        f"users with {HEADLINE.candidates} candidates": {n: users[:n] for n in USERS},
    }
    found = []
    for engine in (e for e in run.options.engines if e.family == OURS):
        for over, requests in points.items():
            cases = [case(run, f"{n} {over}", asked) for n, asked in requests.items()]
            records, failure = timed(run, engine, cases, seconds=WHOLE)
            y = {what: [r[what] for r in records if "case" in r] for what in ("seconds", "peak_mb")}
            if not failure:
                lines = {what: figures.line(list(requests), values) for what, values in y.items()}
                found.append({"engine": engine.name, "over": over, "x": list(requests), **y, "line": lines})
    return found
