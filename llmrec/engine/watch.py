"""Is a job alive? Signs of life from its actors, and a stream of rows that ends in an error instead of in silence."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from llmrec.engine.units import SECONDS_BETWEEN_LINES
from llmrec.errors import UserError

SECONDS_BETWEEN_BEATS = 2.0


class Pulse:
    """A Ray actor that hears of progress: when the last was, and how many pairs have been scored."""

    def __init__(self) -> None:
        self.last, self.pairs = time.monotonic(), 0

    def beat(self, pairs: int) -> None:
        self.last = time.monotonic()
        self.pairs += pairs

    def look(self) -> tuple[float, int]:
        """Seconds since the last sign of life, and pairs scored so far, those of lost attempts included."""
        return time.monotonic() - self.last, self.pairs


def start_pulse() -> Any:
    """A Pulse on the driver's node, which costs no CPU."""
    return beside_driver(Pulse)


def beside_driver(of: type, **options: Any) -> Any:
    """An actor of this class on the driver's node, which costs no CPU."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(of).options(num_cpus=0, scheduling_strategy=here, max_restarts=-1, **options).remote()


class Beating:
    """An actor's side: tells a Pulse of progress, not more often than it needs to know; None if nobody listens."""

    def __init__(self, pulse: Any) -> None:
        self.pulse, self.pairs, self.told = pulse, 0, 0.0

    def __call__(self, pairs: int) -> None:
        self.pairs += pairs
        if time.monotonic() - self.told > SECONDS_BETWEEN_BEATS:
            self.tell()

    def tell(self) -> None:
        if self.pulse is not None:
            self.pulse.beat.remote(self.pairs)
        self.pairs, self.told = 0, time.monotonic()

    @contextlib.contextmanager
    def meanwhile(self) -> Iterator[None]:
        """Signs of life from a thread, while something runs that has none of its own: a model loads or compiles."""
        done = threading.Event()

        def run() -> None:
            while not done.wait(SECONDS_BETWEEN_BEATS):
                self.tell()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def watched(
    rows: Iterator[dict[str, Any]],
    pulse: Any,
    limit: float,
    tick: Callable[[int], None],
    setting: str = "score.max_actors",
) -> Iterator[dict[str, Any]]:
    """The rows of a Ray Data run, as they come. To be called in the main thread, the only one that can be interrupted.

    tick: called about once a second, from another thread, with the pairs scored so far; limit: seconds without a row
    or a sign of life after which it is an error; setting: of how many actors there are.

    Raises:
        UserError: nothing moves; says how many nodes and CPUs are left.
    """
    watch = _Watch(pulse, limit, tick, setting)
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    try:
        for row in rows:
            watch.moved = time.monotonic()
            yield row
    except KeyboardInterrupt:
        if watch.found is None:
            raise
        raise UserError(watch.found) from None
    finally:
        watch.over.set()
        thread.join()


def collected(
    rows: Iterator[dict[str, Any]], pulse: Any, limit: float, setting: str, say: Callable[[str], None],
    line: Callable[[int, int], str],
) -> list[dict[str, Any]]:  # fmt: skip
    """All rows of `watched`, with a line every few seconds: `line` of how many there are and of what the pulse adds up.

    Raises:
        UserError: nothing moves.
    """
    found: list[dict[str, Any]] = []
    told = time.monotonic()

    def tick(done: int) -> None:
        nonlocal told
        if time.monotonic() - told > SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            say(line(len(found), done))

    for row in watched(rows, pulse, limit, tick, setting):
        found.append(row)  # noqa: PERF402 - the ticks look at it
    return found


def waited(task: Any, pulse: Any, limit: float) -> Any:
    """What a task that beats gives.

    Raises:
        UserError: neither a result nor a sign of life for `limit` seconds.
    """
    import ray

    while not ray.wait([task], timeout=1)[0]:
        silent, _ = ray.get(pulse.look.remote())
        if silent > limit:
            raise UserError(_standstill(limit))
    return ray.get(task)


class _Watch:
    """Looks at a run from a thread; interrupts the main thread, as Ctrl-C does, once `found` says what is wrong."""

    def __init__(self, pulse: Any, limit: float, tick: Callable[[int], None], setting: str) -> None:
        self.pulse, self.limit, self.tick, self.setting = pulse, limit, tick, setting
        self.moved = time.monotonic()
        self.found: str | None = None
        self.over = threading.Event()
        self.nodes = _alive()

    def run(self) -> None:
        import ray

        pairs = 0
        while not self.over.wait(1.0):
            with contextlib.suppress(ray.exceptions.RayError):
                silent, pairs = ray.get(self.pulse.look.remote(), timeout=5)
                self.moved = max(self.moved, time.monotonic() - silent)
            self.tick(pairs)
            if time.monotonic() - self.moved > self.limit and not self.over.is_set():
                self.found = _standstill(self.limit, self.nodes, self.setting)
                os.kill(os.getpid(), signal.SIGINT)
                return


def _standstill(limit: float, nodes_before: int = 0, setting: str = "score.max_actors") -> str:
    import ray

    free, every = (get().get("CPU", 0.0) for get in (ray.available_resources, ray.cluster_resources))
    alive = _alive()
    return (
        f"nothing has moved for {limit:.0f} s (cluster.no_progress_seconds): {alive} of {max(nodes_before, alive)} "
        f"nodes are alive, {free:g} of {every:g} CPUs are free; actors that hold every CPU, as after the loss of a "
        f"node, leave no room for the rest: add a node or lower {setting}, and run the same command again, "
        "which does only what is missing"
    )


def _alive() -> int:
    import ray

    return sum(node["Alive"] for node in ray.nodes())
