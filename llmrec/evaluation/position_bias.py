"""How much a place in a list counts for being taken, whatever stands there: the position-based model.

An item at a position is taken if the user looks there, whose probability goes by the position alone, and if it attracts
him, whose probability goes by the item alone (Craswell et al., 2008; Chuklin, Markov and de Rijke, Click Models for Web
Search, 2015, section 3.3). Weighing what is taken by one over the probability that it was looked at makes up for the
places (Joachims, Swaminathan and Schnabel, Unbiased Learning-to-Rank with Biased Feedback, 2017).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PRIOR = 10.0  # times that an item counts as shown beside those that it was, with the mean of all items
STEPS, TOLERANCE = 2000, 1e-6


@dataclass(frozen=True)
class Examination:
    """relative: float64[positions], how probable it is that a position is looked at, the most probable one 1; NaN where
    nothing was shown. attraction: float64[items], how probable it is that an item that is looked at is taken, on the
    scale of `relative`. steps: until nothing changed any more; converged: whether that came."""

    relative: np.ndarray
    attraction: np.ndarray
    steps: int
    converged: bool


def examination(item: np.ndarray, position: np.ndarray, shown: np.ndarray, taken: np.ndarray) -> Examination:
    """The position-based model of greatest likelihood, by expectation maximisation.

    item: int64[m], from 0 on; position: int64[m], from 0 on; shown, taken: int64[m], how often the item was shown at
    the position and how often it was taken there, no pair of item and position twice. What cannot be told apart, such
    as items of which each was shown at one position alone, stays where the mean of all items leaves it.

    Raises:
        ValueError: more was taken than shown, or nothing was taken.
    """
    if (taken > shown).any() or (taken < 0).any():
        raise ValueError("more was taken than shown")
    if not taken.sum():
        raise ValueError("nothing was taken")
    items, positions = int(item.max()) + 1, int(position.max()) + 1
    of_item, of_position = np.bincount(item, shown, items), np.bincount(position, shown, positions)
    mean = taken.sum() / shown.sum()
    theta = np.bincount(position, taken, positions) / np.maximum(of_position, 1)
    theta = np.clip(theta / theta.max(), 1e-6, 1 - 1e-9)
    gamma = np.full(items, mean)
    step, moved = 0, np.inf
    while step < STEPS and moved > TOLERANCE:
        both = theta[position] * gamma[item]
        left = (shown - taken) / (1 - both)
        looked = taken + left * theta[position] * (1 - gamma[item])
        attracted = taken + left * gamma[item] * (1 - theta[position])
        before = theta
        theta = np.clip(np.bincount(position, looked, positions) / np.maximum(of_position, 1), 1e-9, 1 - 1e-9)
        gamma = (np.bincount(item, attracted, items) + PRIOR * mean) / (of_item + PRIOR)
        mean = float(gamma @ of_item / of_item.sum())
        moved = float(np.abs(theta / theta.max() - before / before.max()).max())
        step += 1
    scale = theta[of_position > 0].max()
    relative = np.where(of_position > 0, theta / scale, np.nan)
    return Examination(relative, gamma * scale, step, moved <= TOLERANCE)


def weights(relative: np.ndarray, position: np.ndarray, most: float) -> np.ndarray:
    """float32: one over how probable it is that each position (int64, from 0 on) is looked at, at most `most`.

    A position beyond those of `relative` counts as the last one that is known.
    """
    known = np.flatnonzero(np.isfinite(relative))
    last = known[np.clip(np.searchsorted(known, position, side="right") - 1, 0, None)]
    return np.minimum(1 / np.maximum(relative[last], 1e-12), most).astype(np.float32)
