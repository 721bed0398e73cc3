"""The attention itself against a softmax over the whole mask rule as one dense matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import DEVICES, device_or_skip, requests

from llmrec.ranker.attention import layout, packed_attention
from llmrec.ranker.packing import Request, pack, visible

HEADS, KEY_HEADS, SIZE = 4, 2, 8


def dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    key, value = (t.repeat_interleave(HEADS // KEY_HEADS, dim=1) for t in (key, value))
    weights = (query @ key.transpose(-1, -2) * scale).masked_fill(~mask, float("-inf")).softmax(-1)
    return (weights @ value).transpose(1, 2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scale", [None, 0.5])
def test_values_and_gradients_equal_dense_masked_attention(device: str, scale: float | None) -> None:
    device_or_skip(device)

    @settings(max_examples=25, deadline=None)
    @given(st.lists(requests(st.integers(0, 9)), min_size=1, max_size=4), st.integers(0, 1000))
    def check(made: list[Request], seed: int) -> None:
        batch = pack(made).to(device)
        n = len(batch.token)
        draw = torch.Generator().manual_seed(seed)
        shapes = [(1, HEADS, n, SIZE), (1, KEY_HEADS, n, SIZE), (1, KEY_HEADS, n, SIZE)]
        ours = [torch.randn(s, generator=draw).to(device).requires_grad_() for s in shapes]
        theirs = [t.detach().double().requires_grad_() for t in ours]
        upstream = torch.randn((1, n, HEADS, SIZE), generator=draw).to(device)
        found, _ = packed_attention(torch.nn.Module(), *ours, None, packed=layout(batch), scaling=scale)
        wanted = dense(*theirs, visible(batch, 0, n), SIZE**-0.5 if scale is None else scale)
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
        (found * upstream).sum().backward()
        (wanted * upstream.double()).sum().backward()
        for mine, reference in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine.grad.double(), reference.grad, rtol=1e-4, atol=1e-4)

    check()


def test_a_sliding_window_is_refused() -> None:
    with pytest.raises(ValueError, match="sliding-window"):
        packed_attention(torch.nn.Module(), *(torch.zeros(1, 1, 1, 1),) * 3, None, packed=(), sliding_window=4)
