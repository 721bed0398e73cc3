"""What scoring takes in tokens and arithmetic, and how much arithmetic a machine can do."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ModelCost:
    """What one token costs: 2 * parameters operations, and 4 * width a layer for each token that it sees (Kaplan et
    al., 2020, Table 1). parameters: those of the layers; width: of all attention heads."""

    parameters: int
    layers: int
    width: int

    @staticmethod
    def of(layers: Any, config: Any) -> ModelCost:
        """From a backbone's layers, before they are made ready to score, and its configuration."""
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return ModelCost(
            sum(p.numel() for p in layers.parameters()), len(layers), int(config.num_attention_heads * head)
        )

    def operations(self, tokens: float, visible: float) -> float:
        """tokens: computed ones; visible: pairs of a computed token and one that it sees."""
        return 2.0 * self.parameters * tokens + 4.0 * self.width * self.layers * visible


@dataclass(frozen=True)
class Load:
    """What some users take. tokens: to compute; alone: to compute pair by pair; visible: pairs of a computed token and
    one that it sees."""

    tokens: int
    alone: int
    visible: int


def branches(trunk: np.ndarray, offsets: np.ndarray, lengths: np.ndarray, causal: bool) -> Load:
    """A trunk a user, his candidates as branches.

    trunk: int64[users] tokens; offsets: int64[users + 1] into lengths, int64[pairs] tokens.
    """
    p, length = trunk.astype(np.int64), lengths.astype(np.int64)
    seen = np.repeat(p, np.diff(offsets)) * length + (length * (length + 1) // 2 if causal else length**2)
    own = p * (p + 1) // 2 if causal else p**2
    alone = int((p * np.diff(offsets)).sum() + length.sum())
    return Load(int(p.sum() + length.sum()), alone, int(own.sum() + seen.sum()))


def pair_by_pair(trunk: np.ndarray, offsets: np.ndarray, lengths: np.ndarray, causal: bool) -> Load:
    """A sequence a pair; see `branches`."""
    whole = np.repeat(trunk.astype(np.int64), np.diff(offsets)) + lengths
    visible = whole * (whole + 1) // 2 if causal else whole**2
    return Load(int(whole.sum()), int(whole.sum()), int(visible.sum()))


def operations_per_second(
    dtype: torch.dtype, rows: int, inner: int, columns: int, seconds: float, device: torch.device | str = "cpu"
) -> float:
    """Multiply-adds, counted twice, of [rows, inner] @ [inner, columns] in the fastest of the runs of some seconds."""
    import torch  # here, since loads are counted by processes that have no other use for it

    from llmrec.ranker.int8 import multiplied

    whole = dtype == torch.int8
    left, right = (
        torch.randint(-127, 128, shape, dtype=dtype, device=device) if whole
        else torch.randn(shape, dtype=dtype, device=device)
        for shape in ((rows, inner), (inner, columns))
    )  # fmt: skip
    product = multiplied if whole else torch.mm
    on_gpu = torch.device(device).type == "cuda"
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        product(left, right)
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * rows * inner * columns / best
