"""What the weights of a ranker's layers are multiplied in, when it only scores."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from llmrec.ranker.int8 import quantise

Precision = Literal["float32", "bfloat16", "int8"]


def choose(precision: str, device: torch.device) -> Precision:
    """`auto` is bfloat16 where the hardware multiplies it natively, else float32; int8 has to be asked for."""
    if precision in ("float32", "bfloat16", "int8"):
        return precision  # type: ignore[return-value]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu.get_capabilities()
        fast = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return "bfloat16" if fast else "float32"


def lower(module: nn.Module, precision: Precision) -> None:
    """Round the weights of all linear layers within, in place, and their inputs as they come; int8: as `Int8Linear`.

    What lies between them (residual stream, norms, softmax) stays float32. The module can no longer be trained.
    """
    if precision == "float32":
        return
    if precision == "int8":
        quantise(module)
        return
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.to(torch.bfloat16)
            part.register_forward_pre_hook(_round_input)


def _round_input(_: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (args[0].to(torch.bfloat16),)
