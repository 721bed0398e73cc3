"""Scoring a bucket that may hold rows which kill the process, or make the model raise.

What is being scored is written down beforehand, so that after a death the next attempt knows where it happened. It
divides those users until one is left, who is set aside; everyone else is scored as if he had never been there.

Users are always scored in the same windows, whatever was tried before: a score's last bits may depend on what else is
in its batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from llmrec import storage
from llmrec.errors import StoreError, UserError

WINDOW = 256
PARTS = 16
# A lost node or a full memory kills a healthy window, too, but hardly so often. A verdict that is final takes one death
# more, and a user who is to be set aside is tried again after all others.
DEATHS, DEATHS_FINAL = 2, 3

Score = Callable[[Sequence[int]], list[np.ndarray]]


class Step(NamedTuple):
    """Users start..end. windows: score them; probe: only find out who of them kills; last: score, or give up."""

    kind: Literal["windows", "probe", "last"]
    start: int
    end: int
    deaths: int = 0


@dataclass
class Journal:
    """attempt: counts from 1; steps: still to do, the first is being done; done: those whose scores this attempt has;
    aside: user's number -> (reason code, detail)."""

    attempt: int
    steps: list[Step]
    done: list[Step] = field(default_factory=list)
    aside: dict[int, tuple[str, str]] = field(default_factory=dict)


def score_all(users: int, score: Score, uri: str) -> tuple[list[np.ndarray | None], Journal]:
    """Every user's scores, None for those set aside, and the journal, which is kept at a URI.

    score: from numbers of users, 0 <= u < users, to their scores.

    Raises:
        UserError: what `score` raised as such, or users kill the process together and none of them alone. The journal
            is gone then: a job that runs again after what the line advises begins anew.
    """
    try:
        return _score_all(users, score, uri)
    except StoreError:
        raise  # it says nothing of the users
    except UserError:
        storage.delete(uri)
        raise


def _score_all(users: int, score: Score, uri: str) -> tuple[list[np.ndarray | None], Journal]:
    journal = _next_attempt(uri, users)
    found: list[np.ndarray | None] = [None] * users
    while journal.steps:
        storage.write_bytes(uri, json.dumps(asdict(journal)).encode())
        step = journal.steps[0]
        try:
            for window in _windows(step):
                asked = [u for u in window if u not in journal.aside]
                scores = score(asked) if asked else []
                if step.kind != "probe":
                    for user, values in zip(asked, scores, strict=True):
                        found[user] = values
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the model raises on a row
            journal.steps[:1] = _narrowed(step, journal, ("scoring_failed", " ".join(str(error).split())[:200]))
            continue
        journal.steps.pop(0)
        if step.kind != "probe":
            journal.done.append(step)
    return found, journal


def _next_attempt(uri: str, users: int) -> Journal:
    if not storage.exists(uri):
        return Journal(1, [Step("windows", 0, users)] if users else [])
    before = storage.read_json(uri)
    aside = {int(user): (reason, detail) for user, (reason, detail) in before["aside"].items()}
    steps, done = ([Step(*s) for s in before[name]] for name in ("steps", "done"))
    journal = Journal(before["attempt"] + 1, steps + done, [], aside)
    if not steps:
        return journal
    died = steps[0]._replace(deaths=steps[0].deaths + 1)
    alone = died.kind == "probe" and died.end - died.start == 1
    enough = DEATHS_FINAL if alone or died.kind == "last" else DEATHS
    if died.end - died.start > WINDOW or died.deaths >= enough:
        journal.steps[:1] = _narrowed(died, journal, ("scoring_killed", "the scoring process died on it"))
    elif alone:
        others = next(i for i, step in enumerate(journal.steps) if step.kind != "probe")
        journal.steps[:others] = [*journal.steps[1:others], died]
    else:
        journal.steps[0] = died
    return journal


def _narrowed(step: Step, journal: Journal, why: tuple[str, str]) -> list[Step]:
    """What to do instead of a step that failed."""
    kind, start, end, _ = step
    if kind == "last":
        raise UserError(
            f"users {start} to {end - 1} of a bucket cannot be scored together, though each of them can alone "
            f"({why[1]}); lower score.batch_tokens, or give the actors more memory"
        )
    if kind == "windows" and end - start > WINDOW:
        return [Step(kind, a, b) for a, b in _parts(start, end, WINDOW)]
    if kind == "windows":
        return [*(Step("probe", a, b) for a, b in _parts(start, end, 1)), Step("last", start, end)]
    if end - start > 1:
        return [Step(kind, a, b) for a, b in _parts(start, end, 1)]
    journal.aside[start] = why
    return []


def _windows(step: Step) -> list[range]:
    return [range(a, min(a + WINDOW, step.end)) for a in range(step.start, step.end, WINDOW)]


def _parts(start: int, end: int, unit: int) -> list[tuple[int, int]]:
    """At most PARTS pieces of whole units."""
    units = -(-(end - start) // unit)
    size = -(-units // PARTS) * unit
    return [(a, min(a + size, end)) for a in range(start, end, size)]
