"""A library ranks the same candidates, in one of its formulations: a child process.

It judges nothing: no history is read, no id is looked up in the catalogue, no duplicate is looked for.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys

from benchmarks.scale.usage import Usage
from benchmarks.speed.child import tell


def main() -> None:
    task = json.loads(sys.argv[1])
    os.environ["POLARS_MAX_THREADS"] = os.environ["THREADS"] = str(task["threads"])
    library = importlib.import_module(f"benchmarks.scale.{task['library']}_peer")
    rank = library.FORMULATIONS[task["formulation"]]
    with Usage() as usage:
        rank(task["candidates"], task["out"], task["top_k"])
    tell(usage.figures() | {"version": importlib.metadata.version(task["library"])})


if __name__ == "__main__":
    main()
