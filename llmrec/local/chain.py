"""What the demo and the examples share: a cluster and a store on this machine, raw tables put there, stages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from llmrec import config, storage
from llmrec.engine import stages
from llmrec.engine.job import progress_line
from llmrec.engine.session import connected
from llmrec.local import service


@contextlib.contextmanager
def cluster_and_store(settings: config.Config, say: Callable[[str], None]) -> Iterator[None]:
    """The service of `llmrec cluster up` if it runs, else a cluster and a store of our own, stopped at the end."""
    if found := service.state():
        say("using the local cluster that is up")
        service.apply(found)
        with connected(settings.cluster, settings.root):
            yield
        return
    import os

    os.environ["RAY_AUTH_MODE"] = "disabled"
    from llmrec.local.cluster import joined, mini_cluster
    from llmrec.local.object_store import object_store

    say("starting the object store")
    with object_store(service.store_directory(), service.BUCKET):
        say(f"starting {settings.cluster.nodes} Ray nodes")
        with mini_cluster(settings.cluster) as cluster, joined(cluster):
            yield


def put(table: pa.Table, uri: str) -> None:
    """Write a raw table unless the same bytes lie there."""
    from llmrec.tables.buckets import parquet_bytes

    data = parquet_bytes(table)
    if not storage.exists(uri) or storage.read_bytes(uri) != data:
        storage.write_bytes(uri, data)


def stage(name: str, settings: config.Config, label: str | None = None) -> dict[str, Any]:
    """Run a stage, or reuse what it left; its summary. label: what its lines are called, its name if None."""
    say = progress_line(label or name)
    summary = stages.run(name, settings, say, reuse=True)
    say("nothing changed, reused" if summary.get("reused") else "done")
    return summary


def staged_first(settings: config.Config) -> config.Config:
    """The same settings, but score leaves its run staged, for publish as a stage of its own."""
    return settings.model_copy(update={"score": settings.score.model_copy(update={"publish": False})})
