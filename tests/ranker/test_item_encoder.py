"""Items' vectors against plain loops over the encoder's weights, and what becomes of missing parts and items."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_models import HIDDEN, layer_norm, make_features, naive_item_vectors, only, shake_encoder

from llmrec.config import Items
from llmrec.errors import UserError
from llmrec.ranker import item_encoder
from llmrec.ranker.item_encoder import ItemEncoder
from llmrec.ranker.item_features import ItemFeatures, columns_of, read_features

LENGTH = 3.0
PARTS = ["text", "image", "genres", "tags", "year", "price"]


def fresh(features: ItemFeatures, trained: np.ndarray | None = None, **settings: object) -> ItemEncoder:
    torch.manual_seed(0)
    trained = np.ones(len(features.ids), bool) if trained is None else trained
    return ItemEncoder.fresh(features, Items(**settings), trained, HIDDEN, LENGTH)


def made(features: ItemFeatures, trained: np.ndarray | None = None, **settings: object) -> ItemEncoder:
    encoder = fresh(features, trained, **settings)
    shake_encoder(encoder)
    return encoder.eval()


def assert_naive(encoder: ItemEncoder, features: ItemFeatures) -> None:
    found, wanted = encoder(), naive_item_vectors(encoder, features)
    torch.testing.assert_close(found.vectors, wanted.vectors, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.bias, wanted.bias, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(encoder.inputs(found.vectors), wanted.inputs, rtol=1e-4, atol=1e-4)


def carry_over(weights: ItemEncoder, to: ItemEncoder) -> None:
    """Give an encoder of some of the parts the other's weights."""
    mine = {name: weights.state_dict()[name] for name in to.state_dict()}
    to.load_state_dict(mine)


@pytest.mark.parametrize("per_item", [1, 2])
@pytest.mark.parametrize(
    "parts",
    [PARTS, [], ["text"], ["genres"], ["tags"], ["year"], ["image", "price"]],
    ids=lambda p: "+".join(p) or "id alone",
)
def test_vectors_equal_plain_loops(per_item: int, parts: list[str]) -> None:
    features = only(make_features(range(12)), *parts)
    encoder = made(features, per_item=per_item)
    assert encoder().vectors.shape == (12, per_item, HIDDEN)
    assert_naive(encoder, features)


@pytest.mark.parametrize("per_item", [1, 2])
def test_vectors_of_another_catalogue_equal_plain_loops(per_item: int) -> None:
    trained = np.arange(12) % 3 != 2
    encoder = made(make_features(range(12)), trained, per_item=per_item)
    later = make_features([3, 5, 6, 40, 41, 42, 43, 44, 45])  # known, untrained and unheard of
    encoder.bind(later)
    assert_naive(encoder, later)


@pytest.mark.parametrize("per_item", [1, 2])
def test_learned_parts_start_from_vectors(per_item: int) -> None:
    """Turned and scaled together, so that all angles stay; items without a vector start as they would have."""
    trained = np.asarray([True, True, False, True, True, True])
    encoder = fresh(make_features(range(6)), trained, per_item=per_item)
    assert encoder.own is not None
    before = encoder.own.detach().clone()
    vectors = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    vectors[4] = 0
    encoder.start_from(vectors)
    rows = [0, 1, 3, 5]
    own = encoder.own.detach().unflatten(1, (per_item, HIDDEN))
    there = own[[0, 1, 2, 4]]  # of items 0, 1, 3, 5
    assert torch.equal(own[3], before.unflatten(1, (per_item, HIDDEN))[3])
    for one in there.unbind(1):
        assert float(one.norm(dim=1).mean()) == pytest.approx(item_encoder.START_LENGTH, rel=1e-5)
        scale = item_encoder.START_LENGTH / np.linalg.norm(vectors[rows], axis=1).mean()
        np.testing.assert_allclose(one @ one.T, vectors[rows] @ vectors[rows].T * scale**2, atol=1e-5)
    wide = np.random.default_rng(0).standard_normal((6, HIDDEN + 3)).astype(np.float32)
    encoder.start_from(wide)  # of more dimensions than the backbone has, the first ones
    assert torch.isfinite(encoder.own).all()


