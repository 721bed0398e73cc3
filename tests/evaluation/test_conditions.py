from __future__ import annotations

import contextlib
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.errors import UserError
from llmrec.evaluation.conditions import Condition, Figure, decide, parse
from llmrec.report.gate import line

SAME = Figure(0.10, 0.10, 0.0, 0.0)
FIRST = Figure(0.10, None, None, None)


@pytest.mark.parametrize(
    ("text", "metric", "compare", "factor", "added"),
    [
        ("ndcg@10 >= published - 0.001", "ndcg@10", ">=", 1.0, -0.001),
        ("ndcg@10>=published-0.001", "ndcg@10", ">=", 1.0, -0.001),
        ("recall@5 > published * 0.99", "recall@5", ">", 0.99, 0.0),
        (" mrr@20 < published + 1e-3 ", "mrr@20", "<", 1.0, 0.001),
        ("ndcg@10 >= published", "ndcg@10", ">=", 1.0, 0.0),
        ("coverage@10 >= 0.05", "coverage@10", ">=", 0.0, 0.05),
        ("coverage@10 <= .5", "coverage@10", "<=", 0.0, 0.5),
        ("ndcg@10 >= -1", "ndcg@10", ">=", 0.0, -1.0),
        ("hit_rate@10 > 0.1", "hit_rate@10", ">", 0.0, 0.1),
        ("ndcg@10 not worse", "ndcg@10", "not worse", 1.0, 0.0),
        ("ndcg@10  not  worse ", "ndcg@10", "not worse", 1.0, 0.0),
    ],
)
def test_conditions_are_read(text: str, metric: str, compare: str, factor: float, added: float) -> None:
    found = parse(text)
    assert (found.metric, found.compare, found.factor, found.added) == (metric, compare, factor, added)
    assert found.needs_published is ("published" in text or "worse" in text)


@pytest.mark.parametrize(
    "text",
    [
        "", "ndcg@10", "ndcg >= 0.1", "ndcg@0 >= 0.1", "ndcg@10 == 0.1", "ndcg@10 => 0.1", "accuracy@10 >= 0.1",
        "ndcg@10 >= publishd", "ndcg@10 >= published / 2", "ndcg@10 >= published - ", "ndcg@10 >= 0.1 published",
        "ndcg@10 >= __import__('os')", "ndcg@10 >= 0.1; ndcg@5 >= 0.1", "ndcg@10 >= published * published",
        "ndcg@10 >= nan", "ndcg@10 worse", "ndcg@10not worse", "coverage@10 not worse", "ndcg@10 >= published * 0",
        "ndcg@10 >= 1 0", "NDCG@10 >= 0.1", "ndcg@10 not worse than 3",
    ],
)  # fmt: skip
def test_what_is_no_condition_is_refused_by_name(text: str) -> None:
    with pytest.raises(UserError) as error:
        parse(text)
    told = str(error.value)
    assert told.startswith(f"condition '{text}': ") and "\n" not in told
    assert "recall@K, ndcg@K, mrr@K" in told and "coverage@K" in told


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(UserError):
        assert isinstance(parse(text), Condition)


@pytest.mark.parametrize(
    ("text", "figure", "holds", "limit"),
    [
        ("ndcg@10 >= published", SAME, True, 0.10),
        ("ndcg@10 > published", SAME, False, 0.10),
        ("ndcg@10 <= published", SAME, True, 0.10),
        ("ndcg@10 < published", SAME, False, 0.10),
        ("ndcg@10 not worse", SAME, True, None),
        ("ndcg@10 >= published - 0.01", Figure(0.095, 0.10, -0.02, -0.001), True, 0.09),
        ("ndcg@10 >= published - 0.004", Figure(0.095, 0.10, -0.02, 0.01), False, 0.096),
        ("ndcg@10 >= published * 0.9", Figure(0.095, 0.10, -0.02, 0.01), True, 0.09),
        ("ndcg@10 not worse", Figure(0.095, 0.10, -0.02, 0.01), True, None),
        ("ndcg@10 not worse", Figure(0.095, 0.10, -0.02, 0.0), True, None),
        ("ndcg@10 not worse", Figure(0.095, 0.10, -0.02, -0.001), False, None),
        ("coverage@10 >= 0.05", Figure(0.04, 0.03, None, None), False, 0.05),
        ("coverage@10 >= published", Figure(0.04, 0.03, None, None), True, 0.03),
    ],
)
def test_decisions(text: str, figure: Figure, holds: bool, limit: float | None) -> None:
    found = decide(parse(text), figure)
    assert (found.holds, found.state) == (holds, "compared")
    assert found.limit == (limit if limit is None else pytest.approx(limit))
    assert found.difference == pytest.approx(figure.candidate - (figure.published or 0))


@pytest.mark.parametrize("text", ["ndcg@10 >= published + 1", "ndcg@10 not worse", "ndcg@10 > published * 2"])
def test_where_nothing_is_published_what_speaks_of_it_holds(text: str) -> None:
    found = decide(parse(text), FIRST)
    assert (found.holds, found.state, found.limit, found.difference) == (True, "nothing published", None, None)


@pytest.mark.parametrize(("text", "holds"), [("ndcg@10 >= 0.1", True), ("ndcg@10 >= 0.11", False)])
def test_a_number_binds_the_first_run_too(text: str, holds: bool) -> None:
    found = decide(parse(text), FIRST)
    assert (found.holds, found.state) == (holds, "compared")


def test_a_line_tells_the_figures() -> None:
    def told(text: str, figure: Figure) -> str:
        return line(asdict(decide(parse(text), figure)))

    assert told("ndcg@10 >= published - 0.004", Figure(0.095, 0.10, -0.02, 0.01)) == (
        "FAILS  ndcg@10 >= published - 0.004: ndcg@10 0.0950, published 0.1000, difference -0.0050 (95% -0.0200 to "
        "+0.0100), limit 0.0960"
    )
    assert told("ndcg@10 not worse", FIRST) == (
        "holds  ndcg@10 not worse: ndcg@10 0.1000, nothing is published to compare with"
    )
