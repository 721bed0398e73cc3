"""Spectral embeddings against numpy's dense decomposition."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from llmrec import schema
from llmrec.ranker.graph import spectral_embedding


def edges(rows: list[tuple], item: pa.DataType | None = None) -> pa.Table:
    columns = [list(c) for c in zip(*[(*row, 1.0)[:4] for row in rows], strict=True)] or [[]] * 4
    return pa.table(columns, schema=schema.edges(item or pa.int64()))


def random_edges(n: int, tails: int, count: int, seed: int = 0) -> list[tuple]:
    rng = np.random.default_rng(seed)
    return [
        (int(rng.integers(n)), f"r{rng.integers(3)}", f"t{rng.zipf(1.4) % tails}", float(rng.uniform(0.5, 2)))
        for _ in range(count)
    ]


def by_numpy(rows: list[tuple], n: int, dimensions: int) -> np.ndarray:
    """float64[n, n]: cosines of the items, by a dense matrix made in loops and numpy's decomposition."""
    tails = sorted({row[1:3] for row in rows})
    dense = np.zeros((n, len(tails)))
    for head, relation, tail, weight in rows:
        dense[head, tails.index((relation, tail))] += weight
    dense = dense[:, (dense > 0).sum(0) > 1]
    totals = dense.sum(1)
    safe = np.where(totals > 0, totals, 1)
    left, values, _ = np.linalg.svd(dense / np.sqrt(safe)[:, None] / np.sqrt(dense.sum(0)), full_matrices=False)
    found = (left * values)[:, :dimensions]
    norm = np.linalg.norm(found, axis=1, keepdims=True)
    found = np.divide(found, norm, out=np.zeros_like(found), where=totals[:, None] > 0)
    return found @ found.T


@pytest.mark.parametrize("dimensions", [1, 5, 12])
def test_cosines_are_those_of_a_dense_decomposition(dimensions: int) -> None:
    n, rows = 60, random_edges(50, 40, 400)  # ten items have none
    found = spectral_embedding(edges(rows), pa.array(range(n)), dimensions)
    assert found.dtype == np.float32 and found.shape == (n, dimensions)
    np.testing.assert_allclose(found @ found.T, by_numpy(rows, n, dimensions), atol=1e-5)
    assert not found[50:].any()


def test_the_same_edges_give_the_same_bytes() -> None:
    table, ids = edges(random_edges(50, 40, 400)), pa.array(range(50))
    first = spectral_embedding(table, ids, 8)
    assert first.tobytes() == spectral_embedding(table, ids, 8).tobytes()
    chunked = pa.concat_tables([table.slice(0, 7), table.slice(7)])
    assert first.tobytes() == spectral_embedding(chunked, ids, 8).tobytes()


def test_items_of_one_circle_lie_together_and_apart_from_another() -> None:
    rows = [(f"a{i}", "by", f"x{t}") for i in range(6) for t in range(4) if (i + t) % 3]
    rows += [(f"b{i}", "by", f"y{t}") for i in range(6) for t in range(4) if (i + t) % 3]
    # A tail of one item, and the same tail by another relation, tie nobody to anybody.
    rows += [("a0", "in", "only here"), ("lonely", "in", "nowhere else"), ("b0", "in", "x0")]
    ids = pa.array(sorted({row[0] for row in rows} | {"without"}))
    found = spectral_embedding(edges(rows, pa.string()), ids, 2)
    near = found @ found.T
    names = ids.to_pylist()
    a, b = ([i for i, name in enumerate(names) if name.startswith(c) and len(name) == 2] for c in "ab")
    assert near[np.ix_(a, a)].min() > 0.99 > 1e-5 > np.abs(near[np.ix_(a, b)]).max()
    present = dict(zip(names, found.any(axis=1).tolist(), strict=True))
    assert present == {name: len(name) == 2 for name in names}


def test_edges_from_elsewhere_do_not_count_and_the_same_edge_adds_up() -> None:
    rows = random_edges(30, 20, 200)
    ids = pa.array(range(30))
    expected = spectral_embedding(edges(rows), ids, 6)
    more = edges([*rows, *((1000 + h, r, t, w) for h, r, t, w in rows)])
    np.testing.assert_array_equal(spectral_embedding(more, ids, 6), expected)
    halves = edges([(h, r, t, w / 2) for h, r, t, w in rows for _ in range(2)])
    np.testing.assert_allclose(spectral_embedding(halves, ids, 6), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "d"),
    [
        ([], 0),
        ([(1, "r", "a"), (2, "r", "b")], 0),  # nothing shared
        ([(1, "r", "a"), (2, "r", "a")], 0),  # one tail: all are alike
        ([(i, "r", t) for i in (1, 2, 3) for t in "abc" if i != ord(t) - 96], 2),
    ],
)
def test_a_small_graph_has_fewer_dimensions(rows: list[tuple], d: int) -> None:
    found = spectral_embedding(edges(rows), pa.array([1, 2, 3, 4]), 64)
    assert found.shape == (4, d)


def test_more_circles_than_dimensions() -> None:
    """Every circle has a direction of the same weight, more than there are dimensions."""
    rows = [(10 * c + i, "by", f"{c} {t}") for c in range(40) for i in range(4) for t in range(3) if i != t]
    found = spectral_embedding(edges(rows), pa.array(range(400)), 4)
    linked = np.arange(400) % 10 < 4
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), linked, atol=1e-6)
    circles = found[linked].reshape(40, 4, 4)
    np.testing.assert_allclose(circles @ circles.transpose(0, 2, 1), 1, atol=1e-5)  # a circle's items lie together
