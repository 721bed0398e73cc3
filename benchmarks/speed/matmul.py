"""This machine's matrix-multiply rate: the most that any engine's arithmetic could reach. Run as a child process."""

from __future__ import annotations

import json
import sys

import torch

from benchmarks.speed.child import tell
from llmrec.ranker.cost import operations_per_second


def main() -> None:
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    hidden, middle = task["hidden"], task["intermediate"]
    shapes = [(2048, 2048, 2048), (4096, hidden, middle), (4096, middle, hidden)]
    for precision in ("float32", "bfloat16"):
        dtype = getattr(torch, precision)
        tell({precision: max(operations_per_second(dtype, *shape, task["seconds"]) for shape in shapes)})


if __name__ == "__main__":
    main()
