from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_models import assert_scores, bind_items, make_ranker

from llmrec.config import Train
from llmrec.errors import UserError
from llmrec.ranker.losses import catalogue_softmax
from llmrec.ranker.model import Ranker, score_requests
from llmrec.ranker.packing import Request, pack
from llmrec.ranker.prompts import catalogue_training_request, training_request
from llmrec.ranker.ragged import Ragged
from llmrec.ranker.tuning import merge_adapters, prepare_tuning, trainable

Tiny = Callable[[str], str]
PREFIX = np.asarray([0, 70], np.int32)
REQUEST = Request.to_score(np.asarray([0, 40, 41], np.int32), Ragged.of([[65, 66], [67], [68, 69]]))


def learning(ranker: Ranker) -> set[str]:
    return {name for name, p in ranker.named_parameters() if p.requires_grad}


def moved_by_a_step(ranker: Ranker) -> set[str]:
    before = {name: p.detach().clone() for name, p in ranker.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in ranker.parameters() if p.requires_grad], lr=0.1)
    ranker(pack([REQUEST])).items.pow(2).sum().backward()
    optimizer.step()
    return {name for name, p in ranker.named_parameters() if not torch.equal(p, before[name])}


def is_layer(name: str, index: int) -> bool:
    return name.startswith(f"backbone.layers.{index}.")


def test_full_moves_everything_but_the_token_embeddings(tiny: Tiny) -> None:
    ranker = make_ranker(tiny("llama"), "text", "linear")
    prepare_tuning(ranker, Train(tune="full"))
    everything = {name for name, _ in ranker.named_parameters()}
    assert learning(ranker) == everything - {"backbone.embed_tokens.weight"}
    assert moved_by_a_step(ranker) == learning(ranker)
    prepare_tuning(ranker, Train(tune="full", train_embeddings=True))
    assert learning(ranker) == everything


def test_top_n_moves_the_last_layers_the_last_norm_and_the_head(tiny: Tiny) -> None:
    ranker = make_ranker(tiny("llama"), "text", "linear")
    prepare_tuning(ranker, Train(tune="top_n", top_n=1))
    wanted = {n for n, _ in ranker.named_parameters() if is_layer(n, 1)} | {"backbone.norm.weight", "head.weight"}
    assert learning(ranker) == wanted
    assert moved_by_a_step(ranker) == wanted
    assert set(trainable(ranker)) == wanted


def test_top_n_cannot_exceed_the_layers(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"train\.top_n = 3: the backbone has only 2 layers"):
        prepare_tuning(make_ranker(tiny("llama"), "text", "linear"), Train(tune="top_n", top_n=3))


@pytest.mark.parametrize(
    ("head", "of_head"),
    [
        ("retrieve", {"head.weight", "head.log_scale"}),
        ("rank", {"head.retrieve.weight", "head.retrieve.log_scale", "head.branch.weight"}),
    ],
)
def test_head_moves_the_head_and_the_items_only(tiny: Tiny, head: str, of_head: set[str]) -> None:
    ranker = make_ranker(tiny("llama"), "token", head)
    bind_items(ranker)
    prepare_tuning(ranker, Train(tune="head"))
    of_items = {f"items.{name}" for name, _ in ranker.items.named_parameters()}
    assert {
        "items.own",
        "items.bias",
        "items.frozen_parts.text.gate",
        "items.numbers.gate",
        "items.norm.weight",
    } < of_items
    assert learning(ranker) == of_head | of_items
    assert set(trainable(ranker)) == learning(ranker)


@pytest.mark.parametrize("head", ["retrieve", "rank"])
@pytest.mark.parametrize("tune", ["full", "top_n", "lora", "head"])
def test_whatever_learns_of_items_is_moved_by_a_step(tiny: Tiny, tune: str, head: str) -> None:
    ranker = make_ranker(tiny("llama"), "token", head, per_item=2)
    bound, _ = bind_items(ranker)
    prepare_tuning(ranker, Train(tune=tune, top_n=1, lora_rank=4, dropout=0.0))
    before = {name: p.detach().clone() for name, p in ranker.named_parameters()}
    history, decisions = np.asarray([2, 5, 1, 6]), np.asarray([0, 2, 3])
    request = (
        training_request(PREFIX, bound, history, decisions, np.asarray([[0, 3], [4, 5], [0, 2]]))
        if head == "rank" else catalogue_training_request(PREFIX, bound, history, decisions)
    )  # fmt: skip
    optimizer = torch.optim.AdamW([p for p in ranker.parameters() if p.requires_grad], lr=0.01, weight_decay=0.0)
    # LoRA's second factors start at zero, so that its first ones move from the second step on.
    for _ in range(2):
        scores = ranker(pack([request]))
        loss = catalogue_softmax(*scores.catalogue, torch.tensor([[2], [1], [6]]), 1.0)
        if scores.items is not None:
            loss = loss + scores.items.pow(2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert {name for name, p in ranker.named_parameters() if not torch.equal(p, before[name])} == learning(ranker)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_lora_starts_at_the_base_and_merges_to_the_same_scores(tiny: Tiny, kind: str) -> None:
    ranker = make_ranker(tiny(kind), "text", "linear")
    base = score_requests(ranker, [REQUEST], 100)[0]
    prepare_tuning(ranker, Train(tune="lora", lora_rank=4, lora_alpha=8, dropout=0.3))
    assert_scores(score_requests(ranker, [REQUEST], 100)[0], base, rtol=1e-6)
    assert learning(ranker) == {n for n, _ in ranker.named_parameters() if "lora_" in n} | {"head.weight"}
    assert sum("lora_A" in n for n in learning(ranker)) == 2 * 7
    ranker.eval()
    for _ in range(2):
        assert "head.weight" in moved_by_a_step(ranker)
    tuned = score_requests(ranker, [REQUEST], 100)[0]
    assert float((tuned - base).abs().max()) > 0.01
    merge_adapters(ranker)
    assert not any("lora" in name for name, _ in ranker.named_parameters())
    merged = score_requests(ranker, [REQUEST], 100)[0]
    assert float((merged - tuned).abs().max()) <= 1e-5 * max(1.0, float(tuned.abs().max()))


def test_a_merged_lora_ranker_can_be_saved(tiny: Tiny, tmp_path) -> None:
    ranker = make_ranker(tiny("llama"), "text", "linear")
    prepare_tuning(ranker, Train(tune="lora", lora_rank=4))
    ranker.eval()
    for _ in range(2):
        moved_by_a_step(ranker)
    merge_adapters(ranker)
    tuned = score_requests(ranker, [REQUEST], 100)[0]
    ranker.save_pretrained(tmp_path, "")
    again = score_requests(Ranker.from_pretrained(tmp_path), [REQUEST], 100)[0]
    assert torch.equal(again, tuned)


def test_merging_without_adapters_changes_nothing(tiny: Tiny) -> None:
    ranker = make_ranker(tiny("llama"), "text", "linear")
    backbone = ranker.backbone
    merge_adapters(ranker)
    assert ranker.backbone is backbone
