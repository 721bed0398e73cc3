"""Packed scores against plain transformers, one user-item pair at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import (
    DEVICES,
    KINDS,
    Plain,
    assert_scores,
    device_or_skip,
    make_ranker,
    naive_item_vectors,
    random_catalogue,
    requests,
    shake_items,
)

from llmrec.errors import UserError
from llmrec.ranker.attention import BACKENDS
from llmrec.ranker.model import Ranker, score_pair_by_pair, score_requests
from llmrec.ranker.packing import Request, pack
from llmrec.ranker.ragged import Ragged

Tiny = Callable[[str], str]
few_examples = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
WORDS = st.integers(0, 261)
N_ITEMS = 7
ITEM_TOKENS = st.integers(262, 262 + N_ITEMS - 1)

_made: dict[Any, Any] = {}


def once(key: Any, make: Callable[[], Any]) -> Any:
    if key not in _made:
        _made[key] = make()
    return _made[key]


def text_ranker(directory: str, head: str, device: str, backend: str = "cascade") -> Ranker:
    def make() -> Ranker:
        ranker = make_ranker(directory, "text", head).to(device).eval()
        ranker.attend_by(backend)
        return ranker

    return once((directory, head, device, backend), make)


def token_ranker(directory: str, head: str, device: str) -> tuple[Ranker, Plain]:
    def make() -> tuple[Ranker, Plain]:
        ranker = make_ranker(directory, "token", head)
        plain = Plain.load(directory)
        catalogue = random_catalogue(N_ITEMS, 262)
        ranker.bind(catalogue)
        shake_items(ranker)
        words = plain.model.get_input_embeddings().weight.detach()
        vectors = naive_item_vectors(catalogue, words, ranker.items.learned.detach()).to(device)
        return ranker.to(device).eval(), Plain(plain.model.to(device), plain.vocabulary, vectors)

    return once((directory, "token", head, device), make)


def plain_model(directory: str, causal: bool, device: str) -> Plain:
    def make() -> Plain:
        found = Plain.load(directory, causal)
        found.model.to(device)
        return found

    return once((directory, causal, device), make)


def assert_all(found: list[torch.Tensor], wanted: list[list[torch.Tensor]]) -> None:
    assert [len(f) for f in found] == [len(w) for w in wanted]
    flat = [s for w in wanted for s in w]
    assert_scores(
        torch.cat(found) if found else torch.empty(0), torch.stack(flat).float().cpu() if flat else torch.empty(0)
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_head_over_text_items(tiny: Tiny, backend: str, kind: str, device: str) -> None:
    device_or_skip(device)
    ranker, plain = text_ranker(tiny(kind), "linear", device, backend), plain_model(tiny(kind), False, device)

    @few_examples
    @given(st.lists(requests(WORDS), max_size=5), st.integers(1, 40))
    def check(batch: list[Request], budget: int) -> None:
        with torch.no_grad():
            wanted = [[s @ ranker.head.weight for s in plain.branch_ends(r)] for r in batch]
        assert_all(score_requests(ranker, batch, budget), wanted)

    check()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_ranker_made_ready_to_score_gives_the_same_scores(tiny: Tiny, kind: str, device: str) -> None:
    device_or_skip(device)

    def ready() -> Ranker:
        ranker = make_ranker(tiny(kind), "text", "linear").to(device)
        ranker.only_score("float32")
        return ranker

    ranker, plain = once((tiny(kind), "ready", device), ready), plain_model(tiny(kind), False, device)

    @few_examples
    @given(st.lists(requests(WORDS), max_size=5), st.integers(1, 40))
    def check(batch: list[Request], budget: int) -> None:
        with torch.no_grad():
            wanted = [[s @ ranker.head.weight for s in plain.branch_ends(r)] for r in batch]
        assert_all(score_requests(ranker, batch, budget), wanted)

    check()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_yes_no_head_is_the_untouched_models_yes_minus_no(tiny: Tiny, kind: str, device: str) -> None:
    device_or_skip(device)
    ranker, plain = text_ranker(tiny(kind), "yes_no", device), plain_model(tiny(kind), True, device)
    yes, no = (ranker.tokenizer.convert_tokens_to_ids(t) for t in ("Ġyes", "Ġno"))

    @few_examples
    @given(st.lists(requests(WORDS), max_size=4), st.integers(1, 40))
    def check(batch: list[Request], budget: int) -> None:
        with torch.no_grad():
            wanted = [[logits[yes] - logits[no] for logits in plain.branch_ends(r)] for r in batch]
        assert_all(score_requests(ranker, batch, budget), wanted)

    check()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_linear_head_over_item_tokens(tiny: Tiny, kind: str, device: str) -> None:
    device_or_skip(device)
    ranker, plain = token_ranker(tiny(kind), "linear", device)

    @few_examples
    @given(st.lists(requests(WORDS | ITEM_TOKENS), max_size=4), st.integers(1, 40))
    def check(batch: list[Request], budget: int) -> None:
        with torch.no_grad():
            wanted = [[s @ ranker.head.weight for s in plain.branch_ends(r)] for r in batch]
        assert_all(score_requests(ranker, batch, budget), wanted)

    check()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_dot_head_is_the_users_state_against_the_items_vector(tiny: Tiny, kind: str, device: str) -> None:
    device_or_skip(device)
    ranker, plain = token_ranker(tiny(kind), "dot", device)
    head, bias = ranker.head, ranker.items.bias

    def naive(request: Request) -> list[torch.Tensor]:
        user = head.weight @ plain.states(request.trunk)[-1]
        found = []
        for (token,) in (request.branches[i].tolist() for i in range(len(request.branches))):
            item = plain.item_vectors[token - 262]
            cosine = (user @ item) / (user.norm() * item.norm())
            found.append(head.log_scale.exp() * cosine + bias[token - 262])
        return found

    @few_examples
    @given(
        st.lists(
            st.tuples(st.lists(WORDS | ITEM_TOKENS, min_size=1, max_size=12), st.lists(ITEM_TOKENS, max_size=6)),
            max_size=5,
        ),
        st.integers(1, 40),
    )
    def check(drawn: list[tuple[list[int], list[int]]], budget: int) -> None:
        batch = [Request.to_score(np.asarray(t, np.int32), Ragged.of([[b] for b in bs])) for t, bs in drawn]
        with torch.no_grad():
            wanted = [naive(r) for r in batch]
        assert_all(score_requests(ranker, batch, budget), wanted)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_trunk_reads_are_the_plain_causal_states(tiny: Tiny, kind: str) -> None:
    ranker, plain = text_ranker(tiny(kind), "linear", "cpu"), plain_model(tiny(kind), False, "cpu")

    @few_examples
    @given(st.lists(st.tuples(requests(WORDS), st.randoms(use_true_random=False)), min_size=1, max_size=4))
    def check(drawn: list[tuple[Request, Any]]) -> None:
        batch = []
        for request, random in drawn:
            places = [p for p in range(len(request.trunk)) if random.random() < 0.5]
            read = np.asarray(places, np.int32)
            batch.append(Request(request.trunk, request.branches, request.attach, read))
        with torch.no_grad():
            found = ranker.states(pack(batch))
            wanted = [s for r in batch for s in [*plain.states(r.trunk)[r.trunk_read], *plain.branch_ends(r)]]
        assert_scores(found, torch.stack(wanted) if wanted else torch.empty(0, found.shape[1]))

    check()


@pytest.mark.parametrize("head", ["linear", "yes_no"])
def test_company_and_order_do_not_change_a_score(tiny: Tiny, head: str) -> None:
    ranker = text_ranker(tiny("llama"), head, "cpu")

    @few_examples
    @given(st.lists(requests(WORDS), min_size=1, max_size=5), st.randoms(use_true_random=False))
    def check(batch: list[Request], random: Any) -> None:
        alone = [score_requests(ranker, [r], 10_000)[0] for r in batch]
        order = list(range(len(batch)))
        random.shuffle(order)
        together = score_requests(ranker, [batch[i] for i in order], 10_000)
        for place, i in enumerate(order):
            assert_scores(together[place], alone[i], rtol=1e-5)

    check()


@pytest.mark.parametrize(("items", "head"), [("text", "linear"), ("text", "yes_no"), ("token", "dot")])
def test_the_slow_reference_equals_packed_scores_and_puts_the_attention_back(tiny: Tiny, items: str, head: str) -> None:
    directory = tiny("qwen2")
    ranker = text_ranker(directory, head, "cpu") if items == "text" else token_ranker(directory, head, "cpu")[0]
    branches = [[65, 66], [67], [68, 69, 70]] if items == "text" else [[263], [265]]
    request = Request.to_score(np.asarray([0, 40, 41, 42], np.int32), Ragged.of(branches))
    before = score_requests(ranker, [request], 100)[0]
    assert_scores(score_pair_by_pair(ranker, request), before)
    assert torch.equal(score_requests(ranker, [request], 100)[0], before)


def test_nothing_to_score(tiny: Tiny) -> None:
    ranker = text_ranker(tiny("llama"), "linear", "cpu")
    empty = Request.to_score(np.asarray([1, 2], np.int32), Ragged.of([]))
    assert score_requests(ranker, [], 100) == []
    assert [s.tolist() for s in score_requests(ranker, [empty, empty], 100)] == [[], []]
    assert score_pair_by_pair(ranker, empty).tolist() == []


def test_a_sliding_window_model_is_refused(tiny: Tiny, tmp_path: Any) -> None:
    from llmrec.config import Model, Prompt

    model = Plain.load(tiny("qwen2"), causal=True).model
    model.config.use_sliding_window, model.config.sliding_window = True, 4
    model.save_pretrained(tmp_path)
    text_ranker(tiny("qwen2"), "linear", "cpu").tokenizer.save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="sliding-window"):
        Ranker.from_base(Model(items="text", head="linear"), Prompt(), str(tmp_path))
