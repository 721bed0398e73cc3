"""The ledger of a search: a JSON file for each trial, from which a search that was cut off goes on.

    models/search/<search>/trials/<trial>.json

A trial's name is a hash of its settings, so that no settings are tried twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llmrec import storage
from llmrec.layout import Layout

RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped early", "failed"
SETTINGS = "settings"  # what Ray Tune knows of a trial
ENDED = "ended"  # in a trial's last result: it trained to its end


@dataclass(frozen=True)
class Trial:
    """One trial. number: counts from 1, in the order in which they began; settings: values by key; best: of the
    validation metric so far, None before the first; curve: (step, metric) of every validation; reason: why it failed.
    """

    number: int
    name: str
    settings: dict[str, Any]
    state: str = RUNNING
    best: float | None = None
    steps: int = 0
    seconds: float = 0.0
    curve: tuple[tuple[int, float], ...] = ()
    reason: str = ""


def name_of(settings: Mapping[str, Any]) -> str:
    """The same for the same values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]


def write(layout: Layout, search: str, trial: Trial) -> None:
    storage.write_json(storage.join(_folder(layout, search), f"{trial.name}.json"), asdict(trial))


def read(layout: Layout, search: str) -> list[Trial]:
    """All trials of a search by number."""
    files = [uri for uri, _ in storage.list_files(_folder(layout, search), ".json")]
    found = storage.each(storage.read_json, files)
    return sorted((_trial(of) for of in found), key=lambda trial: trial.number)


def _folder(layout: Layout, search: str) -> str:
    return storage.join(layout.search(search), "trials")


def _trial(found: dict[str, Any]) -> Trial:
    return Trial(**{**found, "curve": tuple((step, metric) for step, metric in found["curve"])})