def test_without_ids_nothing_is_learned_of_single_items_but_their_bias() -> None:
    features = make_features(range(8))
    encoder = made(features, id=False)
    assert encoder.own is None and "own" not in encoder.state_dict()
    assert_naive(encoder, features)


@pytest.mark.parametrize("missing", ["text", "image", "genres", "tags"])
def test_a_part_that_all_items_lack_adds_nothing(missing: str) -> None:
    features = make_features(range(9))
    encoder = made(features)
    lacking = replace(
        features,
        present={n: np.zeros(9, bool) if n == missing else p for n, p in features.present.items()},
        vectors={n: v * 0 if n == missing else v for n, v in features.vectors.items()},
        categories={
            n: pa.array([None, [], ["never heard"]] * 3, pa.list_(pa.string())) if n == missing else c
            for n, c in features.categories.items()
        },
    )
    others = only(features, *(p for p in PARTS if p != missing))
    without = made(others)
    carry_over(encoder, without)
    assert not torch.equal(without().vectors, encoder().vectors)
    encoder.bind(lacking)
    assert torch.equal(without().vectors, encoder().vectors)


def test_what_a_missing_vector_holds_does_not_count() -> None:
    features = make_features(range(9))
    encoder = made(features)
    before = encoder().vectors
    text = features.vectors["text"].copy()
    text[~features.present["text"]] = 7
    assert (~features.present["text"]).any()
    encoder.bind(replace(features, vectors={**features.vectors, "text": text}))
    assert torch.equal(encoder().vectors, before)


def test_numbers_are_held_to_ten_deviations() -> None:
    features = only(make_features(range(9)), "year")
    encoder = made(features, id=False)
    found = []
    for year in (1e5, 1e9):
        wild = replace(features, numbers={"year": np.full(9, year, np.float32)})
        encoder.bind(wild)
        assert_naive(encoder, wild)
        found.append(encoder().vectors)
    assert torch.equal(*found)


@pytest.mark.parametrize("training", [True, False])
def test_items_that_training_has_not_seen_have_no_own_vector_and_the_mean_bias(training: bool) -> None:
    """Until what their other parts foretell is known, and in training always."""
    features = make_features(range(10))
    trained = np.ones(10, bool)
    trained[[0, 4, 9]] = False
    encoder = made(features, trained).train(training)
    if not training:
        encoder.foretold.zero_(), encoder.foretold_offset.zero_()
    assert encoder.ids.to_pylist() == [1, 2, 3, 5, 6, 7, 8]
    assert encoder.own.shape == (7, HIDDEN) and encoder.bias.shape == (7,)
    without = made(features, trained, id=False)
    carry_over(encoder, without)
    encoder.bind(make_features([0, 3, 4, 9, 17]))
    without.bind(make_features([0, 3, 4, 9, 17]))
    (vectors, bias), others = encoder(), without().vectors
    for row in (0, 2, 3, 4):
        assert torch.equal(vectors[row], others[row])
    torch.testing.assert_close(vectors[1, 0] - others[1, 0], encoder.own[2])
    learned = encoder.bias.detach().double().numpy()
    mean = learned.mean()
    assert bias.tolist() == pytest.approx([mean, learned[2], mean, mean, mean], rel=1e-5)


def test_own_vectors_are_dropped_in_training_alone_and_in_their_share() -> None:
    n, share = 4000, 0.3
    features = ItemFeatures(pa.array(range(n), pa.int64()))
    encoder = made(features)
    whole = encoder().vectors
    encoder.own_dropout = share
    assert torch.equal(encoder().vectors, whole), "dropped although not in training"
    encoder.train()
    torch.manual_seed(5)
    one, two = encoder(), encoder()
    gone = (one.vectors == 0).all(-1).all(-1)
    assert torch.equal(one.vectors[~gone], whole[~gone]), "what is left is not as it was"
    assert int(gone.sum()) == pytest.approx(share * n, abs=4 * np.sqrt(n * share * (1 - share)))
    assert not torch.equal((two.vectors == 0).all(-1).all(-1), gone), "the same items each time"
    assert torch.equal(one.bias, torch.where(gone, encoder.bias.mean(), encoder.bias)), "of an unseen one the mean"
    assert torch.equal(encoder.frozen().vectors, whole) and encoder.training, "frozen vectors are whole"
    encoder.own_dropout = 0.0
    assert torch.equal(encoder().vectors, whole)


