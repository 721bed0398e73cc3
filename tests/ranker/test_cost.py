"""Loads against batches that are really packed, and arithmetic against torch's own count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaModel

from llmrec.ranker.cost import Load, ModelCost, branches, operations_per_second, pair_by_pair
from llmrec.ranker.packing import Request, pack, pairs, visible
from llmrec.ranker.ragged import Ragged

LISTS = [[[1, 2], [3]], [], [[4, 5, 6, 7], [8], [9, 9]]]
TRUNKS = [4, 2, 7]


def requests() -> list[Request]:
    return [
        Request.to_score(np.arange(n, dtype=np.int32), Ragged.of(lists)) for n, lists in zip(TRUNKS, LISTS, strict=True)
    ]


def in_numbers() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    counts = [len(lists) for lists in LISTS]
    lengths = np.asarray([len(b) for lists in LISTS for b in lists])
    return np.asarray(TRUNKS), np.append(0, np.cumsum(counts)), lengths


def packed(found: list[Request], causal: bool) -> tuple[int, int]:
    batch = pack(found, causal)
    return len(batch.token), int(visible(batch).sum())


@pytest.mark.parametrize("causal", [True, False])
def test_a_load_is_what_is_packed(causal: bool) -> None:
    alone = [piece for r in requests() for piece in pairs(r)]
    together, each = packed(requests(), causal), packed(alone, causal)
    assert branches(*in_numbers(), causal) == Load(together[0], each[0], together[1])
    assert pair_by_pair(*in_numbers(), causal) == Load(each[0], each[0], each[1])


def test_arithmetic_is_what_torch_counts(tiny_model: Path) -> None:
    config = LlamaConfig.from_pretrained(tiny_model, num_key_value_heads=4)
    config._attn_implementation = "eager"  # every token against every token: as many as an encoder's
    model = LlamaModel(config).eval()
    cost, tokens = ModelCost.of(model.layers, config), 16
    norms = sum(p.numel() for p in model.layers.parameters() if p.ndim == 1)
    with FlopCounterMode(display=False) as counted, torch.inference_mode():
        model(inputs_embeds=torch.randn(1, tokens, config.hidden_size), use_cache=False)
    wanted = cost.operations(tokens, tokens * tokens) - 2 * norms * tokens
    assert wanted == pytest.approx(counted.get_total_flops(), rel=1e-9)


def test_a_rate_is_positive() -> None:
    assert operations_per_second(torch.float32, 64, 32, 64, 0.01) > 0
