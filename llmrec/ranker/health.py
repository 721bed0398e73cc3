"""Signs, in the scores alone, that a job scores nonsense."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmrec.config import Score
from llmrec.errors import UserError
from llmrec.ranker.ragged import like_lengths, padded


@dataclass(frozen=True)
class Probe:
    """What the slow way said of the fast one.

    difference: largest difference of packed and pair-by-pair float32 scores, relative to the largest score (at least
    1); top_kept: mean share of a user's float32 top 10 that the job's precision keeps; users: how many were compared.
    """

    difference: float
    top_kept: float
    users: int


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
    tied = constant = 0
    for users in like_lengths(lengths):
        ascending = np.sort(padded(scores, offsets, users, np.nan), axis=1)  # NaN comes last and equals nothing
        same = np.zeros((len(users), ascending.shape[1] + 1), bool)
        same[:, 1:-1] = ascending[:, 1:] == ascending[:, :-1]
        tied += int(np.count_nonzero(same[:, 1:] | same[:, :-1]))
        of = lengths[users]
        constant += int(np.count_nonzero((of >= 3) & (ascending[:, 0] == ascending[np.arange(len(users)), of - 1])))
    several = int(np.count_nonzero(lengths >= 3))
    return Health(float((~np.isfinite(scores)).mean()), constant / max(several, 1), tied / len(scores))


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
