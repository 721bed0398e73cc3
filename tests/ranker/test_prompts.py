from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from tiny_models import make_catalogue, tokenizer

from llmrec.config import Prompt
from llmrec.errors import UserError
from llmrec.ranker.packing import pack
from llmrec.ranker.prompts import (
    catalogue_training_request,
    scoring_request,
    tokenise_catalogue,
    training_request,
    trunk_opening,
    trunk_openings,
)
from llmrec.ranker.templates import fill, placeholders

ITEMS = pa.table({"item_id": [3, 1, 2], "title": ["Heat", "Big", "Up"], "tags": [["a", "b"], None, []]})


def decode(tokens: np.ndarray) -> str:
    return tokenizer().decode(tokens.tolist())


def test_fill_takes_columns_nulls_and_lists() -> None:
    assert fill("{title} ({tags})", ITEMS, "item") == ["Heat (a, b)", "Big ()", "Up ()"]
    assert fill("the same", ITEMS, "item") == ["the same"] * 3
    missing = pa.table({"price": [1.5, float("nan"), None]})
    assert fill("{price}.", missing, "item") == ["1.5.", ".", "."]


def test_columns_may_be_called_by_more_than_a_word() -> None:
    table = pa.table({"Product Name": ["Lamp"], "größe-cm": [12], "2nd": ["b"]})
    assert fill("{Product Name}, {größe-cm}{2nd}", table, "item") == ["Lamp, 12b"]
    assert placeholders("{Product Name} {2nd}") == ["Product Name", "2nd"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([{"w": 1}]), pa.array([[("k", "v")]], pa.map_(pa.string(), pa.string())), pa.array([b"x"]),
        pa.array([[{"w": 1}]]), pa.array([[[1]]]),
    ],
)  # fmt: skip
def test_what_has_no_text_is_refused(column: pa.Array) -> None:
    """A struct would be told by the names of its fields, the same for every item."""
    with pytest.raises(
        UserError, match=r"prompt\.item uses '\{x\}', a column of type .*: give it as text, a"
    ) as caught:
        fill("{x}", pa.table({"x": column}), "item")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "complaint"),
    [("{title", "expected '}'"), ("{}", "must be a column name"), ("{title.x}", "must be a column name")],
)
def test_a_malformed_template_is_one_line(template: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        placeholders(template)
    assert "\n" not in str(caught.value)


def test_a_format_that_text_cannot_have_is_one_line() -> None:
    with pytest.raises(UserError, match="item_id:04d"):
        fill("{item_id:04d}", ITEMS, "item")


def test_doubled_braces_are_one_brace_with_and_without_placeholders() -> None:
    assert fill("{{x}} {title}", ITEMS, "item")[0] == "{x} Heat"
    assert fill("{{x}}", ITEMS, "item")[0] == "{x}"


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"prompt\.item uses '\{year\}', but the items table has: item_id, title, tags"):
        fill("{year}", ITEMS, "item")


def test_catalogue_rows_follow_ids_and_texts_end_as_set() -> None:
    found = tokenise_catalogue(ITEMS, "item_id", Prompt(item="{title}"), tokenizer())
    assert found.ids.to_pylist() == [1, 2, 3]
    assert [decode(found.event[i]) for i in range(3)] == [" Big\n", " Up\n", " Heat\n"]
    assert found.candidate is found.event
    assert found.rows(pa.array([3, 7, None, 1])).tolist() == [2, -1, -1, 0]


def test_a_yes_no_candidate_has_its_own_words_around_it() -> None:
    prompt = Prompt(before_candidate="Film:", after_candidate="?")
    found = tokenise_catalogue(ITEMS, "item_id", prompt, tokenizer())
    assert [decode(found.candidate[i]) for i in range(3)] == ["Film: Big?", "Film: Up?", "Film: Heat?"]
    assert decode(found.event[0]) == " Big\n"


def test_long_items_are_cut_and_counted_and_keep_their_end() -> None:
    found = tokenise_catalogue(ITEMS, "item_id", Prompt(max_item_tokens=4), tokenizer())
    assert found.cut.sum() == 1
    assert [decode(found.event[i]) for i in range(3)] == [" Big\n", " Up\n", " Hea\n"]


