"""Signs, in the scores alone, that a job scores nonsense."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmrec.config import Score
from llmrec.errors import UserError


@dataclass(frozen=True)
class Health:
    """Shares of a bucket's scores.

    not_finite: of scores that are NaN or infinite; constant_users: of users with three candidates or more who have one
    score for all; tied: of scores that another candidate of the same user has exactly too.
    """

    not_finite: float
    constant_users: float
    tied: float


def measure(scores: np.ndarray, offsets: np.ndarray) -> Health:
    """scores: float32[n]; offsets: int64[users + 1], user i has scores[offsets[i]:offsets[i + 1]]."""
    if len(scores) == 0:
        return Health(0.0, 0.0, 0.0)
    lengths = np.diff(offsets)
    user = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((scores, user))
    same = (user[order][1:] == user[order][:-1]) & (scores[order][1:] == scores[order][:-1])
    tied = np.zeros(len(scores), bool)
    tied[1:] |= same
    tied[:-1] |= same
    several = lengths >= 3
    filled = lengths > 0
    starts = offsets[:-1][filled]
    spread = np.full(len(lengths), np.inf)
    spread[filled] = np.maximum.reduceat(scores, starts) - np.minimum.reduceat(scores, starts)
    constant = float((spread[several] == 0).mean()) if several.any() else 0.0
    return Health(float((~np.isfinite(scores)).mean()), constant, float(tied.mean()))


def check(health: Health, limits: Score) -> None:
    """Raises UserError, naming what was found and the setting, if a share is beyond its limit."""
    if health.not_finite > 0:
        raise UserError(
            f"{health.not_finite:.2%} of a bucket's scores are not finite; the model's weights are damaged, or "
            f"score.precision = {limits.precision} is too low for it"
        )
    for name, found, limit, meaning in (
        ("max_constant_users", health.constant_users, limits.max_constant_users, "users have one score for all items"),
        ("max_tied", health.tied, limits.max_tied, "scores are equal to another of the same user"),
    ):
        if found > limit:
            raise UserError(
                f"{found:.0%} of a bucket's {meaning}, more than score.{name} = {limit}; does prompt.item name what "
                "tells items apart, and is the model trained?"
            )
