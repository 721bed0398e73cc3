"""What is computed, and requests at the edge of what is allowed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_models import KINDS, Plain, assert_scores, make_ranker

from llmrec.ranker.model import score_requests
from llmrec.ranker.packing import WHOLE, Request, pack, plan, split
from llmrec.ranker.ragged import Ragged

Tiny = Callable[[str], str]
TRUNK = np.asarray([0, 40, 41, 42, 43], np.int32)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_layer_computes_only_what_is_read(tiny: Tiny, kind: str) -> None:
    ranker = make_ranker(tiny(kind), "text", "linear").eval()
    rows: list[int] = []
    for layer in ranker.backbone.layers:
        layer.mlp.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[1]))
    batch = pack([Request.to_score(TRUNK, Ragged.of([[65, 66], [67], [68, 69, 70]]))])
    with torch.inference_mode():
        assert ranker.score(batch).shape == (3,)
        assert rows == [11, 3]
        assert ranker(batch).items.shape == (3,)
    assert rows[2:] == [11, WHOLE], "training computes whole multiples"


def test_a_layer_of_another_form_is_computed_whole_and_gives_the_same(tiny: Tiny) -> None:
    ranker = make_ranker(tiny("llama"), "text", "linear").eval()
    request = Request.to_score(TRUNK, Ragged.of([[65, 66], [67]]))
    (wanted,) = score_requests(ranker, [request], 100)
    whole = make_ranker(tiny("llama"), "text", "linear").eval()
    last = whole.backbone.layers[-1]
    for part in (last, last.input_layernorm, last.self_attn):
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    whole.only_reads = False
    torch.testing.assert_close(score_requests(whole, [request], 100)[0], wanted, rtol=1e-5, atol=1e-5)


def test_ten_thousand_candidates_of_one_user_are_split_and_merged(tiny: Tiny) -> None:
    rng = np.random.default_rng(0)
    distinct = [rng.integers(1, 262, rng.integers(1, 4)).tolist() for _ in range(50)]
    chosen = rng.integers(0, 50, 10_000)
    request = Request.to_score(TRUNK, Ragged.of([distinct[i] for i in chosen]))
    pieces = split(request, 600)
    assert all(piece.tokens <= 600 for piece in pieces)
    assert sum(len(piece.branches) for piece in pieces) == 10_000
    ranker = make_ranker(tiny("llama"), "text", "linear")
    (found,) = score_requests(ranker, [request], 600)
    plain = Plain.load(tiny("llama"))
    with torch.no_grad():
        ends = plain.branch_ends(Request.to_score(TRUNK, Ragged.of(distinct)))
        wanted = torch.stack([s @ ranker.head.weight for s in ends])[torch.from_numpy(chosen)]
    assert_scores(found, wanted)


def test_a_candidate_longer_than_the_budget_has_a_batch_of_its_own(tiny: Tiny) -> None:
    request = Request.to_score(TRUNK, Ragged.of([[65] * 30, [66], [67]]))
    pieces = split(request, 10)
    assert [piece.branches.lengths.tolist() for piece in pieces] == [[30], [1, 1]]
    assert plan([piece.tokens for piece in pieces], 10) == [[0], [1]]
    ranker = make_ranker(tiny("llama"), "text", "linear")
    assert_scores(score_requests(ranker, [request], 10)[0], score_requests(ranker, [request], 1000)[0])


def test_the_same_candidate_twice_and_a_candidate_alone_have_one_score(tiny: Tiny) -> None:
    ranker = make_ranker(tiny("llama"), "text", "linear")
    (twice,) = score_requests(ranker, [Request.to_score(TRUNK, Ragged.of([[65, 66], [65, 66]]))], 100)
    (alone,) = score_requests(ranker, [Request.to_score(TRUNK, Ragged.of([[65, 66]]))], 100)
    torch.testing.assert_close(twice, alone.repeat(2), rtol=1e-5, atol=1e-5)
