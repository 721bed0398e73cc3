from __future__ import annotations

import pytest

from llmrec.config import Config
from llmrec.report import terminal


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (True, "yes"),
        (False, "no"),
        (None, "-"),
        (1234567, "1,234,567"),
        (0.123456, "0.1235"),
        (1234.56, "1,234.6"),
        ({"a": 1, "b": {"c": 2.5}}, "a 1, b c 2.5"),
        ({}, "none"),
        ([1, "x", None], "1, x, -"),
        ("s3://b/x", "s3://b/x"),
    ],
)
def test_values_as_a_person_writes_them(value: object, shown: str) -> None:
    assert terminal.text(value) == shown


def test_a_summary_shows_every_value(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_summary("score", {"run_id": "r-1", "pairs_scored": 12345, "table": "s3://bucket/" + "x" * 60})
    out = capsys.readouterr().out
    for part in ("score: done", "run id", "r-1", "pairs scored", "12,345", "x" * 60):
        assert part in out


@pytest.mark.parametrize("cutoffs", [(5, 10, 20), (10,), (3,)])
def test_an_evaluation_shows_each_ranking_with_an_interval(
    cutoffs: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    values = {f"{m}@{k}": 0.1234 for k in cutoffs for m in ("recall", "ndcg", "mrr")}
    figures = ("coverage", "gini", "novelty", "diversity", "popularity_percentile", "popularity_lift")
    beyond = {f"{name}@{k}": 0.375 if name != "diversity" else None for name in figures for k in cutoffs}
    of_group = {"values": values, "interval": dict.fromkeys(values, (0.1, 0.15))}
    row = {"name": "ranker", "users": 943, "ranked": 931, **of_group, "beyond": beyond, "p_value": {}}
    compared = {"lead": dict.fromkeys(values, (-0.01, 0.02)), "p_value": dict.fromkeys(values, 0.0333)}
    second = row | {"name": "popularity", "ranked": 943, **compared}
    third = second | {"name": "worst", "values": dict.fromkeys(values, 0.01)}
    sources = [
        {"name": "item_item", "users": 901, "recall": {"recall@100": 0.6543}, "alone": {"alone@100": 0.0321}},
        {"name": "graph", "users": 0, "recall": {"recall@100": 0.0}, "alone": {"alone@100": 0.0}},
        {"name": "all of them", "users": 943, "recall": {"recall@100": 0.7}, "alone": None},
    ]
    summary = {
        "all_users": [row, third, second], "same_users": {"zero-shot": [row], "strangers": []}, "parts_unknown": True,
        "sources": sources,
        "segments": [{"by": "history_length", "of": "user", "groups": [
            {"name": "0", "users": 0, "rows": []},
            {"name": "1-4", "users": 77, "rows": [{"name": name, **of_group} for name in ("ranker", "popularity")]},
        ]}],
        "fairness": {
            "users": [{"by": "users.age", "metric": "ndcg@10", "best": "old", "worst": "young", "gap": 0.0456,
                       "low": -0.001, "high": 0.09}],
            "item_gaps": [{"by": "item_events", "metric": "ndcg@10", "best": "20-99", "worst": "0", "gap": 0.0789,
                           "low": 0.01, "high": 0.1}],
            "items": [{"by": "popularity", "groups": [
                {"name": "head", "catalogue": 0.5, "truth": 0.9, "exposure": 1, "ratio": 1.6, "low": 1.5, "high": 1.7},
                {"name": "none", "catalogue": 0, "truth": 0, "exposure": 0, "ratio": None, "low": None, "high": None},
            ]}],
        },
        "calibration": {"bins": [{"pairs": 4567}, {"pairs": 1}], "ece": 0.0123, "brier": 0.0987},
        "labelled": {"pairs": 2222, "covered": 1111, "auc": 0.77, "uauc": None, "users": 33},
        "recall_of_candidates": 0.61, "table": "out/evaluation.json",
    }  # fmt: skip
    terminal.print_summary("evaluate", summary)
    out = " ".join(capsys.readouterr().out.split())
    for part in (
        "943",
        "931",
        "12 of 943 users have no list in ranker and count as 0 there.",
        "with score.keep_parts: true the next run can tell",
        "“strangers” has a list for none of these users (nobody in common)",
        "ranker",
        "popularity",
        "zero-shot",
        "0.1234",
        "0.1000 - 0.1500",
        "-0.0100 to +0.0200",
        "0.6100",
        "item_item",
        "alone@100",
        "0.6543",
        "901",
        "nothing for anybody",
        "0.0321",
        "all of them",
        "0.0333",
        "0.375",
        "popularity, the best other",
        "history_length",
        "77",
        "0.0456 higher for 'old' than for 'young'",
        "held-out items by item_events: ndcg@10 is 0.0789 higher for '20-99' than for '0', 95% +0.0100 to +0.1000",
        "head 1.6 (1.50 - 1.70), none -",
        "4,568 published pairs",
        "0.0123",
        "1,111 of 2,222",
        "AUC 0.77, by user -",
        f"@{cutoffs[0]}",
    ):
        assert part in out or (part == "@5" and "@10" in out)


def test_a_user_with_lists_of_different_length(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_user(7, ["Heat", "Big", "Up"], [(1, "Alien", 0.5)])
    terminal.print_user("u", [], [(1, "Alien", 0.25), (2, "Brazil", -1.0)])
    out = capsys.readouterr().out
    for part in ("user 7", "Heat", "Up", "Alien", "0.500", "user u", "Brazil", "-1.000"):
        assert part in out


@pytest.mark.parametrize("title", ["[new] lamp", "lamp [/red] oak", "lamp [/]", "lamp :star: oak", "[link=x] lamp"])
def test_titles_are_shown_as_they_are_written(title: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets and colons are no orders to the terminal."""
    terminal.print_user(title, [title], [(1, title, 0.5)])
    terminal.print_rows(title, [title], [[title]])
    terminal.print_summary(title, {title: title})
    terminal.console().print(title)
    assert capsys.readouterr().out.count(title) == 10


def test_a_title_is_one_line_that_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_user(1, ["two\nlines\r\n\tand\x1b[31m more"], [(1, "very long " * 400, 0.5)])
    out = capsys.readouterr().out
    assert "two lines and" in out and "\x1b" not in out
    assert len([line for line in out.splitlines() if "very long" in line]) <= 4 and "…" in out


def test_rows(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_rows("assets", ["name", "cached"], [["ml-100k", True]])
    out = capsys.readouterr().out
    assert "ml-100k" in out and "yes" in out


def test_every_setting_is_in_the_help() -> None:
    lines = terminal.settings_help(Config).splitlines()
    assert lines[0] == "settings:"
    for setting in ("--root", "--score.top_k", "--recall.item_item.decay", "--data.columns.user"):
        assert sum(line.strip().startswith(f"{setting} (default") for line in lines) == 1


@pytest.mark.parametrize("users", [12, 0])
def test_an_explanation_shows_sentences_and_whether_they_are_faithful(
    users: int, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {"cited": 0.5, "random": 0.125, "difference": 0.375, "low": 0.25, "high": 0.45,
               "cited_events": 4.25, "random_events": 3.5}  # fmt: skip
    found = {"users": users, "reasons": 34, **(figures if users else dict.fromkeys(figures))}
    example = {"user": 7, "rank": 1, "source": "template", "reason": "“Heat” because of “Casino”."}
    summary = {"run_id": "r-1", "with_history": 1234, "faithfulness": found, "examples": [example]}
    terminal.print_summary("explain", summary)
    out = " ".join(capsys.readouterr().out.split())
    for part in ("explain: done", "r-1", "1,234", "“Heat” because of “Casino”."):
        assert part in out
    told = (
        "34 reasons of 12 users: without the cited items scores fall by 0.5000, without as many random others by 0.1250"
    )
    if not users:
        assert "not measured" in out
        return
    assert told in out and "difference +0.3750, 95% +0.2500 to +0.4500" in out
    assert "cited items take 4.2 events with them, the others 3.5" in out
