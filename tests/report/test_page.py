from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from pages import comparison, row, shown, with_all

from llmrec.engine import report
from llmrec.report.gate import print_gate
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
        "-0.0100 to +0.0120", "60.0%", "0.6000", "61.0%", "scored hold 61.0% of a user's held-out items",
        "duplicate_user", "30 of 40 planned steps", "0.1234", "history length",
        "1 to 5", "6 or more 0 nobody", "77", "users.age", "young", "0.0310",
        "Between held-out items", "rarely", "0.0770", "head", "77.7%", "1.55", "0.0456",
        "0.7654", "41,624", "15,593", "94,295", "4.3%", "2.65", "r-0", "194.2 s", "Amistad", "at rank 1 of 20",
        "no_candidates, see s3://b/quarantine/recall 7",
        "in the mean over 2,001 users: item_item 80, merged 95.5", "asks for: 203; with none: 7",
        "In the merged lists: item_item 75, popularity 20.5. Found nothing for anybody: graph. Users who typed",
        "something: 55. Share of exact", "found: text 0.9876",
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


def test_an_evaluation_of_before_gaps_between_items_has_a_page() -> None:
    found = with_all()
    del found["evaluation"]["fairness"]["item_gaps"]
    assert "Between held-out items" not in read(render(found)).text


def test_shares_of_nothing_are_dashes() -> None:
    found = with_all()
    unknown = dict.fromkeys(("truth", "exposure", "ratio", "low", "high"))
    found["evaluation"]["fairness"]["items"][0]["groups"] = [{"name": "head", "catalogue": 0.2, **unknown}]
    assert "head 20.0% - - - -" in read(render(found)).text


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


def test_long_titles_are_cut() -> None:
    found = with_all()
    user = found["users"][0]
    user["history"] = [f"h{'x' * 4000}"]
    user["rows"][0]["title"], user["held_out"][0]["title"] = f"r{'x' * 4000}", f"t{'x' * 4000}"
    page = render(found)
    assert "x" * 200 not in page and all(f"{of}{'x' * 150}" in page for of in "hrt")


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


def test_whom_our_ranking_has_no_list_for_is_said() -> None:
    found = shown()
    told = "have no list in llm ranking"
    assert told not in read(render(found)).text and "all 1,943 users" in read(render(found)).text
    found["evaluation"]["all_users"][0]["ranked"] = 1900
    text = read(render(found)).text
    assert "43 of 1,943 users have no list in llm ranking and count as 0 there." in text
    assert "llm ranking 1,900 0.1200" in text and "item_item 1,943 0.1000" in text


def test_of_a_share_of_users_it_says_so() -> None:
    found = shown()
    found["evaluation"]["users_share"] = 0.25
    text = read(render(found)).text
    assert "The run scored a share of 0.25 of users (score.users_share): these alone are measured" in text
    assert "1,943 users with held-out events of the share that was scored" in text and "all 1,943" not in text


def test_of_some_of_many_users_it_says_so() -> None:
    found = shown()
    found["evaluation"] |= {"users_share": 0.25, "sampled": True, "held_out_users": 7772}
    text = read(render(found)).text
    assert "1,943 of 7,772 users with held-out events are measured, in every ranking: a stable choice" in text
    assert "1,943 users with held-out events, a stable choice" in text and "all 1,943" not in text
    assert "score.users_share" not in text


def test_an_evaluation_of_an_earlier_version_has_a_page() -> None:
    found = with_all()
    del found["evaluation"]["users_share"]
    for of in found["evaluation"]["all_users"]:
        del of["ranked"]
    assert "have no list in" not in read(render(found)).text


@pytest.mark.parametrize("ranked", [90, 100])
def test_the_gate_says_who_would_lose_their_list(ranked: int, capsys: pytest.CaptureFixture[str]) -> None:
    print_gate({"run_id": "r", "published_run": None, "users": 100, "ranked": ranked, "decisions": [], "holds": True})
    assert ("10 of these users have no list in the staged run" in capsys.readouterr().out) == (ranked < 100)


def test_a_source_that_brought_nothing_is_told_from_one_that_missed() -> None:
    found = with_all()
    missed = {**found["evaluation"]["sources"][0], "recall": {"recall@100": 0.0}, "alone": {"alone@100": 0.0}}
    found["evaluation"]["sources"][1:1] = [{**missed, "name": "ease"}, {**missed, "name": "graph", "users": 0}]
    text = read(render(found)).text
    assert "ease 1,900 0.0000 0.0000" in text and "graph 0 brought nothing to anybody all of them 1,900" in text


def test_recall_that_set_nobody_aside() -> None:
    found = with_all()
    found["summaries"]["recall"] |= {"no_candidates": 0, "empty_sources": [], "queries": 0, "found_of_exact": {}}
    text = read(render(found)).text
    assert "no_candidates" not in text and "Found nothing" not in text and "with none: 0." in text
    assert "typed something" not in text and "exact search" not in text


