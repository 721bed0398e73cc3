from __future__ import annotations

import numpy as np
import pytest

from llmrec.evaluation.metrics import interval, names, per_user


def test_by_hand() -> None:
    truth = {"a": ["x"], "b": ["x", "y", "z"], "c": ["x"], "d": ["x"]}
    ranked = {"a": ["p", "q", "x"], "b": ["y", "p", "x", "q", "z"], "c": ["p", "q"]}
    found = per_user(truth, ranked, [2, 3])
    log = np.log2
    ideal = {2: 1 + 1 / log(3), 3: 1 + 1 / log(3) + 1 / log(4)}
    wanted = {
        "recall@2": [0, 1 / 3, 0, 0],
        "recall@3": [1, 2 / 3, 0, 0],
        "ndcg@2": [0, 1 / ideal[2], 0, 0],
        "ndcg@3": [1 / log(4), (1 + 1 / log(4)) / ideal[3], 0, 0],
        "mrr@2": [0, 1, 0, 0],
        "mrr@3": [1 / 3, 1, 0, 0],
    }
    assert list(found) == names([2, 3]) and set(found) == set(wanted)
    for name, values in wanted.items():
        assert found[name] == pytest.approx(values, abs=1e-9), name


def test_a_user_without_a_ranking_counts_zero() -> None:
    for ranked in ({}, {"a": []}, {"someone else": ["x"]}):
        found = per_user({"a": ["x"]}, ranked, [10])
        assert {name: values.tolist() for name, values in found.items()} == {
            "recall@10": [0.0], "ndcg@10": [0.0], "mrr@10": [0.0],
        }  # fmt: skip


def test_equals_ranx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # compiling takes most of a minute
    ranx = pytest.importorskip("ranx")
    rng = np.random.default_rng(0)
    items = [str(i) for i in range(30)]
    truth = {f"u{u}": rng.choice(items, rng.integers(1, 6), replace=False).tolist() for u in range(25)}
    ranked = {user: rng.permutation(items)[: rng.integers(3, 20)].tolist() for user in truth}
    found = per_user(truth, ranked, [5, 10])
    qrels = ranx.Qrels({u: dict.fromkeys(i, 1) for u, i in truth.items()})
    run = ranx.Run({u: {item: 1.0 / (place + 1) for place, item in enumerate(i)} for u, i in ranked.items()})
    wanted = ranx.evaluate(qrels, run, names([5, 10]), return_mean=False)
    order = list(qrels.qrels.keys())
    for name, values in found.items():
        by_user = dict(zip(order, wanted[name], strict=True))
        assert values == pytest.approx([by_user[u] for u in truth], abs=1e-6), name


def test_the_interval_holds_the_mean_and_shrinks_with_users() -> None:
    widths = []
    for n in (50, 500, 5000):
        values = np.random.default_rng(n).random(n)
        low, high = interval(values, 400, seed=1)
        assert low < values.mean() < high
        assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(n), rel=0.25)
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2]
    assert interval(values, 50, seed=1) == interval(values, 50, seed=1) != interval(values, 50, seed=2)
    assert np.isnan(interval(np.empty(0), 10, 0)).all()
