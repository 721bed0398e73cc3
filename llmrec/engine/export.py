"""export: a published run as files, or as users' lists in a Redis server, for readers that know no Delta Lake."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmrec import config, storage
from llmrec.engine.units import SECONDS_BETWEEN_LINES
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.tables import export as files
from llmrec.tables import key_value, rankings, redis_lists
from llmrec.tables.export import Exported
from llmrec.tables.rankings import Snapshot

WRITE_CPUS = 0.5


@dataclass(frozen=True)
class Loaded:
    """What went to a Redis server. version: that is served now; previous: the one before, None for none; new: whether
    these differ; bytes: of the values; deleted: old versions whose keys are gone."""

    server: str
    prefix: str
    run_id: str
    version: str
    users: int
    bytes: int
    previous: str | None
    new: bool
    deleted: list[str]


def export(settings: config.Config, layout: Layout, say: Callable[[str], None]) -> Exported | Loaded:
    """Export the run that the rankings table shows, or an earlier one.

    Raises:
        UserError: nothing is published, the target is not fit, or the server refuses or is lost.
    """
    wanted = settings.export
    run = rankings.snapshot(storage.absolute(settings.score.output or layout.rankings), wanted.run or None)
    if wanted.form == "redis":
        return _to_redis(run, wanted.redis, settings.cluster.no_progress_seconds, say)
    if not wanted.target:
        raise UserError("export.target is not set; give a local path or s3://bucket/prefix to write to")
    storage.check(wanted.target)
    return files.export(run, wanted.target, wanted.overwrite, wanted.form)


def _to_redis(run: Snapshot, wanted: config.Redis, limit: float, say: Callable[[str], None]) -> Loaded:
    """Write every bucket by tasks of a Ray cluster, and only then point readers to them."""
    import ray

    if not wanted.url:
        raise UserError("export.redis.url is not set; give redis://host:6379/0")
    version = f"{run.run_id}-v{run.version}"
    with redis_lists.connected(wanted) as client:
        before = redis_lists.served(client, wanted)
    say(f"writing version {version}, " + (f"beside {before}, which is served" if before else "the first"))
    shared, write = ray.put(run), ray.remote(_write_bucket).options(num_cpus=WRITE_CPUS)
    left: list[int] = list(range(run.buckets))[::-1]
    running: list[Any] = []
    users = size = 0
    told = time.monotonic()
    try:
        while left or running:
            while left and len(running) < wanted.writers:
                running.append(write.remote(shared, wanted, version, left.pop()))
            done, running = ray.wait(running, timeout=limit)
            if not done:
                raise UserError(f"no bucket was written for {limit:g} s (cluster.no_progress_seconds)")
            for n, bytes_ in ray.get(done):
                users, size = users + n, size + bytes_
            if time.monotonic() - told > SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                say(f"{run.buckets - len(left) - len(running)} of {run.buckets} buckets, {users:,} users")
    except BaseException:
        for task in running:
            ray.cancel(task, force=True)
        raise
    with redis_lists.connected(wanted) as client:
        previous = redis_lists.serve(client, wanted, version)
        deleted = redis_lists.delete_old(client, wanted)
    return Loaded(
        redis_lists.address(wanted), wanted.prefix, run.run_id, version, users, size, previous, previous != version,
        deleted,
    )  # fmt: skip


def _write_bucket(run: Snapshot, wanted: config.Redis, version: str, bucket: int) -> tuple[int, int]:
    """How many users one bucket has, and how many bytes their lists are."""
    users, values = key_value.json_values(rankings.rows(run, [bucket], key_value.COLUMNS))
    try:
        with redis_lists.connected(wanted) as client:
            return len(users), redis_lists.write(client, wanted, version, users, values)
    except UserError as error:
        raise UserError(
            f"on a worker of the cluster: {error}; what was served before still is, and the same command begins again"
        ) from None
