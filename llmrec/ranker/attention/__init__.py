"""Attention over packed batches, plugged into transformers' models through `AttentionInterface`.

A model whose attention implementation is one of these backends runs unchanged: transformers builds no mask of its own
for an implementation that it does not know, and hands the packed batch's layout on as the keyword `packed`. All
backends follow the one mask rule of `llmrec.ranker.packing` and give the same values; they differ in what they compute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

from llmrec.errors import UserError
from llmrec.ranker.attention import cascade, dense, flex
from llmrec.ranker.packing import Batch


@dataclass(frozen=True)
class Backend:
    """layout: what the attention needs to know of a batch, worked out once and read by every layer."""

    attend: Callable[..., tuple[torch.Tensor, None]]
    layout: Callable[[Batch], Any]


BACKENDS = {
    "dense": Backend(dense.attend, dense.layout),
    "cascade": Backend(cascade.attend, cascade.layout),
    "flex": Backend(flex.attend, flex.layout),
}
PREFIX = "llmrec_"

for _name, _backend in BACKENDS.items():
    AttentionInterface.register(PREFIX + _name, _backend.attend)


def choose(attention: str, device: torch.device, training: bool = False) -> str:
    """A backend's name; `auto` is FlexAttention on CUDA and the cascade elsewhere.

    Raises:
        UserError: FlexAttention is to train on a CPU, where torch gives it no gradient.
    """
    if attention == "flex" and training and device.type == "cpu":
        raise UserError("model.attention = flex cannot train on a CPU; choose auto, cascade or dense")
    if attention != "auto":
        return attention
    return "flex" if device.type == "cuda" else "cascade"
