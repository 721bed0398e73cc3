"""Normalised parts against scipy, list by list."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, zscore

from llmrec.fusion.parts import K, Parts, first_of, largest, normalised, sums
from llmrec.ranker.ragged import offsets_of

LISTS = st.lists(
    st.lists(st.one_of(st.just(np.nan), st.integers(-5, 5).map(float), st.floats(-1e3, 1e3, width=32)), max_size=8),
    min_size=1, max_size=6,
)  # fmt: skip


def parts_of(lists: list[list[float]]) -> Parts:
    flat = np.asarray([v for values in lists for v in values], np.float32)[:, None]
    return Parts(("a",), flat, offsets_of(np.asarray([len(values) for values in lists])))


def filled(values: list[float]) -> np.ndarray:
    found = np.asarray(values, np.float32).astype(float)
    known = np.isfinite(found)
    return np.where(known, found, found[known].min() if known.any() else 0.0)


def by_scipy(values: np.ndarray, name: str) -> np.ndarray:
    if np.ptp(values) <= 1e-8 * np.abs(values).max():
        return np.zeros(len(values))
    if name == "z_score":
        return zscore(values)
    if name == "min_max":
        return (values - values.min()) / np.ptp(values)
    return (K + 1) * (1 / (K + rankdata(-values)) - 1 / (K + (len(values) + 1) / 2))


@pytest.mark.parametrize("name", ["z_score", "min_max", "reciprocal_rank"])
@settings(max_examples=150, deadline=None)
@given(LISTS)
def test_every_list_is_normalised_by_itself(name: str, lists: list[list[float]]) -> None:
    found = normalised(parts_of(lists), [name])[:, 0]
    wanted = [by_scipy(filled(values), name) for values in lists if values]
    flat = np.concatenate([np.empty(0), *wanted])
    assert np.isfinite(found).all()
    # What rounding alone tells apart is one value to `normalised`, and may be two to scipy.
    near = np.concatenate([np.empty(0), *(np.full(len(v), _told_apart(filled(v))) for v in lists if v)]).astype(bool)
    np.testing.assert_allclose(found[near], flat[near], rtol=1e-6, atol=1e-6)


def _told_apart(values: np.ndarray) -> bool:
    return bool(np.ptp(values) == 0 or np.ptp(values) > 1e-6 * np.abs(values).max())


def test_columns_are_part_after_part() -> None:
    parts = Parts(("a", "b"), np.asarray([[1, 30], [2, 20], [4, 10]], np.float32), offsets_of(np.asarray([3])))
    found = normalised(parts, ["min_max", "z_score"])
    np.testing.assert_allclose(found[:, 0], [0, 1 / 3, 1])
    np.testing.assert_allclose(found[:, 2], [1, 0.5, 0])
    np.testing.assert_allclose(found[:, 3], zscore([30, 20, 10]))
    np.testing.assert_allclose(normalised(parts.only(["b"]), ["min_max"])[:, 0], [1, 0.5, 0])


@settings(max_examples=100, deadline=None)
@given(LISTS, st.integers(1, 5))
def test_first_of_is_a_stable_sort_of_each_list(lists: list[list[float]], count: int) -> None:
    lists = [[0.0 if np.isnan(v) else v for v in values] for values in lists]
    parts = parts_of(lists)
    places, lengths = first_of(parts.values[:, 0], parts.offsets, count)
    wanted = [
        start + i
        for start, values in zip(parts.offsets, lists, strict=False)
        for i in sorted(range(len(values)), key=lambda i: -np.float32(values[i]))[:count]
    ]
    assert places.tolist() == wanted
    assert lengths.tolist() == [min(len(values), count) for values in lists]


def test_sums_and_largest_of_lists_some_of_them_empty() -> None:
    offsets = np.asarray([0, 0, 2, 2, 3, 3])
    assert sums(np.asarray([1.0, 2.0, 5.0]), offsets).tolist() == [0, 3, 0, 5, 0]
    assert largest(np.asarray([1.0, -2.0, -5.0]), offsets).tolist() == [-np.inf, 1, -np.inf, -5, -np.inf]


def test_some_users_parts() -> None:
    parts = parts_of([[1, 2], [], [3], [4, 5, 6]])
    found = parts.take(np.asarray([True, True, False, True]))
    assert found.values[:, 0].tolist() == [1, 2, 4, 5, 6]
    assert found.offsets.tolist() == [0, 2, 2, 5]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=9), st.data())
def test_one_extreme_score_moves_no_other_reciprocal_rank_by_more_than_a_place(
    values: list[float], data: st.DataObject
) -> None:
    """The order of the others stays, too, by whatever scale; the scale of z-scores does not."""
    which = data.draw(st.integers(0, len(values) - 1))
    changed = [data.draw(st.sampled_from([-1e6, 1e6])) if i == which else v for i, v in enumerate(values)]
    others = [i for i in range(len(values)) if i != which]
    before, after = (normalised(parts_of([of]), ["reciprocal_rank"])[others, 0] for of in (values, changed))
    assert np.abs(before - after).max() <= 1 / (K + 2) + 1e-12
    scaled = normalised(parts_of([changed]), ["z_score"])[others, 0]
    assert (
        np.sign(before[:, None] - before) == np.sign(np.asarray(values)[others][:, None] - np.asarray(values)[others])
    ).all()
    assert np.abs(scaled - scaled.mean()).max() < 1e-4, "next to a million they all look alike"
