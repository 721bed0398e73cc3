"""Small changes of what a ranker reads that hurt it most, to train against.

Miyato, Dai and Goodfellow, "Adversarial training methods for semi-supervised text classification" (2017), equation 5:
the direction of the loss's gradient in the embeddings, here for each token by itself and as long as a share of its own
vector.
"""

from __future__ import annotations

import torch


def perturbation(embedded: torch.Tensor, share: float) -> torch.Tensor:
    """[T, hidden]: for each token a step along the gradient that `embedded` ([T, hidden]) holds, `share` as long as its
    vector; none where there is no gradient."""
    gradient = embedded.grad
    assert gradient is not None
    length = gradient.norm(dim=-1, keepdim=True)
    step = share * embedded.detach().norm(dim=-1, keepdim=True)
    return torch.where(length > 0, gradient / length.clamp(min=1e-30), torch.zeros_like(gradient)) * step
