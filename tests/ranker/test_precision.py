"""Lowered and packed products against the products they stand for, computed in float64."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import bind_items, make_ranker
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from llmrec.ranker.model import score_requests
from llmrec.ranker.packing import Request
from llmrec.ranker.precision import Precision, choose, lower
from llmrec.ranker.prepack import PackedGatedMLP, PackedLinear, prepack
from llmrec.ranker.prompts import scoring_request
from llmrec.ranker.ragged import Ragged

REQUEST = Request.to_score(np.asarray([0, 40, 41], np.int32), Ragged.of([[65, 66], [67], [68, 69, 70]]))


SIZES = given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(0, 1000))
# How far each of float32's and bfloat16's roundings may be off, relative to what is rounded.
UNIT = {"float32": 2**-24, "bfloat16": 2**-8}
# oneDNN has no bfloat16 kernels for a CPU without AVX-512; there a layer multiplies as it is.
PACKED = {"float32": True, "bfloat16": torch.ops.mkldnn._is_mkldnn_bf16_supported()}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("precision", UNIT)
def test_a_product_is_within_its_rounding_of_the_exact_one(precision: Precision, packed: bool, bias: bool) -> None:
    unit = UNIT[precision]

    @settings(max_examples=30, deadline=None)
    @SIZES
    def check(inputs: int, outputs: int, rows: int, seed: int) -> None:
        torch.manual_seed(seed)
        layer = nn.Sequential(nn.Linear(inputs, outputs, bias=bias))
        x = torch.randn(1, rows, inputs) * 10 ** torch.rand(1, rows, 1)
        wanted = copy.deepcopy(layer).double()(x.double()).detach()
        weight, shift = (p.detach().double().abs() if p is not None else 0 for p in (layer[0].weight, layer[0].bias))
        lower(layer, precision)
        if packed:
            prepack(layer)
        found = layer(x).detach().double()
        # Both factors and the sum are each off by at most a unit of themselves.
        size = x.double().abs() @ weight.T + shift
        off = (2 * unit + unit**2) * size + unit * (1 + 2 * unit) * wanted.abs() + 1e-5 * size
        assert isinstance(layer[0], PackedLinear) == (packed and PACKED[precision])
        assert found.shape == wanted.shape
        assert bool(((found - wanted).abs() <= off).all())

    check()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("precision", UNIT)
def test_a_packed_mlp_is_within_its_roundings_of_transformers_own(precision: Precision, bias: bool) -> None:
    @settings(max_examples=30, deadline=None)
    @SIZES
    def check(hidden: int, inner: int, rows: int, seed: int) -> None:
        torch.manual_seed(seed)
        config = LlamaConfig(
            hidden_size=hidden, num_attention_heads=1, head_dim=2, intermediate_size=inner, mlp_bias=bias
        )
        mlp = nn.Sequential(LlamaMLP(config))
        x = torch.randn(1, rows, hidden)
        exact = copy.deepcopy(mlp).double()
        wanted = exact(x.double()).detach()
        lower(mlp, precision)
        prepack(mlp)
        found = mlp(x).detach().double()
        assert isinstance(mlp[0], PackedGatedMLP) == PACKED[precision]
        # Errors add up over the products within; all their terms taken as positive bound them.
        parts = exact[0]
        inside = [_of_sizes(part, x.double().abs()) for part in (parts.gate_proj, parts.up_proj)]
        size = _of_sizes(parts.down_proj, inside[0] * inside[1])
        assert bool(((found - wanted).abs() <= (16 * UNIT[precision] + 1e-5) * (size + 1e-3)).all())

    check()


def _of_sizes(linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    shift = 0 if linear.bias is None else linear.bias.detach().abs()
    return x @ linear.weight.detach().abs().T + shift


@pytest.mark.parametrize("odd", ["activation", "part"])
def test_an_mlp_of_another_form_keeps_it(odd: str) -> None:
    torch.manual_seed(0)
    mlp = LlamaMLP(
        LlamaConfig(
            hidden_size=8,
            num_attention_heads=1,
            head_dim=2,
            intermediate_size=12,
            hidden_act="gelu" if odd == "activation" else "silu",
        )
    )
    if odd == "part":
        mlp.norm = nn.LayerNorm(12)
        mlp.forward = lambda x: mlp.down_proj(mlp.norm(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)))  # type: ignore
    layer, x = nn.Sequential(mlp), torch.randn(3, 8)
    wanted = layer(x).detach()
    prepack(layer)
    assert isinstance(mlp.gate_proj, PackedLinear)
    torch.testing.assert_close(layer(x), wanted)


def test_scores_are_float32_and_near_the_exact_ones(tiny: Callable[[str], str]) -> None:
    ranker = make_ranker(tiny("llama"), "text", "linear")
    (exact,) = score_requests(ranker, [REQUEST], 100)
    ranker.only_score("bfloat16")
    (found,) = score_requests(ranker, [REQUEST], 100)
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.15 * float(exact.abs().max()))


@pytest.mark.parametrize("head", ["retrieve", "rank"])
def test_scores_of_items_as_vectors_are_float32_and_near_the_exact_ones(tiny: Callable[[str], str], head: str) -> None:
    """Items' vectors and the heads stay as they are; only the layers' products are lowered."""
    ranker = make_ranker(tiny("llama"), "token", head, per_item=2)
    bound, _ = bind_items(ranker, 12)
    request = scoring_request(np.asarray([0, 70], np.int32), bound, np.asarray([3, 1, 4]), np.arange(12))
    (exact,) = score_requests(ranker, [request], 100)
    ranker.freeze_items()
    before = ranker.frozen.vectors.clone()
    ranker.only_score("bfloat16")
    ranker.freeze_items()
    assert torch.equal(ranker.frozen.vectors, before)
    (found,) = score_requests(ranker, [request], 100)
    assert found.dtype == torch.float32 and not torch.equal(found, exact)
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
