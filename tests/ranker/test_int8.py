"""Products in eight bits against exact whole-number arithmetic and against what rounding allows."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import bind_items, make_ranker
from torch import nn

from llmrec.ranker.int8 import LARGEST, Int8Linear, multiplied
from llmrec.ranker.model import score_requests
from llmrec.ranker.packing import Request
from llmrec.ranker.ragged import Ragged

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
SIZES = given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(0, 1000))


@pytest.mark.parametrize("device", DEVICES)
def test_whole_numbers_are_multiplied_exactly(device: str) -> None:
    @settings(max_examples=40, deadline=None)
    @SIZES
    def check(inner: int, outputs: int, rows: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        left, right = (rng.integers(-127, 128, shape).astype(np.int8) for shape in ((rows, inner), (inner, outputs)))
        found = multiplied(torch.from_numpy(left).to(device), torch.from_numpy(right).to(device))
        assert np.array_equal(found.cpu().numpy(), left.astype(np.int64) @ right.astype(np.int64))

    check()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_off_by_its_roundings_at_most(bias: bool, device: str) -> None:
    @settings(max_examples=40, deadline=None)
    @SIZES
    def check(inputs: int, outputs: int, rows: int, seed: int) -> None:
        torch.manual_seed(seed)
        linear = nn.Linear(inputs, outputs, bias=bias).to(device)
        exact = copy.deepcopy(linear).double()
        x = torch.randn(2, rows, inputs, device=device) * 10 ** torch.rand(2, rows, 1, device=device)
        x[0, 0] = 0  # a row of zeros has no scale
        wanted, found = exact(x.double()).detach(), Int8Linear(linear)(x)
        assert found.dtype == torch.float32 and found.shape == wanted.shape
        weight = linear.weight.double().abs()
        of_w = weight.amax(dim=1) / LARGEST / 2  # half a step
        of_x = x.double().abs().amax(dim=-1, keepdim=True) / LARGEST / 2
        size = x.double().abs()
        off = size.sum(-1, keepdim=True) * of_w + of_x * weight.sum(1) + inputs * of_x * of_w
        assert bool(((found.double() - wanted).abs() <= off * 1.001 + 1e-5).all())

    check()


@pytest.mark.parametrize("items", ["text", "token"])
def test_a_ranker_in_int8_scores_almost_as_before_and_weighs_a_quarter(items: str, tiny: Callable[[str], str]) -> None:
    ranker = make_ranker(tiny("llama"), items, "linear" if items == "text" else "rank")
    if items == "token":
        bind_items(ranker)
        first = ranker.vocabulary
        request = Request.to_score(np.asarray([0, 40, first], np.int32), Ragged.of([[first + 1], [first + 2]]))
    else:
        request = Request.to_score(np.asarray([0, 40, 41], np.int32), Ragged.of([[65, 66], [67], [68, 69, 70]]))
    before = score_requests(ranker, [request], 64)[0]
    layers = ranker.backbone.layers
    whole = sum(p.numel() for m in layers.modules() if isinstance(m, nn.Linear) for p in [m.weight])
    ranker.only_score("int8")
    found = [m for m in layers.modules() if isinstance(m, Int8Linear)]
    assert sum(m.weight.numel() for m in found) == whole and all(m.weight.element_size() == 1 for m in found)
    assert not any(isinstance(m, nn.Linear) for m in layers.modules())
    after = score_requests(ranker, [request], 64)[0]
    # Of a network whose weights are drawn: those of a trained one are smaller, and so is the difference.
    assert 0 < (after - before).abs().max() < 0.5 * before.abs().max()