@pytest.mark.parametrize("rows", [1, 4, 11, 100])
def test_frozen_vectors_are_those_of_one_pass(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_encoder, "ROWS_AT_ONCE", rows)
    encoder = made(make_features(range(11)), np.arange(11) % 4 != 0, per_item=2)
    whole, frozen = encoder(), encoder.frozen()
    assert not frozen.vectors.requires_grad and not frozen.bias.requires_grad
    torch.testing.assert_close(frozen.vectors, whole.vectors, rtol=1e-5, atol=1e-5)
    assert torch.equal(frozen.bias, whole.bias)


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (2, 5), (5, 9), (8, 9), (4, 4)])
def test_some_items_alone_are_as_among_all(start: int, stop: int) -> None:
    encoder = made(make_features(range(9)), per_item=2)
    whole, some = encoder(), encoder(start, stop)
    torch.testing.assert_close(some.vectors, whole.vectors[start:stop], rtol=1e-5, atol=1e-5)
    assert torch.equal(some.bias, whole.bias[start:stop])


def test_centre_and_scale_are_those_of_what_is_there() -> None:
    features = make_features(range(30))
    encoder = made(features)
    for name in ("text", "image"):
        there = features.vectors[name][features.present[name]].astype(np.float64)
        part = encoder.frozen_parts[name]
        np.testing.assert_allclose(part.centre.numpy(), there.mean(0), rtol=1e-5, atol=1e-6)
        entering = (there - there.mean(0)) * float(part.scale)
        assert np.linalg.norm(entering, axis=1).mean() == pytest.approx(20**0.5, rel=1e-5)
    numbers = np.stack([features.numbers["year"], features.numbers["price"]], 1).astype(np.float64)
    np.testing.assert_allclose(encoder.numbers.centre.numpy(), np.nanmean(numbers, 0), rtol=1e-5)
    np.testing.assert_allclose(1 / encoder.numbers.scale.numpy(), np.nanstd(numbers, 0), rtol=1e-3)


def test_centre_and_scale_stay_when_other_items_are_bound() -> None:
    encoder = made(make_features(range(30)))
    before = copy.deepcopy(encoder.state_dict())
    encoder.bind(make_features(range(50, 60), seed=1))
    assert all(torch.equal(before[name], found) for name, found in encoder.state_dict().items())


def test_a_constant_and_an_empty_column_give_finite_vectors() -> None:
    features = replace(
        make_features(range(4)),
        vectors={"text": np.ones((4, 3), np.float32), "image": np.zeros((4, 2), np.float32)},
        present={"text": np.ones(4, bool), "image": np.zeros(4, bool)},
        numbers={"year": np.full(4, 7, np.float32), "price": np.full(4, np.nan, np.float32)},
        categories={"genres": pa.array([None] * 4, pa.list_(pa.string()))},
    )
    encoder = made(features)
    assert torch.isfinite(encoder().vectors).all()
    assert_naive(encoder, features)


def test_categories_of_one_item_are_left_out() -> None:
    encoder = made(make_features(range(7)))
    assert encoder.plan["categories"] == {"genres": ["comedy", "drama", "war"], "tags": ["old"]}
    assert encoder.categories["genres"].table.weight.shape == (3, HIDDEN)
    assert made(make_features(range(2))).plan["categories"] == {"genres": [], "tags": []}


def test_a_fresh_encoder_gives_inputs_of_the_length_of_words_and_likes_nothing() -> None:
    features = make_features(range(40))
    encoder = fresh(features, per_item=2).eval()
    lengths = encoder.inputs(encoder().vectors).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, LENGTH), rtol=0.05, atol=0)
    assert not encoder().bias.any()


