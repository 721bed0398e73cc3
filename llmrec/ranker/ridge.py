"""Linear regression with a penalty on its weights."""

from __future__ import annotations

import torch


def ridge(inputs: torch.Tensor, wanted: torch.Tensor, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [d, w] and offset [w], so that inputs @ weight + offset is near what is wanted (Hoerl and Kennard, 1970).

    inputs: float32[n, d]; wanted: float32[n, w]; n >= 1. penalty: on squared weights, as a multiple of the inputs' mean
    sum of squares about their mean; the offset is free. Worked out in float64.
    """
    x, y = inputs.double(), wanted.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x
    gram.diagonal().add_(penalty * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny)
    weight = torch.linalg.lstsq(gram, x.T @ y).solution
    return weight.to(inputs), (y_mean - x_mean @ weight).to(inputs)
