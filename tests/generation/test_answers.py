"""Answers are read strictly, and what loops is found."""

from __future__ import annotations

import pytest

from llmrec.generation import instructions
from llmrec.generation.answers import Ending, Written, judge
from llmrec.generation.repetition import loops, repeats

ITEM = instructions.read("item.v1")
GOOD = " war, space, courage\nAbout: A crew meets something that hunts it."


def test_an_answer_of_the_schema_becomes_the_text() -> None:
    assert judge(Written(GOOD, "end", 20), ITEM).text == (
        "A crew meets something that hunts it. Themes: war, space, courage."
    )
    twice = judge(Written(" War, space, war, space.\nAbout: A crew.", "end", 9), ITEM)
    assert twice.text == "A crew. Themes: War, space."


@pytest.mark.parametrize("parts", ["战争、太空、勇气", "战争,太空;勇气。", "战争，太空；勇气"])
def test_lists_and_labels_in_chinese_writing(parts: str) -> None:
    found = judge(Written(f" {parts}\nAbout：一队人在太空里遇到了追杀他们的东西。", "end", 20), ITEM)
    assert found.text == "一队人在太空里遇到了追杀他们的东西。 Themes: 战争, 太空, 勇气."
    twice = judge(Written(" 战争、战争\nAbout：一队人。", "end", 9), ITEM)
    assert twice.detail.startswith("themes has 1 different parts")


@pytest.mark.parametrize(
    ("answer", "ending", "reason", "detail"),
    [
        ("", "end", "empty", "wrote nothing"),
        (" \n ", "end", "empty", "wrote nothing"),
        (" war, space\nAbout:", "end", "empty", "about is empty"),
        (" war, space", "end", "off_schema", "1 lines, not 2"),
        (GOOD + "\nRating: 5", "end", "off_schema", "3 lines, not 2"),
        (" war, space\nPlot: A crew.", "end", "off_schema", "no 'About:' where it should be"),
        (" war, war\nAbout: A crew.", "end", "off_schema", "1 different parts, fewer than 2"),
        (" war, space\nAbout: Buy it at https://shop.example now", "end", "off_schema", "address or markup"),
        (" war, space\nAbout: A crew.<|im_start|>", "end", "off_schema", "address or markup"),
        (" war, space\nAbout: A\x07crew.", "end", "off_schema", "address or markup"),
        (" war, space\nAbout: " + " ".join(f"word{i}" for i in range(50)), "end", "too_long", "more than 240"),
        (" a, b, c, d, e, f, g, h, i\nAbout: A crew.", "end", "too_long", "9 parts, more than 8"),
        (GOOD, "limit", "too_long", "A crew meets"),
        (GOOD, "loop", "repetitive", "A crew meets"),
        (" war, space\nAbout: It is a crew, it is a crew, it is a crew, it is a crew.", "end", "repetitive", "a crew"),
        (" 战争、太空\nAbout：一队人在船上一队人在船上一队人在船上。", "end", "repetitive", "一队人"),
        (" war, space\nAbout: It is a crew, it is a crew, it is a crew, it is a", "limit", "repetitive", "a crew"),
    ],
)  # fmt: skip
def test_any_other_is_set_aside_with_a_reason(answer: str, ending: Ending, reason: str, detail: str) -> None:
    found = judge(Written(answer, ending, 9), ITEM)
    assert (found.text, found.reason) == ("", reason)
    assert detail in found.detail and "\n" not in found.detail


def by_hand(tokens: list[int]) -> bool:
    """Every block at the end, counted."""
    for block in range(1, 25):
        times = 1
        while tokens[-block * (times + 1) : -block * times or None] == tokens[-block:] and len(tokens) >= block * (
            times + 1
        ):
            times += 1
        if times >= 3 and times * block >= 12:
            return True
    return False


def test_a_loop_is_a_block_again_and_again_at_the_end() -> None:
    start = [7, 1, 9, 4]
    for block in (1, 2, 5, 24):
        tokens = start + list(range(100, 100 + block)) * 40
        found = [loops(tokens[:n]) for n in range(len(start) + 1, len(tokens) + 1)]
        assert found == [by_hand(tokens[:n]) for n in range(len(start) + 1, len(tokens) + 1)]
        assert found.index(True) + 1 == max(12, 3 * block)
    assert not loops(start + list(range(100, 125)) * 10), "a longer block is no loop of tokens"
    assert not loops([5] * 11) and loops([5] * 12)
    assert not loops([5] * 12 + [6])


def test_repeated_words() -> None:
    assert repeats("A comedy that is a horror comedy, a comedy that is a horror comedy")
    assert not repeats("A story about a man who sells his farm and moves into a city that does not want him")
    assert not repeats("yes yes yes yes"), "too short to tell"
    assert repeats("这部电影很好看这部电影很好看这部电影很好看")
    assert not repeats("一个农夫卖掉了他的农场，搬进一座不欢迎他的城市，在那里重新开始生活")
