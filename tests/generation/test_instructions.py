"""Instructions to the writing model: the shipped ones, one's own, and what is wrong with them in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from llmrec.errors import UserError
from llmrec.generation import instructions
from llmrec.generation.answers import Written, judge

OWN: dict[str, Any] = {
    "name": "shop", "version": 3, "system": "You sell.", "input": "Product: {title} of {brand}",
    "fields": [
        {"name": "kind", "label": "Kind", "max_characters": 20},
        {"name": "uses", "label": "Uses", "list": True, "at_least": 2, "at_most": 3, "max_characters": 20},
    ],
    "text": "{kind}, for {uses}",
    "examples": [
        {"input": {"title": "mug", "brand": "Acme"}, "answer": {"kind": "mug", "uses": ["tea", "coffee"]}},
    ],
}  # fmt: skip


def of(path: Path, **changed: Any) -> instructions.Instructions:
    path.write_text(yaml.safe_dump(OWN | changed))
    return instructions.read(str(path))


def refused(path: Path, *parts: str, **changed: Any) -> None:
    with pytest.raises(UserError) as caught:
        of(path, **changed)
    assert "\n" not in str(caught.value)
    for part in (path.name, *parts):
        assert part in str(caught.value), caught.value


@pytest.mark.parametrize("name", instructions.shipped())
def test_shipped_ones_say_their_version_and_their_examples_are_answers_that_pass(name: str) -> None:
    found = instructions.read(name)
    assert name == f"{found.name}.v{found.version}"
    assert found.examples
    for example in found.examples:
        answer = found.answer(example.answer).removeprefix(found.opening)
        assert judge(Written(answer, "end", 1), found).text == found.told(example.answer)


def test_shipped_ones_never_change_under_their_name() -> None:
    """Another text is another version: with these go all that was ever written by them."""
    assert {name: instructions.read(name).digest for name in instructions.shipped()} == {
        "item.v1": "8dff34abac39c8ec", "user.v1": "7f88af9beec48545",
    }  # fmt: skip


def test_ones_own_are_read_and_changed_ones_have_another_digest(tmp_path: Path) -> None:
    found = of(tmp_path / "own.yaml")
    assert found.placeholders == ["title", "brand"] and found.opening == "Kind:"
    assert found.answer({"kind": "mug", "uses": ["tea", "coffee"]}) == "Kind: mug\nUses: tea, coffee"
    assert found.told({"kind": "mug", "uses": ["tea", "coffee"]}) == "mug, for tea, coffee"
    assert of(tmp_path / "copy.yaml").digest == found.digest
    for key, value in (("version", 4), ("system", "You buy."), ("text", "{kind}")):
        assert of(tmp_path / "own.yaml", **{key: value}).digest != found.digest


def test_what_is_wrong_is_one_line_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    known = ["text", "item_id", "title"]
    with pytest.raises(UserError) as caught:
        of(path).check(known, "items", str(path))
    assert str(caught.value) == f"{path}: input uses '{{brand}}', and of items there are: text, item_id, title"
    refused(path, "text uses '{colour}', and of fields there are: kind, uses", text="a {colour} {kind}")
    refused(path, "input has no placeholder", input="Product:")
    refused(path, "'{title:>9}' must be a column name", input="{title:>9}")
    refused(path, "unknown key 'fileds'", fileds=[])
    refused(path, "version", version=0)
    refused(path, "fields has 'kind' more than once", fields=[OWN["fields"][0]] * 2)
    refused(path, "fields.0.label", fields=[{"name": "kind", "label": "Ki:nd", "max_characters": 5}])
    refused(path, "example 1: its input must have title, brand", examples=[OWN["examples"][0] | {"input": {}}])
    wrong = OWN["examples"][0] | {"answer": {"kind": ["mug"], "uses": ["tea"]}}
    refused(path, "example 1: kind must be a text", examples=[wrong])
    path.write_text("a: [")
    with pytest.raises(UserError, match="not valid YAML"):
        instructions.read(str(path))
    with pytest.raises(UserError, match=r"template 'item': none of this name comes along \(item.v1, user.v1\)"):
        instructions.read("item")
    with pytest.raises(UserError, match="no such file"):
        instructions.read(str(tmp_path / "nowhere.yaml"))
