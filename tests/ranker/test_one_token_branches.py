"""Branches of one token, which items as vectors are, take a way of their own through the cascade: the same values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from llmrec.ranker.attention import BACKENDS
from llmrec.ranker.packing import Batch, Request, pack, visible
from llmrec.ranker.ragged import Ragged

HEADS, KEY_HEADS, SIZE = 6, 2, 8


def batch_of(causal: bool, midway: bool) -> Batch:
    """Requests of branches of one token, some that hang inside the trunk, and one of longer branches among them."""
    rng = np.random.default_rng(0)
    made = []
    for trunk, lengths in ((7, [1] * 5), (7, [1] * 5), (1, [1]), (4, [1, 3, 2]), (5, []), (9, [1] * 20)):
        branches = Ragged.of([np.zeros(length, np.int32) for length in lengths])
        attach = rng.integers(trunk, size=len(lengths)) if midway else np.full(len(lengths), trunk - 1)
        made.append(Request(np.zeros(trunk, np.int32), branches, attach.astype(np.int32), np.empty(0, np.int32)))
    return pack(made, causal)


def drawn(tokens: int, dtype: torch.dtype, learn: bool = False) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    shapes = [(1, heads, tokens, SIZE) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [torch.randn(shape, generator=draw).to(dtype).requires_grad_(learn) for shape in shapes]


@pytest.mark.parametrize("causal,midway", [(True, False), (True, True), (False, False)])
def test_values_and_gradients_equal_torchs_masked_attention(causal: bool, midway: bool) -> None:
    batch = batch_of(causal, midway)
    n, cascade = len(batch.token), BACKENDS["cascade"]
    ours, theirs = drawn(n, torch.float32, True), drawn(n, torch.float64, True)
    found, _ = cascade.attend(torch.nn.Module(), *ours, None, packed=cascade.layout(batch))
    wanted = scaled_dot_product_attention(*theirs, attn_mask=visible(batch), enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    (found * upstream).sum().backward()
    (wanted * upstream.double()).sum().backward()
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad.double(), reference.grad, rtol=1e-4, atol=1e-4)


def test_in_bfloat16_no_farther_from_the_truth_than_torch() -> None:
    batch = batch_of(causal=True, midway=False)
    cascade, seen = BACKENDS["cascade"], visible(batch)
    rounded = drawn(len(batch.token), torch.bfloat16)
    found, _ = cascade.attend(torch.nn.Module(), *rounded, None, packed=cascade.layout(batch))
    truth, torchs = (
        scaled_dot_product_attention(*(t.to(dtype) for t in rounded), attn_mask=seen, enable_gqa=True).transpose(1, 2)
        for dtype in (torch.float64, torch.bfloat16)
    )
    errors = [float((some.double() - truth).abs().mean()) for some in (found, torchs)]
    assert errors[0] < 2 * errors[1]
