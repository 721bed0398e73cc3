"""Scores after variants of a trunk, against each variant and candidate alone in transformers' own attention."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_models import assert_scores, bind_items, make_ranker, random_catalogue

from llmrec.ranker.contexts import CODE_BITS, ContextEncoder
from llmrec.ranker.influence import Variants, joined, score_variants
from llmrec.ranker.model import Ranker, score_pair_by_pair
from llmrec.ranker.packing import Request
from llmrec.ranker.prompts import Catalogue, trunk
from llmrec.ranker.ragged import Ragged

N_ITEMS = 7
OPENING = np.asarray([0, 70, 71], np.int32)
HISTORIES = [[3, 1, 4, 1, 5], [2, 6], [], [0]]
CANDIDATES = [[0, 2, 6], [5], [1, 3], [4, 5]]


def made(directory: str, items: str, head: str, per_item: int) -> tuple[Ranker, Catalogue]:
    ranker = make_ranker(directory, items, head, per_item=per_item).eval()
    if items == "text":
        return ranker, random_catalogue(N_ITEMS, 262)
    return ranker, bind_items(ranker, N_ITEMS)[0]


def left_out(history: list[int], item: int | None) -> np.ndarray:
    return np.asarray([i for i in history if i != item], np.int64)


def variants(catalogue: Catalogue, opening: np.ndarray, code: int = 0) -> list[Variants]:
    """Each history whole and without each of its items; a context's code is added to the last token."""
    users = []
    for history, candidates in zip(HISTORIES, CANDIDATES, strict=True):
        trunks = []
        for item in (None, *dict.fromkeys(reversed(history))):
            tokens = trunk(opening, catalogue.event.take(left_out(history, item))).astype(np.int64)
            tokens[-1] += code << CODE_BITS
            trunks.append(tokens)
        users.append(Variants(trunks, [catalogue.candidate.take(np.asarray(candidates))] * len(trunks)))
    return users


def brute_force(ranker: Ranker, users: list[Variants]) -> torch.Tensor:
    """Every pair in a sequence of its own."""
    return torch.cat([
        score_pair_by_pair(ranker, Request.to_score(t, c))
        for user in users for t, c in zip(user.trunks, user.candidates, strict=True)
    ])  # fmt: skip


@pytest.mark.parametrize("budget", [1, 40, 4096])
@pytest.mark.parametrize(
    ("kind", "items", "head", "per_item"),
    [("llama", "token", "retrieve", 1), ("qwen3", "token", "retrieve", 2), ("llama", "token", "rank", 1),
     ("llama", "text", "linear", 1), ("bert", "text", "linear", 1)],
)  # fmt: skip
def test_variants_score_as_each_of_them_alone(
    tiny: Callable[[str], str], kind: str, items: str, head: str, per_item: int, budget: int
) -> None:
    ranker, catalogue = made(tiny(kind), items, head, per_item)
    for opening in (OPENING, OPENING[:1]):  # with the second an ablated trunk may be one token
        users = variants(catalogue, opening)
        found = score_variants(ranker, users, budget)
        assert [len(of) for of in found] == [5, 3, 1, 2]
        flat = torch.from_numpy(np.concatenate([scores for of in found for scores in of]))
        assert_scores(flat, brute_force(ranker, users))
    assert not np.allclose(found[0][0], found[0][1], rtol=1e-3), "leaving an item out changes nothing"


def test_variants_in_a_context_score_as_each_of_them_alone(tiny: Callable[[str], str]) -> None:
    ranker, catalogue = made(tiny("llama"), "token", "retrieve", 1)
    ranker.contexts = ContextEncoder({"place": ["home", "work"]}, ranker.backbone.config.hidden_size)
    torch.nn.init.normal_(ranker.contexts.table)
    ranker.eval()
    for opening in (OPENING, OPENING[:1]):
        users = [
            Variants([*of.trunks, plain.trunks[0]], [*of.candidates, of.candidates[0]])
            for of, plain in zip(variants(catalogue, opening, code=2), variants(catalogue, opening), strict=True)
        ]
        found = score_variants(ranker, users, 64)
        flat = torch.from_numpy(np.concatenate([scores for of in found for scores in of]))
        assert_scores(flat, brute_force(ranker, users))


def test_variants_without_candidates_have_no_scores(tiny: Callable[[str], str]) -> None:
    for head in ("retrieve", "rank"):
        ranker, catalogue = made(tiny("llama"), "token", head, 1)
        whole, less = (trunk(OPENING, catalogue.event.take(left_out([3, 1, 4], i))) for i in (None, 1))
        none, some = catalogue.candidate.take(np.empty(0, np.int64)), catalogue.candidate.take(np.asarray([2, 5]))
        (found,) = score_variants(ranker, [Variants([whole, less], [none, some])], 64)
        assert len(found[0]) == 0
        assert_scores(torch.from_numpy(found[1]), score_pair_by_pair(ranker, Request.to_score(less, some)))


def test_a_joined_trunk_takes_only_what_differs() -> None:
    whole = np.arange(20)
    trunks = [whole, whole[:-1], np.delete(whole, 15), np.delete(whole, [3, 18]), np.asarray([9, 9])]
    requests, read = joined(trunks)
    assert [r.tokens for r in requests] == [20 + 4 + 15, 2]
    assert requests[0].trunk_read.tolist() == [19, 18] and requests[0].attach.tolist() == [14, 2]
    assert read == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
    assert isinstance(requests[0].branches, Ragged)
