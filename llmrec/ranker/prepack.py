"""Linear layers on a CPU with their weights stored once in the order that oneDNN's matrix kernels read.

torch's own `Linear` keeps its weight as rows and has oneDNN reorder it in every call. These are the operators that
torch.compile puts into frozen CPU models; here they are called without compiling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.activations import ACT2FN

# The rows that the order is chosen for; it holds for any other number, too.
ROWS = 2048


def prepack(module: nn.Module) -> None:
    """Store the weights of all linear layers within in oneDNN's order, in place; does nothing where torch lacks it.

    Gated MLPs (down(silu(gate(x)) * up(x)), as in Llama, Qwen and Mistral) get activation and product computed inside
    the products, in float32. The module can no longer be trained or saved. A weight that is split over processes, or
    on another device, stays as it is, as does one in bfloat16 on a CPU whose oneDNN kernels lack it.
    """
    if not torch.backends.mkldnn.is_available() or torch.cpu.get_capabilities()["architecture"] != "x86_64":
        return
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            if _can_be_packed(child.weight):
                setattr(module, name, PackedLinear(child))
        elif _is_gated(child):
            setattr(module, name, PackedGatedMLP(child))
        else:
            prepack(child)


class PackedLinear(nn.Module):
    """x [..., inputs] -> [..., outputs] in the weight's dtype, float32 or bfloat16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.dtype = linear.weight.dtype
        self.bias = None if linear.bias is None else linear.bias.detach()
        with torch.no_grad():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)

    # A compiled layer calls it as it is: torch.compile takes no weights in this order from outside.
    @torch.compiler.disable
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.then(x, "none")

    def then(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        """activation(linear(x)), computed inside the product; "none" or "swish", which is SiLU."""
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, self.bias, activation, [], "")

    def times(self, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """linear(x) * factor, computed inside the product; factor: [..., outputs] in the weight's dtype."""
        x = x.to(self.dtype)
        return torch.ops.mkldnn._linear_pointwise.binary(x, factor, self.packed, self.bias, "mul")


class PackedGatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)): x [..., hidden] -> [..., hidden]."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate, self.up, self.down = (PackedLinear(p) for p in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))

    @torch.compiler.disable
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.gate.dtype)
        return self.down.then(self.up.times(x, self.gate.then(x, "swish")), "none")


def _can_be_packed(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or isinstance(weight, DTensor):
        return False
    return weight.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _is_gated(module: nn.Module) -> bool:
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    return (
        {name for name, _ in module.named_children()} == {"gate_proj", "up_proj", "down_proj", "act_fn"}
        and isinstance(module.act_fn, type(ACT2FN["silu"]))
        and all(isinstance(part, nn.Linear) and _can_be_packed(part.weight) for part in parts)
    )