def test_an_item_without_text_is_named() -> None:
    items = pa.table({"item_id": [1, 2], "title": ["Big", None]})
    with pytest.raises(UserError, match=r"item 2: prompt\.item '\{title\}' gives an empty text"):
        tokenise_catalogue(items, "item_id", Prompt(), tokenizer())


def test_an_item_without_an_id_is_refused() -> None:
    with pytest.raises(UserError):
        tokenise_catalogue(pa.table({"item_id": [1, None], "title": ["Big", "Up"]}), "item_id", Prompt(), tokenizer())


@pytest.mark.parametrize(
    ("per_item", "wanted"), [(1, [[262], [263], [264]]), (3, [[262, 263, 264], [265, 266, 267], [268, 269, 270]])]
)
def test_item_tokens_are_numbered_behind_the_vocabulary(per_item: int, wanted: list[list[int]]) -> None:
    made = tokenise_catalogue(ITEMS, "item_id", Prompt(), tokenizer())
    single = made.as_item_tokens(262, per_item)
    assert [single.event[i].tolist() for i in range(3)] == wanted
    assert single.event.values.dtype == np.int32
    assert single.candidate is single.event and single.ids is made.ids


def test_more_items_than_token_ids_are_refused() -> None:
    catalogue = tokenise_catalogue(ITEMS, "item_id", Prompt(), tokenizer())
    room = (2**31 - 1 - 262) // 3
    with pytest.raises(UserError, match=r"3 items of 715827796 vectors .*split the catalogue"):
        catalogue.as_item_tokens(262, room + 1)


def test_prefixes_start_with_bos_and_the_users_own_text() -> None:
    prompt = Prompt(user="Age {age}. ", before_history="Seen:")
    plain = trunk_opening(prompt, tokenizer())
    assert plain[0] == tokenizer().bos_token_id
    assert decode(plain[1:]) == "Seen:"
    texts = fill(prompt.user, pa.table({"age": [30, None]}), "user")
    opened = trunk_openings(texts, prompt, tokenizer())
    assert [decode(tokens[1:]) for tokens in opened] == ["Age 30. Seen:", "Age . Seen:"]
    assert trunk_openings([], prompt, tokenizer()) == []


def test_a_trunk_needs_a_token() -> None:
    bare = tokenizer()
    bare.bos_token = None
    with pytest.raises(UserError, match="no BOS or CLS token"):
        trunk_opening(Prompt(before_history=""), bare)


def test_a_scoring_request_is_prefix_history_and_candidates() -> None:
    catalogue = make_catalogue([[10, 11], [20], [30, 31, 32]])
    made = scoring_request(np.asarray([1], np.int32), catalogue, np.asarray([2, 0]), np.asarray([1, 2]))
    assert made.trunk.tolist() == [1, 30, 31, 32, 10, 11]
    assert [made.branches[i].tolist() for i in range(2)] == [[20], [30, 31, 32]]
    assert made.attach.tolist() == [5, 5]


def test_a_training_request_reads_events_at_their_end_and_negatives_before_them() -> None:
    catalogue = make_catalogue([[10, 11], [20], [30, 31, 32]])
    made = training_request(
        np.asarray([1, 2], np.int32), catalogue, np.asarray([2, 0, 1]), np.asarray([0, 2]), np.asarray([[0, 1], [2, 0]])
    )
    assert made.trunk.tolist() == [1, 2, 30, 31, 32, 10, 11, 20]
    assert made.trunk_read.tolist() == [4, 7]
    assert made.attach.tolist() == [1, 1, 6, 6]
    batch = pack([made])
    assert batch.token[batch.read].tolist() == [32, 20, 11, 20, 32, 11]


def test_a_catalogue_training_request_reads_just_before_each_event() -> None:
    catalogue = make_catalogue([[10], [20], [30]])
    made = catalogue_training_request(
        np.asarray([1, 2], np.int32), catalogue, np.asarray([2, 0, 1]), np.asarray([0, 2])
    )
    assert (made.trunk.tolist(), made.trunk_read.tolist(), len(made.branches)) == ([1, 2, 30, 10, 20], [1, 3], 0)