def test_the_direction_is_of_the_mean_of_an_items_vectors() -> None:
    encoder = made(make_features(range(6)), per_item=2)
    items = encoder()
    mean = items.vectors.detach().double().numpy().mean(1)
    wanted = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(items.direction().detach().numpy(), wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        items.direction(torch.tensor([4, 0])).detach().numpy(), wanted[[4, 0]], rtol=1e-4, atol=1e-6
    )


def test_inputs_are_a_layer_norm_of_any_shape() -> None:
    encoder = made(make_features(range(3)))
    torch.manual_seed(3)
    v = torch.randn(2, 3, HIDDEN)
    wanted = torch.stack([torch.stack([layer_norm(one, encoder.norm) * encoder.scale for one in row]) for row in v])
    torch.testing.assert_close(encoder.inputs(v), wanted, rtol=1e-5, atol=1e-5)


def test_everything_that_is_learned_has_a_gradient() -> None:
    encoder = made(make_features(range(9)), per_item=2).train()
    items = encoder()
    torch.manual_seed(3)
    (encoder.inputs(items.vectors) * torch.randn_like(items.vectors)).sum().add(items.bias.sum()).backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("per_item", [1, 2])
@pytest.mark.parametrize("parts", [PARTS, []], ids=["all parts", "id alone"])
def test_a_saved_encoder_gives_the_same_vectors(tmp_path: Path, per_item: int, parts: list[str]) -> None:
    features = only(make_features(range(9)), *parts)
    encoder = made(features, np.arange(9) != 4, per_item=per_item)
    encoder.save_pretrained(tmp_path)
    again = ItemEncoder.from_pretrained(tmp_path).eval()
    again.bind(features)
    assert again.plan == encoder.plan and again.k == per_item and again.ids.equals(encoder.ids)
    assert torch.equal(again().vectors, encoder().vectors) and torch.equal(again().bias, encoder().bias)
    assert torch.equal(again.inputs(again().vectors), encoder.inputs(encoder().vectors))
    assert json.loads((tmp_path / "items.json").read_text())["per_item"] == per_item


def test_ids_may_be_texts(tmp_path: Path) -> None:
    features = replace(make_features(range(3)), ids=pa.array(["a", "b", "c"]))
    encoder = made(features)
    encoder.save_pretrained(tmp_path)
    again = ItemEncoder.from_pretrained(tmp_path)
    again.bind(replace(make_features([2, 5]), ids=pa.array(["c", "d"])))
    torch.testing.assert_close(again().vectors[0], encoder().vectors[2])


def refused(do: Callable[[], object], *words: str) -> None:
    """One line with all these words."""
    with pytest.raises(UserError) as caught:
        do()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_features_that_the_encoder_was_not_trained_with_are_refused() -> None:
    features = make_features(range(5))
    encoder = made(features)
    before = encoder().vectors
    rest = [p for p in PARTS if p != "image"]
    refused(lambda: encoder.bind(only(features, *rest)), "'image' is not there", "trained with 3 dimensions")
    wide = replace(features, vectors={**features.vectors, "image": np.zeros((5, 4), np.float32)})
    refused(lambda: encoder.bind(wide), "'image' has 4 dimensions", "trained with 3 dimensions")
    other = replace(features, revisions={"text": "r2"})
    refused(lambda: encoder.bind(other), "encoder revision r2", "trained with r1", "jobs/embed.py")
    refused(lambda: encoder.bind(replace(features, revisions={})), "encoder revision none", "trained with r1")
    rest = [p for p in PARTS if p != "year"]
    refused(lambda: encoder.bind(only(features, *rest)), "no numbers 'year'", "items.numbers")
    assert torch.equal(encoder().vectors, before), "what was refused is bound in part"


def test_a_revision_counts_only_with_a_text_part() -> None:
    features = only(make_features(range(5)), "image")
    encoder = made(features)
    encoder.bind(replace(features, revisions={"text": "r2"}))
    assert_naive(encoder, features)


