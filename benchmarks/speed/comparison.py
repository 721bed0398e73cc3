"""Every engine at every shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.speed import workload
from benchmarks.speed.engines import Engine
from benchmarks.speed.request import Shape
from benchmarks.speed.run import Run, case, timed

Records = dict[str, dict[str, dict[str, Any]]]


def compare(
    run: Run, tokenizer: Any, shapes: Sequence[Shape], engines: Sequence[Engine], after_round: Callable[[], None]
) -> tuple[Records, dict[str, dict[str, str]], dict[str, str]]:
    """What was measured by shape and engine, the versions of each engine's packages, and why engines failed.

    Every engine has its turn in every round, and its fastest counts, so that a machine whose speed drifts is as fair
    to the first engine as to the last.
    """
    cases = [case(run, str(shape), workload.build(tokenizer, shape, run.options.users)) for shape in shapes]
    records: Records = {name: {} for name in (c["name"] for c in cases)}
    versions: dict[str, dict[str, str]] = {}
    not_run: dict[str, str] = {}
    for _ in range(run.options.rounds if cases else 0):
        for engine in (e for e in engines if e.name not in not_run):
            found, failure = timed(run, engine, cases, run.options.seconds)
            if failure and sum("case" in record for record in found) < len(cases):  # it may stumble over its own end
                not_run[engine.name] = failure
            for record in found:
                if "case" not in record:
                    versions[engine.name] = record["versions"]
                    continue
                before = records[record["case"]].get(engine.name)
                if before is None or _seconds_per_pair(record) < _seconds_per_pair(before):
                    records[record["case"]][engine.name] = record
        after_round()
    return records, versions, not_run


def _seconds_per_pair(record: dict[str, Any]) -> float:
    return float(record["seconds"] / record["pairs"])
