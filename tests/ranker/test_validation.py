"""The gain against scores of plain transformers and NDCG written out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log2

import numpy as np
import pytest
import torch
from tiny_models import Plain, bind_items, make_ranker, naive_item_vectors, random_catalogue

from llmrec.errors import UserError
from llmrec.ranker.model import Ranker
from llmrec.ranker.prompts import Catalogue
from llmrec.ranker.validation import HeldOut, gain

Tiny = Callable[[str], str]
N, MAX_HISTORY, SHORTLIST = 30, 4, 12
OPENINGS = [np.asarray(p, np.int32) for p in ([0, 70], [0, 70], [0], [0, 71, 72], [0], [0], [0, 73], [0, 74])]
HISTORIES = [
    np.asarray(h, np.int64)
    for h in ([3, 1, 4], [5, 9, 2, 6, 8, 7], [], [11], [12, 13, 14, 15, 16], [20, 21], [29], [28, 0])
]
TARGETS = np.asarray([2, 1, 0, 17, 3, 22, 23, 9])
CANDIDATES = [np.setdiff1d(np.random.default_rng(i).permutation(N)[:24], HISTORIES[i]) for i in range(8)]
HELD = HeldOut(OPENINGS, HISTORIES, TARGETS, CANDIDATES)


def discounted(place: int) -> float:
    """NDCG@10 of one relevant item at a place counted from 1."""
    return 1 / log2(place + 1) if place <= 10 else 0.0


def plain_sum(order_of: Callable[[int], Sequence[int]]) -> float:
    """order_of: a user's items, best first."""
    orders = [list(order_of(user)) for user in range(len(TARGETS))]
    places = [order.index(t) + 1 for order, t in zip(orders, TARGETS.tolist(), strict=True) if t in order]
    gains = [discounted(place) for place in places]
    assert 0 in gains and len({g for g in gains if g}) > 1, "the case shows too little"
    return sum(gains)


def token_ranker(tiny: Tiny, head: str, per_item: int) -> tuple[Ranker, Catalogue, Plain]:
    ranker = make_ranker(tiny("llama"), "token", head, per_item=per_item)
    catalogue, features = bind_items(ranker, N)
    plain = Plain.load(tiny("llama"))
    with torch.no_grad():
        return ranker, catalogue, Plain(plain.model, plain.vocabulary, naive_item_vectors(ranker.items, features))


def trunk_of(user: int, catalogue: Catalogue) -> list[int]:
    kept = HISTORIES[user].tolist()[-MAX_HISTORY:]
    return [*OPENINGS[user].tolist(), *(t for row in kept for t in catalogue.event[row].tolist())]


def retrieved(user: int, catalogue: Catalogue, plain: Plain, head: torch.nn.Module) -> dict[int, float]:
    """Scores of all that the user never had, also of what his trunk has no room for."""
    state = plain.states(np.asarray(trunk_of(user, catalogue)))[-1]
    unseen = [row for row in range(N) if row not in HISTORIES[user]]
    return {row: float(plain.items.retrieve(head, state, row)) for row in unseen}


@pytest.mark.parametrize("budget", [20, 1000])
@pytest.mark.parametrize("per_item", [1, 2])
def test_a_retrieve_head_finds_the_item_in_the_whole_catalogue(tiny: Tiny, per_item: int, budget: int) -> None:
    ranker, catalogue, plain = token_ranker(tiny, "retrieve", per_item)
    with torch.no_grad():
        scores = [retrieved(user, catalogue, plain, ranker.head) for user in range(8)]
    wanted = plain_sum(lambda user: sorted(scores[user], key=lambda row: -scores[user][row]))
    assert gain(ranker, catalogue, HELD, MAX_HISTORY, SHORTLIST, budget) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("per_item", [1, 2])
def test_a_rank_head_puts_its_own_shortlist_in_new_order(tiny: Tiny, per_item: int) -> None:
    ranker, catalogue, plain = token_ranker(tiny, "rank", per_item)
    head, orders = ranker.head, []
    with torch.no_grad():
        for user in range(8):
            scores = retrieved(user, catalogue, plain, head.retrieve)
            short = sorted(scores, key=lambda row: -scores[row])[:SHORTLIST]
            for row in short:
                tokens = [*trunk_of(user, catalogue), *catalogue.candidate[row].tolist()]
                scores[row] += float(plain.states(np.asarray(tokens))[-1] @ head.branch.weight)
            orders.append(sorted(short, key=lambda row: -scores[row]))
    wanted = plain_sum(lambda user: orders[user])
    assert gain(ranker, catalogue, HELD, MAX_HISTORY, SHORTLIST, 40) == pytest.approx(wanted, rel=1e-9)


def test_another_head_finds_the_item_among_the_candidates(tiny: Tiny) -> None:
    ranker, catalogue, plain = (
        make_ranker(tiny("llama"), "text", "linear"),
        random_catalogue(N, 262),
        Plain.load(tiny("llama")),
    )

    def order(user: int) -> list[int]:
        trunk = trunk_of(user, catalogue)
        with torch.no_grad():
            scores = {
                row: float(plain.states(np.asarray(trunk + catalogue.candidate[row].tolist()))[-1] @ ranker.head.weight)
                for row in CANDIDATES[user].tolist()
            }
        return sorted(scores, key=lambda row: -scores[row])

    assert any(t not in c for t, c in zip(TARGETS, CANDIDATES, strict=True))
    wanted = plain_sum(order)
    assert gain(ranker, catalogue, HELD, MAX_HISTORY, SHORTLIST, 100) == pytest.approx(wanted, rel=1e-9)


def test_candidates_that_tie_keep_their_order(tiny: Tiny) -> None:
    ranker = make_ranker(tiny("llama"), "text", "linear")
    torch.nn.init.zeros_(ranker.head.weight)
    wanted = plain_sum(lambda user: CANDIDATES[user].tolist())
    assert gain(ranker, random_catalogue(N, 262), HELD, MAX_HISTORY, SHORTLIST, 100) == pytest.approx(wanted)


def test_no_user_gives_nothing(tiny: Tiny) -> None:
    ranker, catalogue, _ = token_ranker(tiny, "rank", 1)
    assert gain(ranker, catalogue, HeldOut([], [], TARGETS[:0], []), MAX_HISTORY, SHORTLIST, 100) == 0


@pytest.mark.parametrize("head", ["linear", "retrieve", "rank"])
def test_a_model_that_fell_apart_gains_nothing(tiny: Tiny, head: str) -> None:
    if head == "linear":
        ranker, catalogue = make_ranker(tiny("llama"), "text", head), random_catalogue(N, 262)
    else:
        ranker, catalogue, _ = token_ranker(tiny, head, 1)
    with torch.no_grad():
        ranker.backbone.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    assert gain(ranker, catalogue, HELD, MAX_HISTORY, SHORTLIST, 100) == 0


def test_a_user_who_does_not_fit_is_refused(tiny: Tiny) -> None:
    ranker, catalogue, _ = token_ranker(tiny, "retrieve", 2)
    ranker.positions = 9  # two opening tokens and four items of two are ten
    with pytest.raises(UserError, match=r"lower prompt\.max_history"):
        gain(ranker, catalogue, HELD, MAX_HISTORY, SHORTLIST, 100)
