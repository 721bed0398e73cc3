"""Every attention backend against a softmax over the whole mask rule as one matrix, written out here."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import DEVICES, device_or_skip, requests

from llmrec.ranker.attention import BACKENDS
from llmrec.ranker.packing import Batch, Request, pack

HEADS, KEY_HEADS, SIZE = 4, 2, 8


def rule(batch: Batch) -> torch.Tensor:
    """bool[T, T] in plain loops."""
    request, branch, position, attach = (
        t.tolist() for t in (batch.request, batch.branch, batch.position, batch.attach)
    )
    n = len(request)
    seen = torch.zeros(n, n, dtype=torch.bool)
    for q in range(n):
        for k in range(n):
            limit = min(position[q], attach[q]) if batch.causal else attach[q]
            in_trunk = branch[k] == 0 and position[k] <= limit
            in_branch = branch[k] == branch[q] and (k <= q or not batch.causal)
            seen[q, k] = request[k] == request[q] and (in_trunk or in_branch)
    return seen


def written_out(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    key, value = (t.repeat_interleave(HEADS // KEY_HEADS, dim=1) for t in (key, value))
    weights = (query @ key.transpose(-1, -2) * scale).masked_fill(~mask, float("-inf")).softmax(-1)
    return (weights @ value).transpose(1, 2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients_equal_a_masked_softmax(
    backend: str, scale: float | None, causal: bool, device: str
) -> None:
    device_or_skip(device)

    @settings(max_examples=15, deadline=None)
    @given(st.lists(requests(st.integers(0, 9), midway=causal), min_size=1, max_size=4), st.integers(0, 1000))
    def check(made: list[Request], seed: int) -> None:
        batch = pack(made, causal).to(device)
        n = len(batch.token)
        draw = torch.Generator().manual_seed(seed)
        shapes = [(1, HEADS, n, SIZE), (1, KEY_HEADS, n, SIZE), (1, KEY_HEADS, n, SIZE)]
        learn = backend != "flex" or device != "cpu"  # torch gives FlexAttention no gradient on a CPU
        ours = [torch.randn(s, generator=draw).to(device).requires_grad_(learn) for s in shapes]
        theirs = [t.detach().double().requires_grad_(learn) for t in ours]
        upstream = torch.randn((1, n, HEADS, SIZE), generator=draw).to(device)
        chosen = BACKENDS[backend]
        found, _ = chosen.attend(torch.nn.Module(), *ours, None, packed=chosen.layout(batch), scaling=scale)
        wanted = written_out(*theirs, rule(batch).to(device), SIZE**-0.5 if scale is None else scale)
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
        if not learn:
            return
        (found * upstream).sum().backward()
        (wanted * upstream.double()).sum().backward()
        for mine, reference in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine.grad.double(), reference.grad, rtol=1e-4, atol=1e-4)

    check()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_costs_its_rounding_and_no_more(backend: str, learn: bool, device: str) -> None:
    device_or_skip(device)
    if learn and backend == "flex" and device == "cpu":
        pytest.skip("torch gives FlexAttention no gradient on a CPU")

    @settings(max_examples=10, deadline=None)
    @given(st.lists(requests(st.integers(0, 9)), min_size=1, max_size=4), st.integers(0, 1000))
    def check(made: list[Request], seed: int) -> None:
        batch = pack(made, True).to(device)
        n = len(batch.token)
        draw = torch.Generator().manual_seed(seed)
        shapes = [(1, HEADS, n, SIZE), (1, KEY_HEADS, n, SIZE), (1, KEY_HEADS, n, SIZE)]
        ours = [torch.randn(s, generator=draw).bfloat16().to(device).requires_grad_(learn) for s in shapes]
        theirs = [t.detach().double().requires_grad_(learn) for t in ours]
        upstream = torch.randn((1, n, HEADS, SIZE), generator=draw).bfloat16().to(device)
        chosen = BACKENDS[backend]
        found, _ = chosen.attend(torch.nn.Module(), *ours, None, packed=chosen.layout(batch))
        assert found.dtype == torch.bfloat16
        wanted = written_out(*theirs, rule(batch).to(device), SIZE**-0.5)
        pairs = [(found, wanted)]
        if learn:
            (found * upstream).sum().backward()
            (wanted * upstream.double()).sum().backward()
            pairs += [(mine.grad, reference.grad) for mine, reference in zip(ours, theirs, strict=True)]
        for mine, reference in pairs:
            mine, reference = mine.detach().double(), reference.detach()
            assert (mine - reference).norm() <= 0.02 * max(1.0, reference.norm())

    check()
