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
    bind_items,
    device_or_skip,
    make_ranker,
    naive_item_vectors,
    requests,
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
ROWS = st.integers(0, N_ITEMS - 1)

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


def token_ranker(directory: str, head: str, per_item: int, device: str) -> tuple[Ranker, Plain]:
    def make() -> tuple[Ranker, Plain]:
        ranker = make_ranker(directory, "token", head, per_item=per_item)
        _, features = bind_items(ranker, N_ITEMS, np.arange(N_ITEMS) != 4)
        with torch.no_grad():
            items = naive_item_vectors(ranker.items, features).to(device)
        plain = Plain.load(directory)
        ranker.to(device).eval()
        return ranker, Plain(plain.model.to(device), plain.vocabulary, items)

    return once((directory, "token", head, per_item, device), make)


def tokens_of(row: int, per_item: int) -> list[int]:
    return [262 + row * per_item + j for j in range(per_item)]


@st.composite
def item_requests(draw: st.DrawFn, per_item: int, midway: bool) -> Request:
    """A trunk of words and whole items, and items as branches, attached anywhere (or all at the trunk's end)."""
    pieces = draw(
        st.lists(WORDS.map(lambda t: [t]) | ROWS.map(lambda r: tokens_of(r, per_item)), min_size=1, max_size=9)
    )
    trunk = [t for piece in pieces for t in piece]
    rows = draw(st.lists(ROWS, max_size=6))
    attach = [draw(st.integers(0 if midway else len(trunk) - 1, len(trunk) - 1)) for _ in rows]
    branches = Ragged.of([tokens_of(row, per_item) for row in rows])
    return Request(np.asarray(trunk, np.int32), branches, np.asarray(attach, np.int32), np.empty(0, np.int32))


