from __future__ import annotations

import numpy as np
import pytest

from llmrec.evaluation.metrics import OF_LIBRARY, names, per_user


def test_by_hand() -> None:
    truth = {"a": ["x"], "b": ["x", "y", "z"], "c": ["x"], "d": ["x"]}
    ranked = {"a": ["p", "q", "x"], "b": ["y", "p", "x", "q", "z"], "c": ["p", "q"]}
    found = per_user(truth, ranked, [2, 3])
    log = np.log2
    ideal = {2: 1 + 1 / log(3), 3: 1 + 1 / log(3) + 1 / log(4)}
    wanted = {
        "recall@2": [0, 1 / 3, 0, 0],
        "recall@3": [1, 2 / 3, 0, 0],
        "hit_rate@2": [0, 1, 0, 0],
        "hit_rate@3": [1, 1, 0, 0],
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
            "recall@10": [0.0], "ndcg@10": [0.0], "mrr@10": [0.0], "hit_rate@10": [0.0],
        }  # fmt: skip


def test_equals_another_library() -> None:
    """torchmetrics, which computes each from the sorted list itself."""
    import torch
    from torchmetrics.functional import retrieval

    rng = np.random.default_rng(0)
    items = [str(i) for i in range(30)]
    truth = {f"u{u}": rng.choice(items, rng.integers(1, 6), replace=False).tolist() for u in range(25)}
    ranked = {user: rng.permutation(items)[: rng.integers(3, 20)].tolist() for user in truth}
    found = per_user(truth, ranked, [5, 10], tuple(OF_LIBRARY))
    assert list(found) == names([5, 10], tuple(OF_LIBRARY))
    for u, user in enumerate(truth):
        # What is true but not ranked stands behind the cut-offs; no score may be 0, which torchmetrics does not rank.
        right = torch.tensor([item in truth[user] for item in ranked[user]])
        lost = torch.ones(len(truth[user]) - int(right.sum()), dtype=torch.bool)
        right = torch.cat([right, torch.zeros(10, dtype=torch.bool), lost])
        scores = 1 / torch.arange(1, len(right) + 1)
        for k in (5, 10):
            hits = int(right[:k].sum())
            wanted = {
                "recall": retrieval.retrieval_recall(scores, right, top_k=k),
                "ndcg": retrieval.retrieval_normalized_dcg(scores, right, top_k=k),
                "mrr": retrieval.retrieval_reciprocal_rank(scores, right, top_k=k),
                "hit_rate": retrieval.retrieval_hit_rate(scores, right, top_k=k),
                "precision": retrieval.retrieval_precision(scores, right, top_k=k),
                # Theirs is a mean over the hits, trec_eval's one over all true items.
                "map": retrieval.retrieval_average_precision(scores, right, top_k=k) * hits / len(truth[user]),
            }
            for name, value in wanted.items():
                assert found[f"{name}@{k}"][u] == pytest.approx(float(value), abs=1e-6), (user, name, k)
