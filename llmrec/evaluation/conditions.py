"""Conditions that a run has to meet before it is shown: their grammar, and whether they hold.

    METRIC OP EXPRESSION     ndcg@10 >= published - 0.001
    METRIC not worse         ndcg@10 not worse

OP is one of >=, >, <=, <. EXPRESSION is a number, `published`, `published * NUMBER`, `published + NUMBER` or
`published - NUMBER`; published is the same metric of the run that readers see. `not worse`: the 95% interval of the
difference to it, user by user, does not lie below 0 as a whole.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from llmrec.errors import UserError
from llmrec.evaluation.metrics import OF_LIBRARY

PER_USER = tuple(OF_LIBRARY)  # means over users, so that a difference has an interval
OF_LISTS = ("coverage",)
NOT_WORSE = "not worse"
PUBLISHED = "published"
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt,
}  # fmt: skip
_NUMBER = r"(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)"
_CONDITION = re.compile(r"\s*([a-z_]+)@(\d{1,4})\s*(?:(>=|<=|>|<)(.+)|\s(not\s+worse)\s*)")
_EXPRESSION = re.compile(rf"\s*(?:{PUBLISHED}(?:\s*([*+-])\s*{_NUMBER})?|([+-]?){_NUMBER})\s*")


@dataclass(frozen=True)
class Condition:
    """The limit is factor * (the published metric) + added. compare: an OP, or `not worse`, which has no limit."""

    text: str
    name: str
    cutoff: int
    compare: str
    factor: float = 1.0
    added: float = 0.0

    @property
    def metric(self) -> str:
        return f"{self.name}@{self.cutoff}"

    @property
    def needs_published(self) -> bool:
        return self.compare == NOT_WORSE or self.factor != 0


@dataclass(frozen=True)
class Figure:
    """A metric of the run in question and of the published one; None of the latter if nothing is published.

    low, high: 95% interval of the difference, user by user; None where a metric is no mean over users.
    """

    candidate: float
    published: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Decision:
    """Whether a condition holds. limit: what the metric is compared with, None of `not worse` and where nothing is
    published; difference: to the published run."""

    condition: str
    metric: str
    holds: bool
    candidate: float
    published: float | None
    limit: float | None
    difference: float | None
    low: float | None
    high: float | None
    state: Literal["compared", "nothing published"]


def parse(text: str) -> Condition:
    """
    Raises:
        UserError: it is no condition of this grammar; names it, what may stand there and the metrics.
    """
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise _refused(
            text, "write METRIC >= NUMBER, METRIC >= published - NUMBER (also >, <=, <, + and *), or METRIC not worse"
        )
    name, cutoff = found[1], int(found[2])
    if name not in (*PER_USER, *OF_LISTS) or cutoff < 1:
        raise _refused(text, f"there is no metric '{name}@{found[2]}'")
    if found[5]:
        if name in OF_LISTS:
            raise _refused(text, f"{name} is no mean over users and has no interval; compare it with published")
        return Condition(text, name, cutoff, NOT_WORSE)
    value = _EXPRESSION.fullmatch(found[4])
    if value is None:
        raise _refused(
            text, f"'{found[4].strip()}' is neither a number nor published, alone or with *, + or - and a number"
        )
    sign, number = value[1], value[2]
    if value[4] is not None:
        limit = (0.0, float(f"{value[3]}{value[4]}"))
    elif sign is None:
        limit = (1.0, 0.0)
    else:
        limit = (float(number), 0.0) if sign == "*" else (1.0, float(f"{sign}{number}"))
    if sign == "*" and limit[0] == 0:
        raise _refused(text, "published * 0 is 0; write 0")
    return Condition(text, name, cutoff, found[3], *limit)


def decide(condition: Condition, figure: Figure) -> Decision:
    """Where nothing is published, a condition that speaks of it holds."""
    limit: float | None = None
    state: Literal["compared", "nothing published"] = "compared"
    if condition.needs_published and figure.published is None:
        holds, state = True, "nothing published"
    elif condition.compare == NOT_WORSE:
        assert figure.high is not None
        holds = figure.high >= 0
    else:
        limit = condition.factor * (figure.published or 0.0) + condition.added
        holds = _COMPARE[condition.compare](figure.candidate, limit)
    difference = None if figure.published is None else figure.candidate - figure.published
    return Decision(
        condition.text.strip(), condition.metric, holds, figure.candidate, figure.published, limit, difference,
        figure.low, figure.high, state,
    )  # fmt: skip


def _refused(text: str, why: str) -> UserError:
    names = ", ".join(f"{name}@K" for name in (*PER_USER, *OF_LISTS))
    return UserError(f"condition '{text}': {why}; metrics are {names}, K a rank from 1 on")