def rows_of(request: Request, per_item: int) -> list[int]:
    return [(int(request.branches[i][0]) - 262) // per_item for i in range(len(request.branches))]


def naive_rank(head: Any, plain: Plain, request: Request, per_item: int) -> list[torch.Tensor]:
    """Each item against the state before it, and the state at its own end."""
    users = [plain.states(request.trunk[: at + 1])[-1] for at in request.attach.tolist()]
    return [
        plain.items.retrieve(head.retrieve, user, row) + end @ head.branch.weight
        for user, row, end in zip(users, rows_of(request, per_item), plain.branch_ends(request), strict=True)
    ]


def naive_retrieve(head: Any, plain: Plain, request: Request, per_item: int) -> list[torch.Tensor]:
    user = plain.states(request.trunk)[-1]
    return [plain.items.retrieve(head, user, row) for row in rows_of(request, per_item)]


NAIVE = {"rank": naive_rank, "retrieve": naive_retrieve}


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
@pytest.mark.parametrize("per_item", [1, 2])
@pytest.mark.parametrize("head", ["retrieve", "rank"])
def test_items_as_vectors(tiny: Tiny, head: str, per_item: int, kind: str, device: str) -> None:
    device_or_skip(device)
    ranker, plain = token_ranker(tiny(kind), head, per_item, device)

    @few_examples
    @given(st.lists(item_requests(per_item, midway=head == "rank"), max_size=4), st.integers(1, 40), st.booleans())
    def check(batch: list[Request], budget: int, frozen: bool) -> None:
        ranker.thaw_items()
        if frozen:
            ranker.freeze_items()
        with torch.no_grad():
            wanted = [NAIVE[head](ranker.head, plain, r, per_item) for r in batch]
        assert_all(score_requests(ranker, batch, budget), wanted)

    check()


@pytest.mark.parametrize("backend", BACKENDS)
def test_items_as_vectors_by_every_attention(tiny: Tiny, backend: str) -> None:
    ranker, plain = token_ranker(tiny("qwen3"), "rank", 2, "cpu")
    ranker.attend_by(backend)

    @few_examples
    @given(st.lists(item_requests(2, midway=True), max_size=4), st.integers(1, 40))
    def check(batch: list[Request], budget: int) -> None:
        with torch.no_grad():
            wanted = [naive_rank(ranker.head, plain, r, 2) for r in batch]
        assert_all(score_requests(ranker, batch, budget), wanted)

    check()
    ranker.attend_by("cascade")


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


@pytest.mark.parametrize("head", ["linear", "yes_no", "rank"])
def test_company_and_order_do_not_change_a_score(tiny: Tiny, head: str) -> None:
    ranker = (
        token_ranker(tiny("llama"), head, 2, "cpu")[0] if head == "rank" else text_ranker(tiny("llama"), head, "cpu")
    )
    drawn = item_requests(2, midway=True) if head == "rank" else requests(WORDS)

    @few_examples
    @given(st.lists(drawn, min_size=1, max_size=5), st.randoms(use_true_random=False))
    def check(batch: list[Request], random: Any) -> None:
        alone = [score_requests(ranker, [r], 10_000)[0] for r in batch]
        order = list(range(len(batch)))
        random.shuffle(order)
        together = score_requests(ranker, [batch[i] for i in order], 10_000)
        for place, i in enumerate(order):
            assert_scores(together[place], alone[i], rtol=1e-5)

    check()


@pytest.mark.parametrize(
    ("items", "head", "per_item"),
    [("text", "linear", 1), ("text", "yes_no", 1), *(("token", h, k) for h in ("retrieve", "rank") for k in (1, 2))],
)
def test_the_slow_reference_equals_packed_scores_and_puts_the_attention_back(
    tiny: Tiny, items: str, head: str, per_item: int
) -> None:
    directory = tiny("qwen2")
    if items == "text":
        ranker, branches = text_ranker(directory, head, "cpu"), [[65, 66], [67], [68, 69, 70]]
    else:
        ranker = token_ranker(directory, head, per_item, "cpu")[0]
        branches = [tokens_of(row, per_item) for row in (1, 3, 4)]
    trunk = [0, 40, 41, 42, *(tokens_of(5, per_item) if items == "token" else [])]
    request = Request.to_score(np.asarray(trunk, np.int32), Ragged.of(branches))
    before = score_requests(ranker, [request], 100)[0]
    assert_scores(score_pair_by_pair(ranker, request), before)
    assert torch.equal(score_requests(ranker, [request], 100)[0], before)


@pytest.mark.parametrize("per_item", [1, 2])
def test_the_slow_reference_is_right_wherever_a_branch_hangs(tiny: Tiny, per_item: int) -> None:
    ranker, plain = token_ranker(tiny("llama"), "rank", per_item, "cpu")

    @few_examples
    @given(item_requests(per_item, midway=True))
    def check(request: Request) -> None:
        with torch.no_grad():
            wanted = naive_rank(ranker.head, plain, request, per_item)
        assert_all([score_pair_by_pair(ranker, request)], [wanted])

    check()


def test_a_rank_head_starts_from_the_retrieved_order(tiny: Tiny) -> None:
    made = [make_ranker(tiny("llama"), "token", head) for head in ("retrieve", "rank")]
    for ranker in made:
        bind_items(ranker, N_ITEMS)
    retrieve, rank = made
    rank.head.retrieve.load_state_dict(retrieve.head.state_dict())
    rank.head.branch.load_state_dict(type(rank.head)(rank.head.branch.weight.shape[0]).branch.state_dict())
    request = Request.to_score(np.asarray([0, 263, 265], np.int32), Ragged.of([[262 + i] for i in range(N_ITEMS)]))
    assert_scores(score_requests(rank, [request], 100)[0], score_requests(retrieve, [request], 100)[0])


def test_nothing_to_score(tiny: Tiny) -> None:
    ranker = text_ranker(tiny("llama"), "linear", "cpu")
    empty = Request.to_score(np.asarray([1, 2], np.int32), Ragged.of([]))
    assert score_requests(ranker, [], 100) == []
    assert [s.tolist() for s in score_requests(ranker, [empty, empty], 100)] == [[], []]
    assert score_pair_by_pair(ranker, empty).tolist() == []


@pytest.mark.parametrize("head", ["retrieve", "rank"])
def test_nothing_to_score_among_items(tiny: Tiny, head: str) -> None:
    ranker, _ = token_ranker(tiny("llama"), head, 2, "cpu")
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
