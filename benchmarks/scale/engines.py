"""The job and its peers, each run as a child process."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed import processes
from llmrec import storage
from llmrec.layout import Layout


@dataclass(frozen=True)
class Engine:
    """A library, and which of its formulations (`<library>_peer`); the job has one."""

    library: str
    formulation: str = ""

    @property
    def name(self) -> str:
        return f"{self.library} {self.formulation}".strip()

    def out(self, layout: Layout) -> Path:
        """Where a peer leaves its rankings."""
        return Path(layout.root) / f"{self.library}-{self.formulation}.parquet"


JOB = Engine("llmrec")
PEERS = (
    *(Engine("polars", name) for name in ("lists", "lists-bottom-k", "bottom-k", "top-k-by", "sort")),
    *(Engine("duckdb", name) for name in ("lists", "smallest", "best-items", "window")),
)


def run(engine: Engine, asked: argparse.Namespace, layout: Layout) -> tuple[dict[str, Any] | None, str | None]:
    """What an engine's process says of itself, or why it failed."""
    forget(engine, layout)
    task = {"threads": asked.threads, "top_k": asked.top_k}
    if engine == JOB:
        task |= {"root": layout.root, "per_user": asked.per_user, "object_store_mb": asked.object_store_mb}
    else:
        task |= {
            "library": engine.library, "formulation": engine.formulation, "candidates": layout.candidates(),
            "out": str(engine.out(layout)),
        }  # fmt: skip
    records: list[dict[str, Any]] = []
    log = asked.out / f"scale-{engine.name.replace(' ', '-')}.log"
    failure = processes.run(
        sys.executable, "job" if engine == JOB else "peer", task, log, asked.timeout, records.append,
        package="benchmarks.scale",
    )  # fmt: skip
    return (records[0], None) if records and not failure else (None, failure or "it told nothing")


def forget(engine: Engine, layout: Layout) -> None:
    """Delete what an engine left."""
    left = [storage.join(layout.root, "runs"), layout.rankings] if engine == JOB else [str(engine.out(layout))]
    for uri in left:
        storage.delete(uri)
