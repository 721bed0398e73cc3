from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.evaluation.labelled import labelled

PAIR = st.tuples(st.integers(0, 3), st.one_of(st.just(float("nan")), st.integers(0, 4).map(float)), st.booleans())


def naive(pairs: list[tuple[float, bool]]) -> float | None:
    """Each pair labelled 1 against each labelled 0."""
    won = [1.0 if a > b else 0.5 if a == b else 0.0 for a, x in pairs if x for b, y in pairs if not y]
    return float(np.mean(won)) if won else None


@settings(max_examples=100, deadline=None)
@given(st.lists(PAIR, max_size=25))
def test_areas_are_shares_of_pairs_in_order(pairs: list[tuple[int, float, bool]]) -> None:
    user, scores, label = (np.asarray([p[i] for p in pairs], kind) for i, kind in enumerate((int, float, bool)))
    found = labelled(user, scores, label)
    covered = [p for p in pairs if p[1] == p[1]]
    assert (found.pairs, found.covered) == (len(pairs), len(covered))
    of_user = {u: [p[1:] for p in covered if p[0] == u] for u in range(4)}
    areas = {u: area for u, of in of_user.items() if (area := naive(of)) is not None}
    assert found.users == len(areas)
    assert found.auc == pytest.approx(naive([p[1:] for p in covered]))
    weights = [len(of_user[u]) for u in areas]
    assert found.uauc == pytest.approx(np.average(list(areas.values()), weights=weights) if areas else None)


def test_a_thousand_users_by_another_library() -> None:
    import torch
    from torchmetrics.functional.classification import binary_auroc

    rng = np.random.default_rng(0)
    user, label = rng.integers(0, 50, 3000), rng.random(3000) < 0.3
    scores = (rng.normal(size=3000) + label).astype(np.float32)
    found = labelled(user, scores, label)
    as_probability = torch.tensor(1 / (1 + np.exp(-scores.astype(np.float64))))
    assert found.auc == pytest.approx(float(binary_auroc(as_probability, torch.tensor(label.astype(int)))), abs=1e-5)