TABLE = pa.table({
    "item_id": [1, 2, 3, 4],
    "art": pa.array([[1.0, 2.0], None, [3.0, float("nan")], [4.0, None]], pa.list_(pa.float64())),
    "short": pa.array([[1.0], [1.0, 2.0], None, []], pa.list_(pa.float32())),
    "none": pa.array([[], [], None, []], pa.list_(pa.float32())),
    "whole": pa.array([[1, 2]] * 4, pa.list_(pa.int64())),
    "genres": [" drama |war", "", None, "a,b"],
    "tags": pa.array([["x ", None], [], None, ["y|z"]], pa.list_(pa.string())),
    "nested": pa.array([[["x"]]] * 4),
    "pair": pa.array([{"a": 1}] * 4),
    "pairs": pa.array([[{"a": 1}]] * 4),
    "year": [1990, None, 2000, 0],
    "price": [0.5, float("nan"), float("inf"), 1e300],
    "when": pa.array([0, 1, 2, 3], pa.timestamp("s")),
})  # fmt: skip


def read(table: pa.Table = TABLE, parts: dict[str, np.ndarray] | None = None, **settings: object) -> ItemFeatures:
    parts = parts or {}
    present = {name: np.ones(len(found), bool) for name, found in parts.items()}
    return read_features(table["item_id"].combine_chunks(), table, Items(**settings), parts, present, {"text": "r1"})


@pytest.mark.parametrize("chunked", [False, True])
def test_features_are_read_by_column_and_type(chunked: bool) -> None:
    table = pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1, 2), TABLE.slice(3)]) if chunked else TABLE
    text = np.ones((4, 3), np.float32)
    found = read(
        table, {"text": text}, vectors=("art",), categories=("genres", "tags", "year"), numbers=("year", "price")
    )
    assert found.ids.to_pylist() == [1, 2, 3, 4] and found.revisions == {"text": "r1"}
    assert list(found.vectors) == ["text", "art"]
    assert found.vectors["text"] is text and found.present["text"].all()
    assert found.vectors["art"].dtype == np.float32
    assert found.vectors["art"].tolist() == [[1, 2], [0, 0], [0, 0], [0, 0]]
    assert found.present["art"].tolist() == [True, False, False, False]
    words = {n: [[w for w in one or [] if w] for one in c.to_pylist()] for n, c in found.categories.items()}
    assert words == {
        "genres": [["drama", "war"], [], [], ["a,b"]],
        "tags": [["x"], [], [], ["y|z"]],
        "year": [["1990"], [], ["2000"], ["0"]],
    }
    assert all(c.type == pa.list_(pa.string()) for c in found.categories.values())
    nan = np.nan
    np.testing.assert_array_equal(found.numbers["year"], np.asarray([1990, nan, 2000, 0], np.float32))
    np.testing.assert_array_equal(found.numbers["price"], np.asarray([0.5, nan, nan, nan], np.float32))
    assert found.numbers["price"].dtype == np.float32


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32(), 2), pa.large_list(pa.float64()), pa.list_(pa.float16())], ids=str
)
def test_vectors_may_be_lists_of_any_kind_of_floats(kind: pa.DataType) -> None:
    half = np.float16 if kind == pa.list_(pa.float16()) else float
    column = pa.array([[half(1), half(2)], None, [half(3), half(4)], None], kind)
    found = read(TABLE.append_column("v", column), vectors=("v",))
    assert found.vectors["v"].tolist() == [[1, 2], [0, 0], [3, 4], [0, 0]]
    assert found.present["v"].tolist() == [True, False, True, False]


