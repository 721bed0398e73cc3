"""Rows that kill the scoring process or make it raise, and deaths that are nobody's fault."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec import storage
from llmrec.engine.attempts import WINDOW, score_all
from llmrec.errors import UserError

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Death(BaseException):
    """What nothing can catch, as a kill is."""


def right(user: int) -> np.ndarray:
    return np.array([float(user)])


def until_done(users: int, kill: set[int], fail: set[int], stray: list[int], uri: str) -> tuple[list, dict, int, list]:
    """Attempts until one ends. stray: calls, counted over all attempts, at which the process dies for no reason."""
    calls, batches = 0, []

    def score(asked: Sequence[int]) -> list[np.ndarray]:
        nonlocal calls
        calls += 1
        if kill & set(asked) or calls in stray:
            raise Death
        if fail & set(asked):
            raise ValueError("bad row")
        batches.append(tuple(asked))
        return [right(user) for user in asked]

    for attempt in range(1, 100):
        batches.clear()
        try:
            found, journal = score_all(users, score, uri)
        except Death:
            continue
        return found, journal.aside, attempt, batches
    raise AssertionError("never ended")


@few
@given(
    st.integers(0, 5 * WINDOW), st.sets(st.integers(0, 5 * WINDOW), max_size=2),
    st.sets(st.integers(0, 5 * WINDOW), max_size=2), st.lists(st.integers(1, 40), max_size=2),
)  # fmt: skip
def test_all_are_scored_but_those_who_kill_or_fail(
    tmp_path_factory: pytest.TempPathFactory, users: int, kill: set[int], fail: set[int], stray: list[int]
) -> None:
    uri = str(tmp_path_factory.mktemp("journal") / "bucket.json")
    found, aside, attempt, _ = until_done(users, kill, fail, stray, uri)
    bad = {u for u in kill | fail if u < users}
    assert set(aside) == bad
    for user, scores in enumerate(found):
        assert (scores is None) == (user in aside)
        assert scores is None or np.array_equal(scores, right(user))
    assert attempt <= 1 + 13 * len(kill) + len(stray)
    for user in bad:
        assert aside[user][0] == ("scoring_killed" if user in kill else "scoring_failed")


def test_what_is_scored_together_does_not_depend_on_deaths(tmp_path: Path) -> None:
    users = 3 * WINDOW + 7
    *_, undisturbed = until_done(users, set(), set(), [], str(tmp_path / "a.json"))
    *_, disturbed = until_done(users, set(), set(), [1, 3, 9], str(tmp_path / "b.json"))
    assert set(undisturbed) <= set(disturbed)
    assert max(len(batch) for batch in disturbed) == WINDOW


def test_users_who_kill_only_together_stop_the_job(tmp_path: Path) -> None:
    def score(asked: Sequence[int]) -> list[np.ndarray]:
        if len(asked) == 10:
            raise MemoryError("no memory")
        return [right(user) for user in asked]

    uri = str(tmp_path / "journal.json")
    with pytest.raises(UserError, match=r"users 0 to 9 of a bucket .* lower score.batch_tokens"):
        score_all(10, score, uri)
    # With more memory, it begins anew.
    found, journal = score_all(10, lambda asked: [right(user) for user in asked], uri)
    assert not journal.aside and all(scores is not None for scores in found)


def test_deaths_of_nobodys_doing_stop_a_job_only_until_it_is_run_again(tmp_path: Path) -> None:
    uri, calls = str(tmp_path / "journal.json"), 0

    def score(asked: Sequence[int]) -> list[np.ndarray]:
        nonlocal calls
        calls += 1
        if len(asked) > 1 and calls < 12:
            raise Death
        return [right(user) for user in asked]

    ends = []
    for _ in range(12):
        try:
            found, journal = score_all(4, score, uri)
            ends.append("done")
            break
        except (Death, UserError) as error:
            ends.append(type(error).__name__)
    assert "UserError" in ends and ends[-1] == "done"
    assert not journal.aside and [s.tolist() for s in found if s is not None] == [[0.0], [1.0], [2.0], [3.0]]


def test_a_real_process_that_is_killed_by_a_row(tmp_path: Path) -> None:
    uri = str(tmp_path / "journal.json")
    program = f"""
import os, signal, numpy as np
from llmrec.engine.attempts import score_all
def score(asked):
    if 300 in asked:
        os.kill(os.getpid(), signal.SIGKILL)
    return [np.array([float(u)]) for u in asked]
found, journal = score_all(600, score, {uri!r})
assert [u for u, s in enumerate(found) if s is None] == [300], found
print(journal.attempt, journal.aside)
"""
    codes = []
    while not codes or codes[-1] == -9:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        codes.append(done.returncode)
        assert len(codes) < 12
    assert codes[-1] == 0, done.stderr
    assert "scoring_killed" in done.stdout
    assert storage.read_json(uri)["attempt"] == len(codes)
