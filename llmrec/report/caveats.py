"""What an evaluation does not measure or cannot tell, in plain words: the same on the page and on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOBODY = "nobody in common"


def of_parts(evaluation: Mapping[str, Any]) -> list[str]:
    """Whether it is not known what each part of a fusion adds."""
    if not evaluation.get("parts_unknown"):
        return []
    return [
        "What each part of the fusion adds, the language model among them, is not known: the run kept no score parts; "
        "with score.keep_parts: true the next run can tell."
    ]


def whose(evaluation: Mapping[str, Any]) -> str:
    """Which users with held-out events are measured."""
    if evaluation.get("sampled"):
        return "a stable choice of users"
    return "all users" if evaluation.get("users_share", 1.0) == 1 else "all users of the share that was scored"


def of_users(evaluation: Mapping[str, Any]) -> list[str]:
    """Which users are not measured, and which count although they have no list; further rankings that share
    none. evaluation: as `evaluation.json`."""
    told, share, ours = [], evaluation.get("users_share", 1.0), evaluation["all_users"][0]
    if evaluation.get("sampled"):
        told.append(
            f"{ours['users']:,} of {evaluation['held_out_users']:,} users with held-out events are measured, in every "
            "ranking: a stable choice (evaluate.users)."
        )
    elif share < 1:
        told.append(
            f"The run scored a share of {share:g} of users (score.users_share): these alone are measured, in every "
            "ranking."
        )
    without = ours["users"] - ours.get("ranked", ours["users"])
    if without:
        told.append(f"{without:,} of {ours['users']:,} users have no list in {ours['name']} and count as 0 there.")
    for name, rows in evaluation["same_users"].items():
        if not rows:
            told.append(
                f"“{name}” has a list for none of these users ({NOBODY}): it is not compared. Do its ids and "
                "this run's mean the same users?"
            )
    return told
