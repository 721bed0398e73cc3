"""This machine's matrix-multiply rate: the most that any engine's arithmetic could reach. Run as a child process."""

from __future__ import annotations

import json
import sys
import time

import torch

from benchmarks.speed.child import tell


def operations_per_second(precision: str, rows: int, inner: int, columns: int, repeats: int) -> float:
    """Multiply-adds, counted twice, of [rows, inner] @ [inner, columns] in the fastest of some runs."""
    dtype = getattr(torch, precision)
    left, right = torch.randn(rows, inner, dtype=dtype), torch.randn(inner, columns, dtype=dtype)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - start)
    return 2 * rows * inner * columns / min(seconds)


def main() -> None:
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    hidden, middle = task["hidden"], task["intermediate"]
    shapes = [(2048, 2048, 2048), (4096, hidden, middle), (4096, middle, hidden)]
    for precision in ("float32", "bfloat16"):
        tell({precision: max(operations_per_second(precision, *shape, task["repeats"]) for shape in shapes)})


if __name__ == "__main__":
    main()
