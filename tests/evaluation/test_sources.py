from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.evaluation import metrics, sources

ITEMS = [f"i{n}" for n in range(6)]
LISTS = st.lists(st.sampled_from(ITEMS), unique=True, max_size=6)
TRUTH = st.lists(st.sampled_from(ITEMS), unique=True, min_size=1, max_size=3)
CUTOFFS = (1, 3, 5)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(TRUTH, LISTS, LISTS, LISTS, LISTS), min_size=1, max_size=4))
def test_shares_are_recall_and_what_is_lost_without_the_source(
    users: list[tuple[list[str], list[str], list[str], list[str], list[str]]],
) -> None:
    """Recall by ir-measures; what a source alone finds is what the union loses without it."""
    truth = {f"u{u}": user[0] for u, user in enumerate(users)}
    lists = {name: {f"u{u}": user[s] for u, user in enumerate(users)} for s, name in ((1, "a"), (2, "b"), (3, "c"))}
    scored = {f"u{u}": user[4] for u, user in enumerate(users)}
    shares = sources.found(truth, lists, scored, CUTOFFS)
    for s, of in [*enumerate(lists.values()), (4, scored)]:
        recall = metrics.per_user(truth, of, CUTOFFS)
        for k, cutoff in enumerate(CUTOFFS):
            np.testing.assert_allclose(shares[:, s, k, 0], recall[f"recall@{cutoff}"])
    for left_out, name in enumerate(lists):
        without = sources.found(truth, {n: of for n, of in lists.items() if n != name}, scored, CUTOFFS)
        lost = shares[:, -2, :, 0] - without[:, -2, :, 0]
        np.testing.assert_allclose(shares[:, left_out, :, 1], lost, atol=1e-12)


def test_a_user_without_lists_counts_nothing() -> None:
    shares = sources.found({"u": ["i1"], "v": ["i1"]}, {"a": {"u": ["i0", "i1"]}}, {"u": ["i1"]}, [1, 2])
    assert shares[0].tolist() == [[[0, 0], [1, 1]], [[0, 0], [1, 1]], [[1, 1], [1, 1]]] and not shares[1].any()
