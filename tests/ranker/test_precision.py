"""Lowered products against the products they stand for, computed in float64."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make_ranker

from llmrec.ranker.model import score_requests
from llmrec.ranker.packing import Request
from llmrec.ranker.precision import choose, lower
from llmrec.ranker.ragged import Ragged

REQUEST = Request.to_score(np.asarray([0, 40, 41], np.int32), Ragged.of([[65, 66], [67], [68, 69, 70]]))


@pytest.mark.parametrize("bias", [True, False])
def test_a_lowered_product_is_within_its_rounding_of_the_exact_one(bias: bool) -> None:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(0, 1000))
    def check(inputs: int, outputs: int, rows: int, seed: int) -> None:
        torch.manual_seed(seed)
        exact = torch.nn.Linear(inputs, outputs, bias=bias)
        x = torch.randn(1, rows, inputs) * 10 ** torch.rand(1, rows, 1)
        wanted = copy.deepcopy(exact).double()(x.double()).detach()
        weight, shift = (p.detach().double().abs() if p is not None else 0 for p in (exact.weight, exact.bias))
        lower(exact, "bfloat16")
        found = exact(x).detach().double()
        # Both factors and the sum keep 8 bits: each is off by at most 2**-8 of itself.
        size = x.double().abs() @ weight.T + shift
        off = (2 * 2**-8 + 2**-16) * size + 2**-8 * (1 + 2**-7) * wanted.abs() + 1e-5 * size
        assert found.shape == wanted.shape
        assert bool(((found - wanted).abs() <= off).all())

    check()


def test_scores_are_float32_and_near_the_exact_ones(tiny: Callable[[str], str]) -> None:
    ranker = make_ranker(tiny("llama"), "text", "linear")
    (exact,) = score_requests(ranker, [REQUEST], 100)
    ranker.only_score("bfloat16")
    (found,) = score_requests(ranker, [REQUEST], 100)
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.15 * float(exact.abs().max()))


def test_auto_is_what_the_processor_multiplies_natively() -> None:
    cpu = torch.device("cpu")
    assert choose("float32", cpu) == "float32"
    assert choose("bfloat16", cpu) == "bfloat16"
    assert choose("auto", cpu) in ("float32", "bfloat16")


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_layers_give_the_same_scores(tiny: Callable[[str], str]) -> None:
    ranker = make_ranker(tiny("llama"), "text", "linear")
    longer = Request.to_score(np.asarray([0, 40, 41, 50, 51], np.int32), Ragged.of([[65, 66]]))
    wanted = score_requests(ranker, [REQUEST, longer], 12)
    ranker.only_score("float32", compiled=True)
    for found, exact in zip(score_requests(ranker, [REQUEST, longer], 12), wanted, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)
