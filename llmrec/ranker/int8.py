"""Linear layers in whole numbers of eight bits: a scale for each output of the weight and for each row of the input."""

from __future__ import annotations

import torch
from torch import nn

LARGEST = 127
LEAST_ROWS = 17  # of what CUDA's kernel multiplies
MULTIPLE = 8  # of inputs and outputs, likewise


class Int8Linear(nn.Module):
    """x [..., inputs] -> float32 [..., outputs].

    The weight is rounded once, each row of the input as it comes, both to the nearest of 255 steps between minus and
    plus their largest value; products are added up exactly, in int32: LLM.int8 (Dettmers et al., 2022) without a place
    apart for outliers. What that costs a ranker `llmrec compress` tells.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / LARGEST
        self.weight: torch.Tensor
        self.scale: torch.Tensor
        self.bias: torch.Tensor | None
        # Inputs by outputs: so both CPUs and GPUs read it fastest. A transposed column counts as contiguous too and
        # is multiplied wrongly (torch 2.13, CPU); a copy into new memory is not.
        whole = (weight / scale[:, None]).round().to(torch.int8)
        self.register_buffer("weight", torch.empty(whole.shape[::-1], dtype=torch.int8, device=whole.device))
        self.weight.copy_(whole.t())
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).float()
        scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / LARGEST
        whole = (rows / scale).round().to(torch.int8)
        found = multiplied(whole, self.weight).float() * scale * self.scale
        found = found if self.bias is None else found + self.bias
        return found.reshape(*x.shape[:-1], -1)


def multiplied(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """int32[rows, outputs]: the exact product of int8[rows, inputs] and int8[inputs, outputs]."""
    rows, outputs = len(left), right.shape[1]
    if left.device.type == "cuda":
        inner, outer = (-size % MULTIPLE for size in right.shape)
        if inner or rows < LEAST_ROWS:  # padding by nothing is a copy, too
            left = nn.functional.pad(left, (0, inner, 0, max(0, LEAST_ROWS - rows)))
        if inner or outer:
            right = nn.functional.pad(right, (0, outer, 0, inner))
    return torch._int_mm(left, right)[:rows, :outputs]


def quantise(module: nn.Module) -> None:
    """Every linear layer within in int8, in place. The module can no longer be trained."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        else:
            quantise(child)
