"""What is derived from the times: rates, ratios, and how time and memory grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.scale.engines import JOB, Engine
from benchmarks.speed.figures import line

Row = dict[str, Any]


def fastest_of_each_library(engines: Sequence[Engine], rows: Sequence[Row]) -> list[Engine]:
    seconds = {row["engine"]: row["seconds"] for row in rows}
    done = [engine for engine in engines if engine.name in seconds]
    best: dict[str, Engine] = {}
    for engine in sorted(done, key=lambda e: seconds[e.name]):
        best.setdefault(engine.library, engine)
    return list(best.values())


def with_rates(rows: Sequence[Row], threads: int) -> list[Row]:
    """Rows with pairs a second, of one thread, of one second of a processor, and over those of the fastest peer."""
    found = []
    for row in rows:
        peers = [
            other["seconds"] for other in rows if other["pairs"] == row["pairs"] and other["library"] != JOB.library
        ]
        rate = row["pairs"] / row["seconds"]
        found.append(row | {
            "pairs_per_second": rate, "pairs_per_second_and_core": rate / threads,
            "pairs_per_cpu_second": row["pairs"] / row["cpu_seconds"] if row["cpu_seconds"] else None,
            "over_best_peer": min(peers) / row["seconds"] if peers else None,
        })  # fmt: skip
    return found


def growth(rows: Sequence[Row]) -> dict[str, Row]:
    """By engine that ran at two sizes or more: the line of seconds over pairs, and of processor seconds; and memory at
    the largest size over that at the smallest."""
    found = {}
    for name in dict.fromkeys(row["engine"] for row in rows):
        of = sorted((row for row in rows if row["engine"] == name), key=lambda row: row["pairs"])
        if len(of) > 1:
            pairs = [row["pairs"] for row in of]
            lines = {what: line(pairs, [row[what] for row in of]) for what in ("seconds", "cpu_seconds")}
            found[name] = lines | {"memory": of[-1]["peak_mb"] / of[0]["peak_mb"]}
    return found
