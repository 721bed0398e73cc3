"""What a knowledge graph says of items, against plain loops."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, rel_entr

from llmrec import schema
from llmrec.ranker.graph import incidence
from llmrec.ranker.ragged import Ragged
from llmrec.recall import graph, item_item
from llmrec.recall.graph import Entities, entity_vectors
from llmrec.recall.neighbours import by_column, by_vectors
from llmrec.recall.scores import Sparse

N = 6
EDGES = st.lists(
    st.tuples(st.integers(0, N - 1), st.sampled_from("rs"), st.sampled_from("abcd"), st.sampled_from([0.5, 1.0, 3.0])),
    min_size=1, max_size=25,
)  # fmt: skip


def edges(rows: list[tuple[int, str, str, float]]) -> pa.Table:
    head, relation, tail, weight = zip(*rows, strict=True)
    return pa.table([list(head), list(relation), list(tail), list(weight)], schema=schema.edges(pa.int64()))


def weights(rows: list[tuple[int, str, str, float]]) -> dict[int, dict[tuple[str, str], float]]:
    found: dict[int, dict[tuple[str, str], float]] = {i: {} for i in range(N)}
    for head, relation, tail, weight in rows:
        found[head][relation, tail] = found[head].get((relation, tail), 0.0) + weight
    return found


@settings(max_examples=150, deadline=None)
@given(EDGES, st.integers(1, N))
def test_products_are_cosines_by_rare_entities(rows: list[tuple[int, str, str, float]], most: int) -> None:
    of = weights(rows)
    having = {e: sum(e in mine for mine in of.values()) for mine in of.values() for e in mine}
    linked = sum(bool(mine) for mine in of.values())
    vectors = [{e: w * np.log(linked / having[e]) for e, w in of[i].items() if having[e] <= most} for i in range(N)]
    found = entity_vectors(incidence(edges(rows), pa.array(range(N))), most)
    products = (found @ found.T).toarray()
    for i in range(N):
        for j in range(N):
            norms = [np.sqrt(sum(w * w for w in vectors[k].values())) for k in (i, j)]
            dot = sum(w * vectors[j].get(e, 0.0) for e, w in vectors[i].items())
            assert products[i, j] == pytest.approx(dot / (norms[0] * norms[1]) if all(norms) else 0, abs=1e-6)


def test_an_item_that_nobody_had_is_found_by_its_edges() -> None:
    """Items 0 .. 3 have events; 4 is new and shares the user's newest item's subject, 5 a subject that he never had."""
    rows = [(0, "on", "cats", 1.0), (1, "on", "dogs", 1.0), (2, "on", "cats", 1.0), (3, "on", "birds", 1.0),
            (4, "on", "dogs", 1.0), (5, "on", "birds", 1.0)]  # fmt: skip
    vectors = entity_vectors(incidence(edges(rows), pa.array(range(N))), 100)
    similar = by_column([by_vectors(vectors, vectors.T.tocsr(), slice(0, N), 3)], N)
    history = Ragged.of([[0, 1]])
    found = Sparse(item_item.score(history, similar, 0.5)).top(history, 10)
    assert found.items[0].tolist() == [4, 2] and found.scores.tolist() == pytest.approx([1.0, 0.5])


@settings(max_examples=200, deadline=None)
@given(
    EDGES, st.lists(st.lists(st.integers(0, N - 1), max_size=6), min_size=1, max_size=4),
    st.sampled_from([0.1, 1.0]), st.sampled_from([1.0, 0.6]), st.sampled_from([0.3, 2.0]), st.integers(1, 9),
)  # fmt: skip
def test_closeness_is_that_of_whole_distributions(
    rows: list[tuple[int, str, str, float]], histories: list[list[int]], smoothing: float, decay: float, weight: float,
    at_once: int,
) -> None:  # fmt: skip
    of = weights(rows)
    entities = sorted({e for mine in of.values() for e in mine})
    table = np.asarray([[of[i].get(e, 0.0) for e in entities] for i in range(N)])
    share = table.sum(0) / table.sum()
    known = Entities.of(incidence(edges(rows), pa.array(range(N))), smoothing)
    asked = Ragged.of([list(range(N))] * len(histories))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "PAIRS_AT_ONCE", at_once)
        found = known.closeness(Ragged.of(histories), asked, decay, weight).reshape(-1, N)
    for history, row in zip(histories, found, strict=True):
        q = np.zeros(len(entities))
        for item, place in {item: place for place, item in enumerate(history)}.items():
            if table[item].any():
                q += decay ** (len(history) - 1 - place) * table[item] / table[item].sum()
        for item in range(N):
            if not q.any() or not table[item].any():
                assert np.isnan(row[item])
                continue
            r = (table[item] + smoothing * share) / (table[item].sum() + smoothing)
            divergence = rel_entr(q / q.sum(), r).sum()
            assert row[item] == pytest.approx(np.log(expit(-divergence * weight)), rel=1e-5)
