"""Encoders against plain transformers: one pair at a time, with the mask that the pair is to have written out here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import (
    DEVICES,
    ENCODERS,
    POSITIONS,
    assert_scores,
    device_or_skip,
    make_catalogue,
    make_ranker,
    requests,
    wordpieces,
)
from transformers import AutoModel

from llmrec.config import Model, Prompt, Train
from llmrec.errors import UserError
from llmrec.ranker import model, probe
from llmrec.ranker.attention import BACKENDS
from llmrec.ranker.examples import Recaller, sample_last
from llmrec.ranker.losses import listwise_softmax
from llmrec.ranker.model import Ranker, score_pair_by_pair, score_requests
from llmrec.ranker.packing import Batch, Request, pack
from llmrec.ranker.prompts import (
    branch_training_request,
    fitting,
    scoring_request,
    tokenise_catalogue,
    trunk_opening,
)
from llmrec.ranker.ragged import Ragged
from llmrec.ranker.tuning import merge_adapters, prepare_tuning

Tiny = Callable[[str], str]
few_examples = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
WORDS = st.integers(5, 261)
PACKINGS = ["pairs", "branches"]
REQUEST = Request.to_score(np.asarray([2, 40, 41], np.int32), Ragged.of([[65, 66], [67], [68, 69, 70]]))


def encoder(directory: str, packing: str) -> Ranker:
    """A ranker that is untouched, or that scores as one that was trained."""
    ranker = make_ranker(directory, "text", "linear").eval()
    assert ranker.card.packing == "pairs"
    ranker.card = ranker.card.model_copy(update={"packing": packing})
    return ranker


def plain_encoder(directory: str) -> Any:
    """Without its pooler, which no score reads."""
    plain = AutoModel.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()
    plain.pooler = None
    return plain


def end_state(plain: Any, trunk: int, tokens: list[int], packing: str) -> Any:
    """[hidden]: the last state of a sequence that sees all of itself; by branches, its trunk does not see the item."""
    mask = torch.zeros(1, 1, len(tokens), len(tokens), device=plain.device)
    for row in range(trunk):
        for column in range(trunk, len(tokens)):
            mask[0, 0, row, column] = -1e9
    vectors = plain.get_input_embeddings().weight[tokens]
    hidden = plain(inputs_embeds=vectors[None], attention_mask=mask if packing == "branches" else None)
    return hidden.last_hidden_state[0, -1]


def pair_by_pair(plain: Any, weight: torch.Tensor, request: Request, packing: str) -> torch.Tensor:
    trunk = request.trunk.tolist()
    states = [
        end_state(plain, len(trunk), trunk + request.branches[i].tolist(), packing)
        for i in range(len(request.branches))
    ]
    return torch.stack([s @ weight for s in states]) if states else torch.empty(0, device=weight.device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_equal_plain_transformers(tiny: Tiny, backend: str, packing: str, kind: str, device: str) -> None:
    device_or_skip(device)
    ranker, plain = encoder(tiny(kind), packing).to(device), plain_encoder(tiny(kind)).to(device)
    ranker.attend_by(backend)

    @few_examples
    @given(st.lists(requests(WORDS, midway=False), max_size=5), st.integers(1, 40))
    def check(batch: list[Request], budget: int) -> None:
        found = score_requests(ranker, batch, budget)
        with torch.no_grad():
            wanted = [pair_by_pair(plain, ranker.head.weight, r, packing).cpu() for r in batch]
        assert [len(f) for f in found] == [len(w) for w in wanted]
        assert_scores(torch.cat([torch.empty(0), *found]), torch.cat([torch.empty(0), *wanted]))

    check()


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_two_packings_differ_and_each_has_its_slow_reference(tiny: Tiny, packing: str) -> None:
    ranker = encoder(tiny("bert"), packing)
    fast = score_requests(ranker, [REQUEST], 100)[0]
    assert_scores(score_pair_by_pair(ranker, REQUEST), fast)
    other = encoder(tiny("bert"), next(p for p in PACKINGS if p != packing))
    assert float((score_requests(other, [REQUEST], 100)[0] - fast).abs().min()) > 0.01
    assert torch.equal(score_requests(ranker, [REQUEST], 100)[0], fast), "the reference left its attention behind"


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_probe_passes_and_catches_a_mask_of_the_other_kind(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, packing: str
) -> None:
    ranker = encoder(tiny("bert"), packing)
    assert probe.check_parity(probe.slow_scores(ranker, [REQUEST]), ranker, [REQUEST], 100) < 1e-5
    right = model.pack
    monkeypatch.setattr(model, "pack", lambda requests, causal: right(requests, causal=True))
    with pytest.raises(UserError, match="parity probe"):
        probe.check_parity(probe.slow_scores(ranker, [REQUEST]), ranker, [REQUEST], 100)


def test_a_batch_of_pairs_keeps_to_the_budget(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    ranker, sizes = encoder(tiny("bert"), "pairs"), []
    right = model.pack

    def noted(requests: list[Request], causal: bool) -> Batch:
        batch = right(requests, causal)
        sizes.append(len(batch.token))
        return batch

    monkeypatch.setattr(model, "pack", noted)
    score_requests(ranker, [REQUEST, REQUEST], 12)
    # Two users' pairs of 5, 4 and 6 tokens, no trunk shared.
    assert sum(sizes) == 2 * (5 + 4 + 6) and max(sizes) <= 12 and len(sizes) == 3


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("layers", [1, 2])
def test_a_saved_encoder_gives_the_same_scores_by_the_same_packing(
    tiny: Tiny, tmp_path: Path, layers: int, packing: str, kind: str
) -> None:
    ranker = make_ranker(tiny(kind), "text", "linear", layers)
    ranker.card = ranker.card.model_copy(update={"packing": packing})
    before = score_requests(ranker, [REQUEST], 100)[0]
    plain = plain_encoder(tiny(kind))
    del (plain.layers if kind == "eurobert" else plain.encoder.layer)[layers:]
    with torch.no_grad():
        assert_scores(before, pair_by_pair(plain, ranker.head.weight, REQUEST, packing))
    ranker.save_pretrained(tmp_path, "")
    again = Ranker.from_pretrained(tmp_path)
    assert again.card == ranker.card and again.card.layers == layers
    torch.testing.assert_close(score_requests(again, [REQUEST], 100)[0], before, rtol=1e-5, atol=1e-5)


def test_training_makes_branches_of_pairs(tiny: Tiny) -> None:
    ranker = make_ranker(tiny("bert"), "text", "linear")
    prepare_tuning(ranker, Train())
    assert ranker.card.packing == "branches"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ENCODERS)
def test_listwise_loss_and_gradients(tiny: Tiny, kind: str, device: str) -> None:
    device_or_skip(device)
    ranker = make_ranker(tiny(kind), "text", "linear").to(device).eval()
    catalogue = make_catalogue([[10, 11], [20], [30, 31, 32], [40], [50, 51], [60], [70, 71]])
    prefixes = [np.asarray([2, 70, 71], np.int32), np.asarray([2], np.int32)]
    histories = [np.asarray([3, 1, 4, 0, 5]), np.asarray([2])]
    negatives = [np.asarray([[2, 6, 0]]), np.asarray([[0, 2, 3]])]
    usable = torch.tensor([[True, True, True], [True, False, True]])  # the second user's item 2 is his decision
    made = [branch_training_request(p, catalogue, h, n) for p, h, n in zip(prefixes, histories, negatives, strict=True)]
    scores = ranker(pack(made, causal=False).to(device)).items.view(2, 4)
    loss = listwise_softmax(scores[:, 0], scores[:, 1:], usable.to(device))
    loss.backward()

    plain = plain_encoder(tiny(kind)).to(device)
    weight = ranker.head.weight.detach().clone().requires_grad_()
    wanted = torch.zeros((), device=device)
    for prefix, history, drawn in zip(prefixes, histories, negatives, strict=True):
        trunk = [*prefix.tolist(), *(t for row in history[:-1] for t in catalogue.event[row].tolist())]
        items = [history[-1], *(i for i in drawn[0] if i != history[-1])]
        naive = torch.stack([
            end_state(plain, len(trunk), trunk + catalogue.event[i].tolist(), "branches") @ weight for i in items
        ])  # fmt: skip
        wanted = wanted - torch.log_softmax(naive, 0)[0]
    wanted.backward()

    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
    found = {"head": ranker.head.weight} | dict(ranker.backbone.named_parameters())
    for name, parameter in {"head": weight, **dict(plain.named_parameters())}.items():
        if name.endswith(("key.bias", "layer.1.output.LayerNorm.bias")):
            continue  # shifts all keys, or all scores, alike, and a softmax takes it out
        scale = float(parameter.grad.abs().max())
        assert scale > 0, f"{name} has no gradient, so comparing it shows nothing"
        assert float((found[name].grad - parameter.grad).abs().max()) <= 1e-4 * scale, name


def test_an_example_is_one_event_after_those_before_it() -> None:
    from scipy import sparse

    history, train = np.arange(10, 20), Train(negatives=3, hard_share=0.0)
    recaller = Recaller(sparse.csr_matrix(np.zeros((30, 30), np.float32)), 0.5, 4, np.arange(30))
    answers = set()
    for seed in range(80):
        made = sample_last(history, train, 4, recaller, np.random.default_rng(seed))
        answer = int(made.history[-1])
        answers.add(answer)
        assert made.history.tolist() == list(range(max(10, answer - 4), answer + 1))
        assert made.decisions.tolist() == [len(made.history) - 1]
        assert made.negatives.shape == (1, 3) and made.answers.tolist() == [[answer, -1, -1, -1, -1]]
        assert made.earlier.tolist() == list(range(10, max(10, answer - 4)))
        assert (made.usable == ((made.negatives > answer) | (made.negatives < 10))).all()
    assert answers == set(history.tolist())


def test_a_training_request_is_what_scoring_asks_of_the_true_item_and_the_negatives() -> None:
    catalogue = make_catalogue([[10, 11], [20], [30, 31, 32]])
    made = branch_training_request(np.asarray([2], np.int32), catalogue, np.asarray([2, 0, 1]), np.asarray([[0, 2]]))
    assert made.trunk.tolist() == [2, 30, 31, 32, 10, 11]
    assert made.attach.tolist() == [5, 5, 5]
    batch = pack([made], causal=False)
    assert batch.token[batch.read].tolist() == [20, 11, 32]


def test_every_weight_that_learns_has_a_gradient(tiny: Tiny) -> None:
    for tune, rest in (("full", {"embeddings.word_embeddings"}), ("top_n", {"embeddings", "encoder.layer.0"})):
        ranker = make_ranker(tiny("bert"), "text", "linear")
        prepare_tuning(ranker, Train(tune=tune, top_n=1))
        ranker(pack([REQUEST], causal=False)).items.pow(2).sum().backward()
        learns = {name for name, p in ranker.backbone.named_parameters() if p.requires_grad}
        assert learns == {name for name, _ in ranker.backbone.named_parameters() if not name.startswith(tuple(rest))}
        assert learns == {name for name, p in ranker.backbone.named_parameters() if p.grad is not None}


def test_lora_starts_at_the_base_and_merges(tiny: Tiny) -> None:
    ranker = encoder(tiny("bert"), "branches")
    base = score_requests(ranker, [REQUEST], 100)[0]
    prepare_tuning(ranker, Train(tune="lora", lora_rank=4))
    assert_scores(score_requests(ranker, [REQUEST], 100)[0], base, rtol=1e-6)
    merge_adapters(ranker)
    assert_scores(score_requests(ranker, [REQUEST], 100)[0], base, rtol=1e-6)


def test_training_drops_nothing_in_attention(tiny: Tiny) -> None:
    ranker = make_ranker(tiny("bert"), "text", "linear").train()
    rates = {name: m.p for name, m in ranker.backbone.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert {rate for name, rate in rates.items() if name.endswith("self.dropout")} == {0.0}
    assert {rate for name, rate in rates.items() if not name.endswith("self.dropout")} == {0.1}


def test_bfloat16_is_near_float32(tiny: Tiny) -> None:
    ranker = encoder(tiny("bert"), "branches")
    (exact,) = score_requests(ranker, [REQUEST], 100)
    ranker.only_score("bfloat16")
    (found,) = score_requests(ranker, [REQUEST], 100)
    assert found.dtype == torch.float32 and not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.15 * float(exact.abs().max()))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_the_last_position_may_be_taken_and_no_more(tiny: Tiny, packing: str, kind: str) -> None:
    ranker = encoder(tiny(kind), packing)
    assert ranker.positions == POSITIONS
    catalogue = make_catalogue([[10, 11, 12], [20]])
    prefix = np.full(POSITIONS - 3 - 3, 5, np.int32)
    longest = scoring_request(prefix, catalogue, np.asarray([0]), np.asarray([1, 0, 1]))
    assert fitting(longest, ranker.positions) is longest
    with torch.no_grad():
        wanted = pair_by_pair(plain_encoder(tiny(kind)), ranker.head.weight, longest, packing)
    assert_scores(score_requests(ranker, [longest], 100)[0], wanted)
    longer = scoring_request(np.append(prefix, prefix[:1]), catalogue, np.asarray([0]), np.asarray([1, 0, 1]))
    complaint = rf"take {POSITIONS + 1} positions.* has {POSITIONS}; lower prompt\.max_history or prompt\.max_item"
    with pytest.raises(UserError, match=complaint):
        fitting(longer, ranker.positions)
    assert fitting(longer, None) is longer


def test_without_a_table_of_positions_there_is_no_limit(tiny: Tiny) -> None:
    decoder, encoder = (make_ranker(tiny(kind), "text", "linear") for kind in ("llama", "eurobert"))
    assert (decoder.positions, decoder.causal, decoder.card.packing) == (None, True, "branches")
    assert (encoder.positions, encoder.causal, encoder.card.packing) == (None, False, "pairs")


@pytest.mark.parametrize(
    ("kind", "items", "head"),
    [("bert", "text", "yes_no"), *((kind, "token", head) for kind in ENCODERS for head in ("retrieve", "rank"))],
)
def test_heads_that_need_a_decoder_are_refused(tiny: Tiny, kind: str, items: str, head: str) -> None:
    complaint = f"model.head = {head} needs a decoder.*set model.items = text and model.head = linear"
    with pytest.raises(UserError, match=complaint):
        Ranker.from_base(Model(items=items, head=head), Prompt(), tiny(kind))


def test_a_model_without_a_known_list_of_layers_is_refused(tmp_path: Path) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    DistilBertModel(DistilBertConfig(vocab_size=262, dim=16, hidden_dim=16, n_layers=1, n_heads=2)).save_pretrained(
        tmp_path
    )
    wordpieces().save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="cannot be packed: it has no list of layers"):
        Ranker.from_base(Model(items="text", head="linear"), Prompt(), str(tmp_path))


def test_a_trunk_opens_with_cls_and_an_item_may_end_with_sep() -> None:
    prompt = Prompt(before_history="Seen", after_item=" [SEP]")
    words = wordpieces()
    prefix = trunk_opening(prompt, words)
    catalogue = tokenise_catalogue(pa.table({"item_id": [1], "title": ["Up"]}), "item_id", prompt, words)
    made = scoring_request(prefix, catalogue, np.asarray([0, 0]), np.asarray([0]))
    assert words.convert_ids_to_tokens(made.trunk.tolist()) == [
        "[CLS]", "s", "##e", "##e", "##n", "u", "##p", "[SEP]", "u", "##p", "[SEP]",
    ]  # fmt: skip
    batch = pack([made], causal=False)
    assert batch.token[batch.read].tolist() == [words.sep_token_id]


def test_an_item_whose_text_has_no_token_is_named() -> None:
    items = pa.table({"item_id": [1, 2], "title": ["Up", "\u200b"]})
    with pytest.raises(UserError, match=r"item 2: its text '\\u200b' has no token"):
        tokenise_catalogue(items, "item_id", Prompt(), wordpieces())
