"""What events with weights do to popularity, item-item and ALS, against numpy and `implicit`; no cluster."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from implicit.cpu.als import AlternatingLeastSquares
from scipy import sparse

from llmrec.config import Als
from llmrec.engine import counts
from llmrec.ranker.ragged import Ragged
from llmrec.recall import als, item_item
from llmrec.recall.neighbours import by_users
from llmrec.schema import histories
from llmrec.tables import buckets

N = 6
EVENT = st.tuples(st.integers(0, N - 1), st.sampled_from([0.25, 0.5, 1.0, 3.0]))
LOGS = st.lists(st.lists(EVENT, max_size=7), min_size=1, max_size=8)
Log = list[list[tuple[int, float]]]


def ragged(log: Log) -> tuple[Ragged, np.ndarray]:
    found = Ragged.of([[item for item, _ in one] for one in log])
    return found, np.asarray([weight for one in log for _, weight in one], np.float32)


def greatest(log: Log) -> np.ndarray:
    """[users, N]: what each item of a user counts."""
    found = np.zeros((len(log), N))
    for user, one in enumerate(log):
        for item, weight in one:
            found[user, item] = max(found[user, item], weight)
    return found


@settings(max_examples=150, deadline=None)
@given(LOGS, st.sampled_from([1.0, 0.5]))
def test_an_item_counts_its_greatest_weight_at_the_age_of_its_newest_event(log: Log, decay: float) -> None:
    items, weights = ragged(log)
    wanted = greatest(log)
    for user, one in enumerate(log):
        newest = {item: place for place, (item, _) in enumerate(one)}
        for item, place in newest.items():
            wanted[user, item] *= decay ** (len(one) - 1 - place)
    found = item_item.interaction_matrix(items, N, decay, weights)
    np.testing.assert_allclose(found.toarray(), wanted, rtol=1e-6)
    distinct, _ = item_item.distinct(items)
    flat = counts.matrix(distinct, N, item_item.heaviest(items, weights))
    np.testing.assert_allclose(flat.toarray(), greatest(log))


@settings(max_examples=150, deadline=None)
@given(LOGS, st.sampled_from([0.0, 2.0]))
def test_neighbours_are_cosines_of_weighted_columns(log: Log, shrinkage: float) -> None:
    x = greatest(log)
    users = sparse.csr_matrix(x.astype(np.float32))
    found = by_users(users.T.tocsr(), users, slice(0, N), N, shrinkage, (x**2).sum(0)).toarray()
    length = np.linalg.norm(x, axis=0)
    wanted = np.zeros((N, N))
    for i in range(N):
        for j in range(N):
            if i != j and x[:, i] @ x[:, j]:
                wanted[i, j] = x[:, i] @ x[:, j] / (length[i] * length[j] + shrinkage)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    items, weights = ragged(log)
    scores = item_item.score(items, sparse.csr_matrix(wanted.astype(np.float32)), 1.0, weights)
    np.testing.assert_allclose(scores.toarray(), x @ wanted, rtol=1e-4)


def test_als_has_a_confidence_of_one_and_alpha_times_the_weight() -> None:
    """Each user's factors solve (Y'CY + l I) x = Y'Cp, C = 1 + alpha * w where he had an item and 1 elsewhere."""
    rng = np.random.default_rng(0)
    x = (rng.random((30, 12)) < 0.3) * rng.choice([0.1, 0.5, 2.0], (30, 12))
    wanted = Als(factors=3, iterations=5, alpha=3.0, regularization=0.5, seed=4)
    events = als.confidences(sparse.csr_matrix(x.astype(np.float32)), 3.0)
    factors = als.item_factors(events, wanted)
    model = AlternatingLeastSquares(3, 0.5, 1.0, iterations=5, random_state=4, num_threads=1)  # no alpha of its own
    model.fit(sparse.csr_matrix(np.where(x > 0, 1 + 3 * x, 0).astype(np.float32)), show_progress=False)
    np.testing.assert_allclose(factors, model.item_factors, rtol=1e-3, atol=1e-4)
    y = factors.astype(np.float64)
    confidence = np.where(x > 0, 1 + 3.0 * x, 1.0)
    solved = [
        np.linalg.solve((y * c[:, None]).T @ y + 0.5 * np.eye(3), y.T @ (c * (row > 0)))
        for c, row in zip(confidence, x, strict=True)
    ]
    np.testing.assert_allclose(als.user_factors(factors, events, wanted), solved, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("training_only", "wanted"), [(False, [3.0, 1.0]), (True, [1.0])])
def test_weights_of_a_bucket_go_with_its_items(tmp_path: Path, training_only: bool, wanted: list[float]) -> None:
    """Items that left the catalogue go with their weights; validation events count if they are asked for."""
    columns = [["u"], [["b", "gone", "a", "b"]], [[1, 2, 3, 4]], [2], [[1.0, 7.0, 1.0, 3.0]]]
    table = pa.table(columns, schema=histories(pa.string(), pa.string(), weighted=True))
    uri = str(tmp_path / "bucket.parquet")
    buckets.write_parquet(table, uri)
    items, weights = counts._events_and_weights(uri, pa.array(["a", "b"]), training_only)
    assert weights is not None and dict(zip(items.values.tolist(), weights.tolist(), strict=True)) == (
        {1: 1.0} if training_only else {1: 3.0, 0: 1.0}
    )
    assert sorted(weights.tolist(), reverse=True) == wanted
    buckets.write_parquet(table.drop("weights"), uri)
    assert counts._events_and_weights(uri, pa.array(["a", "b"]), training_only)[1] is None
