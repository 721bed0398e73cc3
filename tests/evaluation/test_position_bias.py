"""How much a place counts for, found again from clicks that a known model made."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from llmrec.evaluation.position_bias import examination, weights

PLACES = 6


def clicks(items: int, each: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Items shown mostly where they belong: the more attractive, the higher. Also, how the places are looked at."""
    rng = np.random.default_rng(seed)
    looked = 1 / np.arange(1, PLACES + 1) ** 0.8
    attraction = np.sort(rng.uniform(0.02, 0.5, items))[::-1]
    home = np.arange(items) * PLACES // items
    item = np.repeat(np.arange(items), each)
    place = np.clip(home[item] + rng.integers(-2, 3, len(item)), 0, PLACES - 1)
    taken = rng.random(len(item)) < looked[place] * attraction[item]
    pair, row = np.unique(item * PLACES + place, return_inverse=True)
    return pair // PLACES, pair % PLACES, np.bincount(row), np.bincount(row, taken).astype(int), looked


def test_places_are_told_from_what_stands_in_them() -> None:
    item, place, shown, taken, looked = clicks(60, 20_000, 0)
    found = examination(item, place, shown, taken)
    assert found.converged
    assert np.abs(found.relative / looked - 1).max() < 0.05
    plain = np.bincount(place, taken) / np.bincount(place, shown)
    assert (plain / plain[0] / looked)[-1] < 0.6, "the plain rates would have told as much: a test of nothing"


def test_it_is_the_most_likely_model_by_another_optimiser() -> None:
    item, place, shown, taken, _ = clicks(8, 4000, 1)

    def unlikely(logits: np.ndarray) -> float:
        found = 1 / (1 + np.exp(-logits))
        both = found[place] * found[PLACES + item]
        return float(-(taken * np.log(both) + (shown - taken) * np.log1p(-both)).sum() / shown.sum())

    best = minimize(unlikely, np.zeros(PLACES + 8), method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-15})
    theirs = (1 / (1 + np.exp(-best.x)))[:PLACES]
    ours = examination(item, place, shown, taken)
    assert np.allclose(ours.relative, theirs / theirs.max(), atol=0.02)


def test_what_is_taken_further_below_counts_more_but_not_without_end() -> None:
    relative = np.asarray([1.0, 0.5, np.nan, 0.05])
    assert weights(relative, np.asarray([0, 1, 2, 3, 9]), 10).tolist() == [1, 2, 2, 10, 10]


def test_numbers_that_cannot_be_are_refused() -> None:
    one = np.asarray([0])
    with pytest.raises(ValueError, match="more was taken than shown"):
        examination(one, one, one + 1, one + 2)
    with pytest.raises(ValueError, match="nothing was taken"):
        examination(one, one, one + 1, one)
