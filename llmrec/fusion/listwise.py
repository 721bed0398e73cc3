"""The listwise softmax objective: fitted in its weights, or in one scale for scores that something else has learned."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

from llmrec.errors import UserError
from llmrec.fusion.parts import largest, sums

STEPS = 1000
FLAT = 1e-3  # the steepest slope of the loss at an answer: where rounding ends the search near the bottom, it is less


def log_softmax(scores: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """float64[total]: over each user's candidates. scores: float64[total]; offsets: int64[n + 1]."""
    lengths = np.diff(offsets)
    shifted = scores - np.repeat(largest(scores, offsets), lengths)
    total = sums(np.exp(shifted), offsets)
    return shifted - np.repeat(np.log(np.maximum(total, np.finfo(float).tiny)), lengths)


def fit(features: np.ndarray, offsets: np.ndarray, truth: np.ndarray, l2: float) -> np.ndarray:
    """float64[f]: the weights whose scores, features @ weights, make the true candidates likeliest.

    The mean over users of the cross-entropy between the softmax of a user's scores and his true candidates in equal
    shares (ListNet's top-one loss: Cao et al., "Learning to rank: from pairwise approach to listwise approach", ICML
    2007), and l2 / 2 times the weights' squared norm. It is convex: there is one answer.

    features: float64[total, f]; truth: bool[total], at least one of each user.

    Raises:
        UserError: the search ended before it was there.
    """
    lengths = np.diff(offsets)
    users = max(len(lengths), 1)
    target = truth / np.repeat(np.maximum(sums(truth.astype(float), offsets), 1), lengths)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logs = log_softmax(features @ weights, offsets)
        slope = features.T @ (np.exp(logs) - target) / users
        return -float(target @ logs) / users + l2 / 2 * float(weights @ weights), slope + l2 * weights

    found = minimize(loss, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
    if not found.success and not np.abs(found.jac).max() <= FLAT:
        raise UserError(
            f"fusion: the weights have not settled after {found.nit:,} steps; raise fusion.l2 (here it is {l2:g}), or "
            "name fewer parts in fusion.parts"
        )
    return np.asarray(found.x)
