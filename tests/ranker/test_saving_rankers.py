from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import (
    KINDS,
    Plain,
    assert_scores,
    make_catalogue,
    make_features,
    make_ranker,
    naive_item_vectors,
    only,
    shake_items,
)

from llmrec.config import Model, Prompt
from llmrec.errors import UserError
from llmrec.ranker.card import model_version
from llmrec.ranker.model import Ranker, score_requests
from llmrec.ranker.packing import Request
from llmrec.ranker.prompts import Catalogue, scoring_request
from llmrec.ranker.ragged import Ragged

Tiny = Callable[[str], str]
TEXTS = [[40, 41], [42], [43, 44, 45], [40, 46], [50, 51]]
PREFIX = np.asarray([0, 70], np.int32)


def score(ranker: Ranker, catalogue: Catalogue) -> torch.Tensor:
    features = None if ranker.card.items == "text" else make_features(catalogue.ids.to_pylist())
    bound = ranker.bind(catalogue, features)
    n = len(catalogue.ids)
    made = [scoring_request(PREFIX, bound, np.asarray([1, 0, 2]), np.arange(n))]
    return score_requests(ranker, made, 1000)[0]


def loaded(ranker: Ranker, directory: Path) -> Ranker:
    ranker.save_pretrained(directory, "a model card")
    return Ranker.from_pretrained(directory)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("items", "head", "per_item"),
    [
        ("text", "linear", 1),
        ("text", "yes_no", 1),
        ("token", "retrieve", 1),
        ("token", "retrieve", 2),
        ("token", "rank", 1),
        ("token", "rank", 2),
    ],
)
def test_a_saved_ranker_gives_the_same_scores(
    tiny: Tiny, tmp_path: Path, kind: str, items: str, head: str, per_item: int
) -> None:
    ranker = make_ranker(tiny(kind), items, head, per_item=per_item)
    catalogue = make_catalogue(TEXTS)
    if items == "token":
        ranker.bind(catalogue, make_features(range(len(TEXTS))))
        shake_items(ranker)
    before = score(ranker, catalogue)
    assert len(set(before.tolist())) == len(TEXTS)
    again = loaded(ranker, tmp_path / "saved")
    # A product of one row is rounded by where its operands lie in memory.
    torch.testing.assert_close(score(again, catalogue), before, rtol=1e-5, atol=1e-5)
    assert again.card == ranker.card
    assert (tmp_path / "saved" / "README.md").read_text() == "a model card"
    torch.testing.assert_close(score(loaded(again, tmp_path / "twice"), catalogue), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", ["linear", "yes_no"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_ranker_of_fewer_layers_is_the_model_cut_off_there(tiny: Tiny, tmp_path: Path, kind: str, head: str) -> None:
    ranker = make_ranker(tiny(kind), "text", head, layers=1)
    catalogue = make_catalogue(TEXTS)
    before = score(ranker, catalogue)
    plain = Plain.load(tiny(kind))
    plain.model.layers = plain.model.layers[:1]
    trunk = [*PREFIX.tolist(), *(t for i in (1, 0, 2) for t in TEXTS[i])]
    with torch.no_grad():
        wanted = torch.stack([plain.states(np.asarray(trunk + t))[-1] @ ranker.head.weight for t in TEXTS])
    assert_scores(before, wanted)
    again = loaded(ranker, tmp_path)
    assert again.card.layers == 1
    # A product of one row is rounded by where its operands lie in memory.
    torch.testing.assert_close(score(again, catalogue), before, rtol=1e-5, atol=1e-5)


def test_what_was_learned_of_an_item_is_found_by_its_id(tiny: Tiny, tmp_path: Path) -> None:
    ranker = make_ranker(tiny("llama"), "token", "retrieve")
    ids = [10, 20, 30, 40, 50]
    ranker.bind(make_catalogue(TEXTS, ids), make_features(ids))
    shake_items(ranker)
    vectors, bias = (t.detach() for t in ranker.items())
    again = loaded(ranker, tmp_path)
    again.bind(make_catalogue([TEXTS[0], [60, 61], TEXTS[4]], [10, 35, 50]), make_features([10, 35, 50]))
    found, found_bias = (t.detach() for t in again.items())
    torch.testing.assert_close(found[[0, 2]], vectors[[0, 4]], rtol=1e-5, atol=1e-6)
    assert found_bias.tolist() == pytest.approx([float(bias[0]), float(bias.mean()), float(bias[4])])


@pytest.mark.parametrize("head", ["retrieve", "rank"])
def test_an_item_unknown_to_training_lives_by_its_other_parts(tiny: Tiny, tmp_path: Path, head: str) -> None:
    """Also one that training had in its catalogue and saw no event of."""
    ranker = make_ranker(tiny("llama"), "token", head)
    catalogue = make_catalogue(TEXTS)
    ranker.bind(catalogue, make_features(range(5)), np.asarray([True, True, False, True, True]))
    shake_items(ranker)
    before = score(ranker, catalogue)
    again = loaded(ranker, tmp_path)
    assert again.items.ids.to_pylist() == [0, 1, 3, 4]
    scores = score(again, make_catalogue([*TEXTS, [60, 61], TEXTS[0]]))
    assert_scores(scores[: len(TEXTS)], before, rtol=1e-5)
    plain = Plain.load(tiny("llama"))
    with torch.no_grad():
        items = naive_item_vectors(again.items, make_features(range(7)))
        plain = Plain(plain.model, plain.vocabulary, items)
        trunk = [*PREFIX.tolist(), 262 + 1, 262, 262 + 2]
        retrieve = again.head.retrieve if head == "rank" else again.head
        for row in (2, 5, 6):
            wanted = items.retrieve(retrieve, plain.states(np.asarray(trunk))[-1], row)
            if head == "rank":
                wanted = wanted + plain.states(np.asarray([*trunk, 262 + row]))[-1] @ again.head.branch.weight
            torch.testing.assert_close(scores[row], wanted, rtol=1e-4, atol=1e-4)


def test_a_ranker_is_not_bound_to_features_of_another_kind(tiny: Tiny, tmp_path: Path) -> None:
    ranker = make_ranker(tiny("llama"), "token", "rank")
    catalogue = make_catalogue(TEXTS)
    ranker.bind(catalogue, make_features(range(5)))
    again = loaded(ranker, tmp_path)
    with pytest.raises(UserError, match="items: the part 'image' is not there"):
        again.bind(catalogue, only(make_features(range(5)), "text", "genres", "year", "price"))


def test_binding_again_forgets_the_frozen_vectors(tiny: Tiny) -> None:
    ranker = make_ranker(tiny("llama"), "token", "retrieve")
    ranker.bind(make_catalogue(TEXTS), make_features(range(5)))
    ranker.freeze_items()
    assert ranker.vectors() is ranker.frozen and len(ranker.frozen.bias) == 5
    ranker.bind(make_catalogue(TEXTS[:2]), make_features(range(2)))
    assert ranker.frozen is None and len(ranker.vectors().bias) == 2


def test_a_directory_that_is_no_ranker(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no ranker\.json") as caught:
        Ranker.from_pretrained(tiny("llama"))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"no ranker\.json"):
        Ranker.from_pretrained(tmp_path / "missing")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda card: "{not json", id="no json"),
        pytest.param(lambda card: json.dumps([card]), id="no mapping"),
        pytest.param(lambda card: json.dumps({k: v for k, v in card.items() if k != "head"}), id="key missing"),
        pytest.param(lambda card: json.dumps(card | {"head": "cubic"}), id="unknown head"),
        pytest.param(lambda card: json.dumps(card | {"head": "dot", "format": 1}), id="earlier format"),
        pytest.param(lambda card: json.dumps(card | {"colour": "red"}), id="unknown key"),
        pytest.param(lambda card: json.dumps(card | {"format": 3}), id="later format"),
    ],
)
def test_a_malformed_ranker_json_is_one_line(tiny: Tiny, tmp_path: Path, change: Callable[[dict], str]) -> None:
    make_ranker(tiny("llama"), "text", "linear").save_pretrained(tmp_path, "")
    file = tmp_path / "ranker.json"
    file.write_text(change(json.loads(file.read_text())))
    with pytest.raises(UserError, match=r"ranker\.json") as caught:
        Ranker.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (Model(items="text", head="linear", layers=3), "model.layers = 3: this backbone has only 2"),
        (Model(items="text", head="yes_no", labels=(" yes", " maybe")), "model.labels: ' maybe' is 6 tokens"),
    ],
)
def test_a_base_model_that_does_not_fit(tiny: Tiny, model: Model, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Ranker.from_base(model, Prompt(), tiny("llama"))


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        Ranker.from_base(Model(items="text", head="linear"), Prompt(), str(tmp_path))
    assert "\n" not in str(caught.value)


def test_an_untrained_linear_head_prefers_nothing(tiny: Tiny) -> None:
    ranker = Ranker.from_base(Model(items="text", head="linear"), Prompt(), tiny("llama"))
    request = Request.to_score(PREFIX, Ragged.of([[1], [2, 3]]))
    assert score_requests(ranker, [request], 100)[0].tolist() == [0, 0]


def test_model_version_follows_content_and_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "sub" / "b").write_bytes(b"two")
    first = model_version(tmp_path)
    assert len(first) == 12 and first == model_version(tmp_path)
    (tmp_path / "a").write_bytes(b"uno")
    second = model_version(tmp_path)
    (tmp_path / "a").rename(tmp_path / "c")
    assert len({first, second, model_version(tmp_path)}) == 3


def test_a_ranker_saved_with_scalars_loads(tiny: Tiny, tmp_path: Path) -> None:
    """As they were saved before FSDP2 had to shard them."""
    ranker = make_ranker(tiny("llama"), "token", "retrieve")
    ranker.bind(make_catalogue(TEXTS), make_features(range(len(TEXTS))))
    ranker.save_pretrained(tmp_path, "a model card")
    scalars = 0
    for file in tmp_path.glob("*.safetensors"):
        weights = load_file(file)
        single = {name: w.reshape(()) for name, w in weights.items() if tuple(w.shape) == (1,)}
        scalars += len(single)
        save_file(weights | single, file, metadata={"format": "pt"})
    assert scalars >= 3
    again = Ranker.from_pretrained(tmp_path)
    found = again.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in ranker.state_dict().items() if name in found)
    assert not [name for name, weight in again.named_parameters() if weight.dim() == 0]
