"""Is a job alive? Signs of life from its actors, and a stream of rows that ends in an error instead of in silence."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

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
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(Pulse).options(num_cpus=0, scheduling_strategy=here, max_restarts=-1).remote()


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
    rows: Iterator[dict[str, Any]], pulse: Any, limit: float, tick: Callable[[int, int], None]
) -> Iterator[dict[str, Any]]:
    """The rows of a Ray Data run, as they come.

    tick: called about once a second with the rows so far and the pairs scored so far; limit: seconds without a row or
    a sign of life after which it is an error.

    Raises:
        UserError: nothing moves; says how many nodes and CPUs are left.
    """
    import ray

    arrived: queue.Queue[tuple[str, Any]] = queue.Queue()

    def pull() -> None:
        try:
            for row in rows:
                arrived.put(("row", row))
            arrived.put(("end", None))
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            arrived.put(("error", error))

    nodes = len(_alive())
    threading.Thread(target=pull, daemon=True).start()
    moved, done, pairs = time.monotonic(), 0, 0
    while True:
        try:
            kind, found = arrived.get(timeout=1.0)
        except queue.Empty:
            kind, found = "none", None
        if kind == "end":
            return
        if kind == "error":
            raise found
        if kind == "row":
            moved, done = time.monotonic(), done + 1
            yield found
        with contextlib.suppress(ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
            silent, pairs = ray.get(pulse.look.remote(), timeout=5)
            moved = max(moved, time.monotonic() - silent)
        tick(done, pairs)
        if time.monotonic() - moved > limit:
            free, all_cpus = (get().get("CPU", 0.0) for get in (ray.available_resources, ray.cluster_resources))
            raise UserError(
                f"nothing has moved for {limit:.0f} s (cluster.no_progress_seconds): {len(_alive())} of {nodes} nodes "
                f"are alive, {free:g} of {all_cpus:g} CPUs are free; a lost node leaves actors that hold every CPU and "
                "no room to read for them: add a node or lower score.max_actors, and run the same command again, which "
                "does only what is missing"
            )


def _alive() -> list[Any]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]
