from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from llmrec.config import Train
from llmrec.ranker import examples
from llmrec.ranker.examples import Recaller, sample

N = 12


def recaller(depth: int = 4, seed: int = 0, pool: np.ndarray | None = None) -> Recaller:
    rng = np.random.default_rng(seed)
    similar = np.where(rng.random((N, N)) < 0.3, rng.random((N, N)), 0).astype(np.float32)
    return Recaller(sparse.csr_matrix(similar), 0.5, depth, np.arange(N) if pool is None else pool)


def test_recalled_items_are_the_best_of_a_plain_sum() -> None:
    for seed in range(20):
        found = recaller(depth=9, seed=seed)
        dense = found.similar.toarray()
        history = np.random.default_rng(seed).integers(0, N, 5)
        scores = {j: sum(0.5 ** (4 - t) * dense[i, j] for t, i in enumerate(history)) for j in range(N)}
        best = sorted((j for j in scores if scores[j] > 0 and j not in history), key=lambda j: -scores[j])[:9]
        assert found.top(history, history).tolist() == best


def test_windows_decisions_and_negatives_keep_their_bounds() -> None:
    history = np.arange(10) % N
    train = Train(decisions_per_user=3, negatives=5, hard_share=0.5, exclude_seen=False)
    starts = set()
    for seed in range(60):
        made = sample(history, train, 6, recaller(), np.random.default_rng(seed))
        assert len(made.history) == 6
        starts.add(int(made.history[0]))
        assert made.history.tolist() == history[made.history[0] : made.history[0] + 6].tolist()
        assert made.decisions.tolist() == sorted(set(made.decisions.tolist())) and len(made.decisions) == 3
        assert made.negatives.shape == (3, 5) and made.negatives.min() >= 0 and made.negatives.max() < N
        assert (made.usable == (made.negatives != made.history[made.decisions][:, None])).all()
    assert starts == {0, 1, 2, 3, 4}


def test_what_a_user_had_is_no_wrong_answer() -> None:
    history = np.asarray([3, 1, 4, 1, 5, 9, 2, 6, 5])
    closed_ones = 0
    for seed in range(30):
        made = sample(
            history,
            Train(decisions_per_user=3, negatives=9, hard_share=0.2),
            5,
            recaller(),
            np.random.default_rng(seed),
        )
        start = len(made.earlier)
        assert made.earlier.tolist() == history[:start].tolist()
        assert made.history.tolist() == history[start : start + 5].tolist()
        for event, drawn, usable, had in zip(made.decisions, made.negatives, made.usable, made.had(), strict=True):
            assert had.tolist() == history[: start + event].tolist()
            closed = {*had.tolist(), int(history[start + event])}
            assert usable.tolist() == [item not in closed for item in drawn.tolist()]
            closed_ones += int((~usable).sum())
    assert closed_ones


def test_only_the_newest_of_what_was_earlier_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "EARLIER", 2)
    made = sample(np.arange(9), Train(), 3, None, np.random.default_rng(1))
    assert made.earlier.tolist() == [made.history[0] - 2, made.history[0] - 1]


def test_hard_negatives_are_what_recall_brings_at_that_point() -> None:
    history = np.asarray([0, 1, 2, 3, 4])
    train = Train(decisions_per_user=5, negatives=3, hard_share=1.0)
    found = recaller()
    for seed in range(20):
        made = sample(history, train, 10, found, np.random.default_rng(seed))
        for event, drawn in zip(made.decisions, made.negatives, strict=True):
            if event:
                assert set(drawn) <= set(found.top(history[:event], history[: event + 1]))


def test_without_a_recaller_there_are_no_negatives() -> None:
    made = sample(np.asarray([4, 2]), Train(), 60, None, np.random.default_rng(0))
    assert made.decisions.tolist() == [0, 1]
    assert made.negatives.shape == made.usable.shape == (2, 0)
    assert made.answers.tolist() == [[4, 2, -1, -1, -1], [2, -1, -1, -1, -1]]


@pytest.mark.parametrize("negatives", [True, False])
@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_answers_are_a_decisions_event_and_those_after_it(horizon: int, negatives: bool) -> None:
    history = np.asarray([3, 1, 4, 1, 5, 9, 2, 6, 5])
    train = Train(decisions_per_user=4, negatives=2, horizon=horizon)
    ends = set()
    for seed in range(30):
        made = sample(history, train, 6, recaller() if negatives else None, np.random.default_rng(seed))
        window = made.history.tolist()
        wanted = [(window[e : e + horizon] + [-1] * horizon)[:horizon] for e in made.decisions.tolist()]
        assert made.answers.tolist() == wanted
        ends |= set((made.answers < 0).any(axis=1).tolist())
    assert ends == ({False} if horizon == 1 else {False, True}), "the window's end is never met"


def test_negatives_that_recall_does_not_bring_come_from_the_pool() -> None:
    pool, history = np.asarray([2, 7, 11]), np.asarray([0, 1, 2, 3])
    found, drawn = recaller(pool=pool), set()
    for seed in range(40):
        made = sample(
            history, Train(decisions_per_user=4, negatives=5, hard_share=0.0), 10, found, np.random.default_rng(seed)
        )
        drawn |= set(made.negatives.ravel().tolist())
    assert drawn == set(pool.tolist())
    mixed = set()
    for seed in range(40):
        made = sample(
            history, Train(decisions_per_user=4, negatives=5, hard_share=0.5), 10, found, np.random.default_rng(seed)
        )
        for event, row in zip(made.decisions, made.negatives, strict=True):
            recalled = set(found.top(history[:event], history[: event + 1]).tolist()) if event else set()
            assert set(row.tolist()) <= recalled | set(pool.tolist())
            mixed |= set(row.tolist())
    assert mixed > set(pool.tolist())


def test_the_same_seed_draws_the_same_example() -> None:
    one, two = (sample(np.arange(9), Train(), 5, recaller(), np.random.default_rng(7)) for _ in range(2))
    assert all(
        np.array_equal(getattr(one, f), getattr(two, f))
        for f in ("history", "decisions", "negatives", "usable", "answers", "earlier")
    )
