from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from pages import comparison, shown, with_all

from llmrec.report.headline import sentences
from llmrec.report.page import render


class Tree(HTMLParser):
    """Checks that elements nest, and collects ids, links, scripts and the text outside of style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.seen: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        given = dict(attrs)
        assert not any(name.startswith("on") for name in given)
        assert "src" not in given
        if "id" in given:
            self.ids.add(given["id"])
        if "href" in given:
            self.links.add(given["href"])
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data + " "


def read(page: str) -> Tree:
    tree = Tree(page)
    tree.text = re.sub(r"\s+", " ", tree.text)
    return tree


def test_a_page_shows_everything_that_is_there() -> None:
    page = render(with_all())
    tree = read(page)
    for part in (
        "r-1", "version 3, 2026-01-02 03:04 UTC", "s3://b/rankings", "1,682", "99,990", "1997-09-20", "1998-04-22",
        "null_id", "data.buckets", "0.1200", "0.1100 to 0.1300", "+0.0100 to +0.0300", "ours is better",
        "not told apart", "0.012 ", "coverage@10", "0.345", "0.456", "zero-shot", "fused without ranker",
        "-0.0100 to +0.0120", "60.0%", "0.6000", "61.0%", "30 of 40 planned steps", "0.1234", "history length",
        "1 to 5", "6 or more 0 nobody", "77", "users.age", "young", "0.0310", "head", "77.7%", "1.55", "0.0456",
        "0.7654", "41,624", "15,593", "94,295", "4.3%", "2.65", "r-0", "194.2 s", "Amistad", "at rank 1 of 20",
        "not among the 20 ranked", "Flubber · Star Maps", "6.1%", "5.125",
    ):  # fmt: skip
        assert part in tree.text, part
    assert page.count('class="hit"') == 1
    assert tree.seen.count("svg") == 3, "two learning curves and the calibration"
    assert tree.links == {f"#{name}" for name in tree.ids}, "every part is reached, every link leads somewhere"
    assert len(page.encode()) < 60_000
    assert "http" not in page


def test_a_page_without_what_is_optional() -> None:
    tree = read(render(shown()))
    assert tree.links == {"#run", "#metrics", "#parts", "#cost"}
    assert tree.links == {f"#{name}" for name in tree.ids}
    assert "svg" not in tree.seen
    for word in ("The fusion with less", "Calibration", "Fairness", "Segments", "Training", "None", "Undefined"):
        assert word not in tree.text


@pytest.mark.parametrize("empty", [{"segments": []}, {"fairness": None}, {"calibration": None}, {"labelled": None}])
def test_parts_that_are_there_and_empty_are_left_out(empty: dict[str, Any]) -> None:
    found = shown()
    found["evaluation"] |= empty
    assert render(found) == render(shown())


def test_texts_of_the_data_are_no_markup() -> None:
    evil = "<script>alert(1)</script>\"'<img src=x onerror=alert(1)>"
    found = with_all()
    user = found["users"][0]
    user["history"] = user["user"] = evil
    user["history"] = [evil]
    user["rows"][0]["title"] = user["held_out"][0]["title"] = user["rows"][0]["source"] = evil
    found["settings"][0]["value"] = found["run"]["table"] = evil
    found["evaluation"]["segments"][0]["groups"][0]["name"] = evil
    found["same_users"] = {evil: found["same_users"]["zero-shot"]}
    found["evaluation"]["sources"][0]["name"] = evil
    page = render(found)
    tree = read(page)
    assert "script" not in tree.seen and "img" not in tree.seen
    assert tree.text.count("<script>alert(1)</script>") == 10


def test_bars_and_lines_lie_where_the_values_are() -> None:
    page = render(with_all())
    # The longest interval ends at 0.13: ours is 0.12 of it, its interval from 0.11 on.
    assert 'style="left:0.0%;width:92.31%"' in page
    assert 'style="left:84.62%;width:15.38%"' in page
    # The loss falls from the top of its figure at the left to the bottom at the right.
    assert 'd="M46 10 L350 174"' in page


@pytest.mark.parametrize(
    ("low", "high", "theirs", "words"),
    [
        (0.01, 0.03, 0.1, "The language model beats item_item, the best other recommender here, in NDCG@10 by 0.0200 "
         "(+20.0%; 0.1200 against 0.1000; 95% interval of the difference +0.0100 to +0.0300)."),
        (-0.03, -0.01, 0.15, "The language model does not beat item_item, the best other recommender here: in NDCG@10 "
         "it is behind by 0.0300 (-20.0%; 0.1200 against 0.1500; 95% interval of the difference -0.0300 to -0.0100)."),
        (-0.01, 0.01, 0.125, "The language model cannot be told apart from item_item, the best other recommender here: "
         "in NDCG@10 the difference is -0.0050 (-4.0%; 0.1200 against 0.1250; 95% interval of the difference -0.0100 "
         "to +0.0100)."),
    ],
)  # fmt: skip
def test_the_first_sentence_says_what_the_interval_says(low: float, high: float, theirs: float, words: str) -> None:
    found = shown()
    found["verdict"]["baseline"] = comparison("item_item", theirs, low, high)
    assert sentences(found) == [words]


def test_of_a_fused_run_it_says_what_the_model_adds_and_what_it_cost() -> None:
    first, second = sentences(with_all())
    assert first.startswith("The fused ranking, with the language model, beats item_item")
    assert first.endswith(
        "at the cost of 194 s of training and 17 s of scoring (41,624 pairs/s, 0.25 at the price per hour)."
    )
    assert second == (
        "Fused without what the language model says, NDCG@10 would be 0.1190: what the model adds, +0.0010 (+0.8%; "
        "0.1200 against 0.1190; 95% interval of the difference -0.0100 to +0.0120), cannot be told from nothing."
    )


def test_without_another_recommender_it_says_so() -> None:
    found = shown()
    found["verdict"]["baseline"] = None
    (told,) = sentences(found)
    assert told.startswith("Nothing to compare with") and "0.1200" in told
    read(render(found))


def test_a_ranker_that_was_kept_has_no_steps_to_tell_of() -> None:
    whole = with_all()
    whole["summaries"]["train"] |= {"steps": 0, "steps_planned": 0, "best": None}
    text = read(render(whole)).text
    assert "the ranker before is kept" in text and "planned steps" not in text
