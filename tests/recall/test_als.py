from __future__ import annotations

import numpy as np
import pytest
from implicit.cpu.als import AlternatingLeastSquares
from scipy import sparse

from llmrec.config import Als
from llmrec.recall import als, search

USERS, ITEMS = 30, 12
SETTINGS = Als(factors=3, iterations=5, alpha=3.0, regularization=0.5, seed=4)


@pytest.fixture
def events() -> sparse.csr_matrix:
    return sparse.csr_matrix((np.random.default_rng(0).random((USERS, ITEMS)) < 0.3).astype(np.float32))


def test_factors_are_those_of_implicit_and_users_are_folded_in(events: sparse.csr_matrix) -> None:
    model = AlternatingLeastSquares(3, 0.5, 3.0, iterations=5, random_state=4, num_threads=1)
    model.fit(events, show_progress=False)
    factors = als.item_factors(events, SETTINGS)
    np.testing.assert_allclose(factors, model.item_factors, rtol=1e-5)
    factors.setflags(write=False)  # as they come out of shared memory
    found = als.user_factors(factors, events[:5], SETTINGS)
    np.testing.assert_allclose(found, model.recalculate_user(np.arange(5), events[:5]), rtol=1e-4)


def test_a_user_without_events_is_unknown(events: sparse.csr_matrix) -> None:
    factors = als.item_factors(events, SETTINGS)
    users = als.user_factors(factors, sparse.csr_matrix((2, ITEMS), dtype=np.float32), SETTINGS)
    assert not users.any() and not len(search.nearest(users, factors, None, 3).scores)