def test_a_further_ranking_with_nobody_in_common_is_not_left_out() -> None:
    found = with_all()
    found["same_users"]["strangers"] = {"rows": [], "comparisons": {}, "by_metric": {}}
    found["evaluation"]["same_users"] = {"zero-shot": found["same_users"]["zero-shot"]["rows"], "strangers": []}
    text = read(render(found)).text
    assert "Users that “strangers” ranks too: 0, nobody in common" in text
    assert text.count("has a list for none of these users") == 1


def test_a_fused_run_without_parts_says_that_it_cannot_tell_what_each_adds() -> None:
    told = "is not known: the run kept no score parts; with score.keep_parts: true the next run can tell."
    found = shown(importance={"ranker": 0.4, "item_item": 0.6})
    found["evaluation"]["parts_unknown"] = True
    assert sentences(found)[1].endswith(told)
    text = read(render(found)).text
    assert text.count(told) == 2, "after the verdict, and where the parts would be"
    assert told not in read(render(with_all())).text


def test_every_metric_has_its_interval_and_says_whether_it_is_told_apart() -> None:
    found = with_all()
    best = comparison("item_item", 0.3, -0.25, -0.15) | {"name": "popularity"}
    found["by_metric"] = {"recall@10": found["comparisons"]["item_item"], "mrr@10": best}
    rows = found["evaluation"]["all_users"]
    rows[1]["lead"] = {"recall@10": (0.01, 0.03), "ndcg@10": (-0.01, 0.01), "mrr@10": (-0.2, -0.1)}
    rows[1]["interval"] = {"recall@10": (0.081, 0.122), "ndcg@10": (0.083, 0.124), "mrr@10": (0.085, 0.126)}
    rows[2]["p_value"] = {"mrr@10": 0.0456}
    text = read(render(found)).text
    assert "recall@10 0.1200 0.1100 to 0.1300 item_item 0.1000 0.0810 to 0.1220 +0.0100 to +0.0300 ours is bet" in text
    assert "mrr@10 0.1200 0.1100 to 0.1300 popularity 0.3000 0.0400 to 0.0600 -0.2500 to -0.1500 ours is worse" in text
    assert "ours is worse 0.046" in text
    cells = "item_item 0.1000 + 0.0810 to 0.1220 0.1000 = 0.0830 to 0.1240 0.1000 - 0.0850 to 0.1260"
    assert cells in text and "+: ours is better, -: ours is worse, =: not told apart" in text


def test_by_every_metric_ours_stands_beside_the_best_other_of_it() -> None:
    ours, one, other = row(report.OURS, 0.12), row("item_item", 0.1), row("popularity", 0.05)
    other["values"] = {**other["values"], "mrr@10": 0.11}
    found = report._by_metric([ours, one, other, row("fused without ranker", 0.9)], ["item_item", "popularity"])
    assert {metric: of["name"] for metric, of in found.items()} == {
        "recall@10": "item_item", "ndcg@10": "item_item", "mrr@10": "popularity"
    }  # fmt: skip
    assert report._by_metric([ours], ["item_item"]) == {}


def test_fairness_is_drawn_with_its_intervals() -> None:
    found = with_all()
    nothing = dict.fromkeys(("ratio", "low", "high"))
    groups = found["evaluation"]["fairness"]["items"][0]["groups"]
    groups.append({"name": "none", "catalogue": 0.0, "truth": 0.0, "exposure": 0.0, **nothing})
    page = render(found)
    fairness = page[page.index('<h2 id="fairness">') : page.index('<h2 id="calibration">')]
    tracks = re.findall(r'<div class="track">(.*?)</div>', fairness, re.DOTALL)
    placed = [re.findall(r'class="(\w+)" style="left:([\d.]+)%(?:;width:([\d.]+)%)?"', track) for track in tracks]
    # The gaps 0.031, 0.01 to 0.05, and 0.077, 0.06 to 0.09, from no gap on; the ratio 1.55, 1.4 to 1.7, beside 1.
    assert placed == [
        [("zero", "0.0", ""), ("span", "20.0", "80.0"), ("dot", "62.0", "")],
        [("zero", "0.0", ""), ("span", "66.67", "33.33"), ("dot", "85.56", "")],
        [("zero", "58.82", ""), ("span", "82.35", "17.65"), ("dot", "91.18", "")],
    ]
    assert "none 0.0% 0.0% 0.0% - - " in read(page).text


def test_a_ranker_that_was_kept_has_no_steps_to_tell_of() -> None:
    whole = with_all()
    whole["summaries"]["train"] |= {"steps": 0, "steps_planned": 0, "best": None}
    text = read(render(whole)).text
    assert "the ranker before is kept" in text and "planned steps" not in text
