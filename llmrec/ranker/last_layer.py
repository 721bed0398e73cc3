"""The last layer of a backbone, computed only where it is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")


def compute_only_reads(layer: nn.Module) -> bool:
    """Let a layer that is called with the keyword `read` (int64[B]) return only those rows: [1, T, h] -> [1, B, h].

    Keys and values need every row, so the attention still gets all of them; what it returns and the residual are cut
    to the rows read, and the MLP, most of a layer, runs on these alone. Works by hooks on any
    pre-norm layer (Llama, Qwen, Mistral, Gemma ...), without code of the model's. Returns False, and changes nothing,
    if the layer is of another form: then the caller has to pick the rows from all.
    """
    if any(getattr(layer, part, None) is None for part in PARTS):
        return False
    full: list[torch.Tensor] = []

    def cut_residual(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        full.clear()
        if "read" not in kwargs:
            return None
        full.append(args[0])
        return (args[0][:, kwargs["read"]], *args[1:]), kwargs

    def norm_all(_: nn.Module, args: tuple[Any, ...]) -> Any:
        return (full.pop(),) if full else None

    def cut_attended(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Any, ...]) -> Any:
        return (output[0][:, kwargs["read"]], *output[1:]) if "read" in kwargs else None

    layer.register_forward_pre_hook(cut_residual, with_kwargs=True)
    layer.get_submodule("input_layernorm").register_forward_pre_hook(norm_all)
    layer.get_submodule("self_attn").register_forward_hook(cut_attended, with_kwargs=True)
    return True
