"""Ray for one job: its settings, the connection, and what it printed or spent."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from typing import Any

from llmrec import storage
from llmrec.config import Cluster
from llmrec.errors import UserError

QUIET_DEFAULTS = {
    # One footer reader and no bars: jobs print their own status line.
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",
    # `uv run` would otherwise be repeated in every worker.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_DEDUP_LOGS": "1",
}


def prepare_environment(no_progress_seconds: int) -> None:
    """Set what Ray reads at import or start; a variable that the user set wins."""
    for name, value in QUIET_DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S", str(no_progress_seconds))


@contextlib.contextmanager
def connected(cluster: Cluster, root: str) -> Iterator[None]:
    """A Ray session for a job: an existing one is used, a named cluster is joined, else a local one is started.

    Credentials are not sent along (Ray writes a job's runtime environment to its logs): every node gets them from its
    own environment. A task on a worker checks that it reaches the store before any work starts.

    Raises:
        UserError: the cluster does not answer, or a worker does not reach the store.
    """
    prepare_environment(cluster.no_progress_seconds)
    storage.check(root)
    address = cluster.address or os.environ.get("RAY_ADDRESS", "")
    if not address:
        # A private cluster of this process needs no token, and Ray would write one to the home directory.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray

    ours = not ray.is_initialized()
    if ours:
        # Logical CPUs: workers hold theirs to the end, and reading needs some beside them, or nothing moves.
        alone = {"address": "local", "include_dashboard": False, "num_cpus": max(4, os.cpu_count() or 1)}
        options: dict[str, Any] = {"address": address} if address else alone
        try:
            start_driver(**options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"cluster.address '{address}': no Ray cluster answers ({str(error).splitlines()[0]})"
            ) from None
    try:
        check_worker(root)
        yield
    finally:
        if ours:
            ray.shutdown()


def start_driver(**options: Any) -> None:
    """`ray.init` without the chatter: jobs print a status line of their own.

    Ray's C++ core would print an error-level line for every actor pool (ray issue 57733) and, when told not to, one
    line to say so; the latter goes nowhere. Full logs stay in the session's directory.
    """
    import ray

    on_terminate = signal.getsignal(signal.SIGTERM)
    with contextlib.ExitStack() as stack:
        if "RAY_BACKEND_LOG_LEVEL" not in os.environ:
            os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
            stack.callback(os.environ.pop, "RAY_BACKEND_LOG_LEVEL")
            stack.enter_context(_without_stderr())
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    if callable(on_terminate):
        signal.signal(signal.SIGTERM, on_terminate)  # Ray has put its own in its place
    quiet()


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """File descriptor 2 to nowhere: what is to be silenced is printed by C++."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def quiet() -> None:
    """Ray Data and Ray Train report through loggers that a job's own status line replaces."""
    import ray.data

    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # wrapped, a UserError would arrive as text


def check_worker(root: str) -> None:
    """Let a worker reach the store once.

    Raises:
        UserError: the worker cannot; the line says what it saw.
    """
    import ray

    problem = ray.get(ray.remote(_problem_with).options(num_cpus=0, max_retries=0).remote(root))
    if problem:
        raise UserError(f"on a worker of the cluster: {problem} (workers take the AWS_* variables from their node)")


def _problem_with(root: str) -> str:
    try:
        storage.check(root)
    except UserError as error:
        return str(error)
    return ""


def user_error_in(error: BaseException) -> UserError | None:
    """The UserError that a task raised, dug out of the wrappers that Ray puts around it."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        found = waiting.pop()
        remote = getattr(found, "cause", None)
        if isinstance(found, UserError):
            # From a task it arrives as a subclass made by Ray, whose text is a traceback; the cause is ours, with
            # Ray's advice on retries below it.
            return found if remote is None else UserError(str(remote).splitlines()[0])
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        waiting += [found.__cause__, found.__context__, remote]
    return None