def test_the_separator_is_a_setting() -> None:
    assert read(categories=("genres",), separator=",").categories["genres"].to_pylist()[3] == ["a", "b"]
    assert read(categories=("genres",), separator="").categories["genres"].to_pylist()[0] == ["drama |war"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"vectors": ("artt",)}, ["no column 'artt'", "items.*", "item_id, art,"]),
        ({"categories": ("artt",)}, ["no column 'artt'"]),
        ({"numbers": ("artt",)}, ["no column 'artt'"]),
        ({"vectors": ("genres",)}, ["column 'genres' is string", "items.vectors takes lists of floats"]),
        ({"vectors": ("whole",)}, ["column 'whole' is list", "items.vectors takes lists of floats"]),
        ({"vectors": ("short",)}, ["vectors in column 'short' differ in length", "[0, 1, 2]"]),
        ({"vectors": ("none",)}, ["vectors in column 'none'", "empty"]),
        ({"categories": ("nested",)}, ["column 'nested' is list", "items.categories takes texts or lists of texts"]),
        ({"categories": ("pair",)}, ["column 'pair' is struct", "items.categories takes texts or lists of texts"]),
        ({"categories": ("pairs",)}, ["column 'pairs' is list", "items.categories takes texts or lists of texts"]),
        ({"numbers": ("genres",)}, ["column 'genres' is string", "items.numbers takes numbers"]),
        ({"numbers": ("when",)}, ["column 'when' is timestamp", "items.numbers takes numbers"]),
        ({"numbers": ("art",)}, ["column 'art' is list", "items.numbers takes numbers"]),
    ],
    ids=str,
)
def test_a_column_that_is_not_there_or_of_another_type_is_named(settings: dict, words: list[str]) -> None:
    refused(lambda: read(**settings), *words)


def test_a_column_called_as_a_computed_part_is_refused() -> None:
    table = TABLE.rename_columns(["text" if n == "art" else n for n in TABLE.column_names])
    refused(
        lambda: read(table, {"text": np.ones((4, 3), np.float32)}, vectors=("text",)), "'text'", "rename the column"
    )


def test_the_columns_that_settings_name_come_once_each() -> None:
    assert columns_of(Items(vectors=("a",), categories=("b", "c"), numbers=("c", "a"))) == ["a", "b", "c"]


def test_a_graph_says_less_than_a_text_at_the_start() -> None:
    """Items of the same edges share a vector of the graph, which may not hide what tells them apart."""
    features = only(make_features(range(40)), "text")
    there, text = features.present["text"], features.vectors["text"]
    vectors, present = ({"text": one, "graph": one[::-1].copy()} for one in (text, there))
    features = replace(features, vectors=vectors, present=present)
    both = fresh(features, id=False)
    text_alone, graph_alone = (fresh(only(features, part), id=False) for part in ("text", "graph"))
    for alone in (text_alone, graph_alone):
        carry_over(both, alone)
    share = {
        name: torch.nn.functional.cosine_similarity(both.eval()().vectors[:, 0], alone.eval()().vectors[:, 0])
        for name, alone in (("text", text_alone), ("graph", graph_alone))
    }
    everywhere = torch.from_numpy(there & there[::-1])
    assert share["text"][everywhere].mean() > 0.9 > 0.5 > share["graph"][everywhere].mean()


@pytest.mark.parametrize("per_item", [1, 2])
def test_what_is_learned_of_each_is_foretold_for_new_items(per_item: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_encoder, "ROWS_AT_ONCE", 17)
    monkeypatch.setattr(item_encoder, "FORETOLD_FROM", 200)
    monkeypatch.setattr(item_encoder, "FORETOLD_PENALTY", 1e-4)
    features, trained = only(make_features(range(400)), "text", "year"), np.arange(400) % 4 != 3
    encoder = made(features, trained, per_item=per_item)
    width = per_item * HIDDEN
    with torch.no_grad():
        for tensor in (encoder.own, encoder.foretold, encoder.foretold_offset):
            tensor.zero_()
        others = encoder().vectors.flatten(1)
        follows = others @ torch.randn(width, width) / width**0.5 + torch.randn(width)
        encoder.own.copy_(follows[trained])
    encoder.foretell()
    found = encoder().vectors.detach().flatten(1)
    assert torch.equal(found[trained], (others + follows)[trained])
    wanted = (others + follows)[~trained]
    assert float((found[~trained] - wanted).norm()) < 0.02 * float((wanted - wanted.mean(0)).norm())
    encoder.train()
    assert torch.equal(encoder().vectors.flatten(1)[~trained], others[~trained]), "training is to do without"
