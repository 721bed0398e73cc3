"""What this process and all below it use meanwhile: time, processors, memory. Linux only, from /proc."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType

from benchmarks.speed.child import family, others_cpu_seconds

SECONDS_BETWEEN_LOOKS, SHARE_OF_LOOKING = 0.1, 0.05


class Usage:
    """seconds; cpu_seconds of the processes that live at the end; peak_mb: the most memory of all at one moment;
    cpus_of_others: processors that processes elsewhere kept busy meanwhile.

    A page that several processes share counts once (proportional set size). Looking takes a twentieth of one processor
    at most.
    """

    def __enter__(self) -> Usage:
        self.peak_mb, self.over = 0.0, threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        self.before, self.others = _cpu_seconds(), others_cpu_seconds()
        self.started = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.seconds = time.monotonic() - self.started
        self.cpu_seconds = sum(now - self.before.get(pid, 0.0) for pid, now in _cpu_seconds().items())
        self.cpus_of_others = (others_cpu_seconds() - self.others) / self.seconds
        self.over.set()
        self.thread.join()

    def figures(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("seconds", "cpu_seconds", "peak_mb", "cpus_of_others")}

    def _look(self) -> None:
        wait = 0.0
        while not self.over.wait(wait):
            start = time.thread_time()
            self.peak_mb = max(self.peak_mb, sum(_mb(pid) for pid in family()))
            wait = max(SECONDS_BETWEEN_LOOKS, (time.thread_time() - start) / SHARE_OF_LOOKING)


def _mb(pid: int) -> float:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has ended
        return 0.0
    return int(rollup.split("\nPss:")[1].split()[0]) / 1024 if "\nPss:" in rollup else 0.0


def _cpu_seconds() -> dict[int, float]:
    """By process id, that of the children that it has waited for included."""
    found = {}
    for pid in family():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[pid] = sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    return found
