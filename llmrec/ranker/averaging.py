"""Averages of weights over the steps of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Exponential moving average of a model's learning weights, which wavers less than its last step (Polyak and
    Juditsky, 1992).

    Of the first steps, whose weights are hardly trained, it forgets more: the decay at step t is at most
    (1 + t) / (10 + t), as in TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, weights: Iterable[torch.nn.Parameter], decay: float) -> None:
        """weights: of any shapes; sharded ones, too. decay: share of the average that a step keeps, in (0, 1)."""
        self.weights = [weight for weight in weights if weight.requires_grad]
        self.means = [weight.detach().clone() for weight in self.weights]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(self.means, [weight.detach() for weight in self.weights], step)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averages meanwhile; what is loaded into it then is the averages' from then on."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, mean in zip(self.weights, self.means, strict=True):
            kept = weight.detach().clone()
            weight.copy_(mean)
            mean.copy_(kept)
