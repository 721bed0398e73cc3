"""Every engine at every shape."""

from __future__ import annotations

from typing import Any

from benchmarks.speed import workload
from benchmarks.speed.run import Run, case, timed

Records = dict[str, dict[str, dict[str, Any]]]


def compare(run: Run, tokenizer: Any) -> tuple[Records, dict[str, dict[str, str]], dict[str, str]]:
    """What was measured by shape and engine, the versions of each engine's packages, and why engines failed."""
    cases = [case(run, str(shape), workload.build(tokenizer, shape, run.options.users)) for shape in run.options.shape]
    records: Records = {name: {} for name in (c["name"] for c in cases)}
    versions, not_run = {}, {}
    for engine in run.options.engines if cases else []:
        found, failure = timed(run, engine, cases, run.options.seconds)
        if failure:
            not_run[engine.name] = failure
        for record in found:
            if "case" in record:
                records[record["case"]][engine.name] = record
            else:
                versions[engine.name] = record["versions"]
    return records, versions, not_run
