"""Ranks on disk, so that a second run only prints, and one that was killed goes on where it was."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from benchmarks.quality import protocol
from benchmarks.quality.datasets import Dataset
from benchmarks.quality.methods import Method


class OutOfTimeError(Exception):
    """Something is left to be measured, but no time."""


@dataclass(frozen=True)
class Measured:
    """ranks: float32[m]; seconds: to fit and to rank; fitting: to fit."""

    ranks: np.ndarray
    seconds: float
    fitting: float


def file_of(directory: Path, dataset: Dataset, method: Method, split: str, seed: int) -> Path:
    """<data set>/<method>-<split>-<hash of the data set's content, the settings, the seed and the protocol>.npz"""
    key = xxhash.xxh3_64_hexdigest(json.dumps(about(dataset, method, split, seed), sort_keys=True).encode())
    return directory / dataset.name / f"{method.name}-{split}-{key}.npz"


def about(dataset: Dataset, method: Method, split: str, seed: int) -> dict[str, Any]:
    return {
        "data": dataset.digest, "method": method.name, "settings": dict(method.settings), "split": split,
        "seed": seed if method.seeded else None, "protocol": protocol.VERSION,
    }  # fmt: skip


def measured(directory: Path, deadline: float, dataset: Dataset, method: Method, split: str, seed: int) -> Measured:
    """From the file, else by the method, and kept.

    Raises:
        OutOfTimeError: there is no file, and time.monotonic() is past the deadline.
    """
    file = file_of(directory, dataset, method, split, seed)
    if not file.exists():
        before = time.monotonic()
        if before > deadline:
            raise OutOfTimeError
        ranks, fitting = method.ranked(dataset, split, seed)
        text = json.dumps(about(dataset, method, split, seed))
        seconds = time.monotonic() - before
        save(file, ranks=ranks.astype(np.float32), seconds=seconds, fitting=fitting, about=text)
    with np.load(file) as kept:
        return Measured(kept["ranks"], float(kept["seconds"]), float(kept["fitting"]))


def save(file: Path, **arrays: Any) -> None:
    """All or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}")
    with unfinished.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    unfinished.replace(file)
