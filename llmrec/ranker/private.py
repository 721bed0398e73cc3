"""Gradients with differential privacy, the unit a user: all of his events come or go together.

Abadi et al., "Deep learning with differential privacy" (2016), algorithm 1, with users in place of examples as in
McMahan et al., "Learning differentially private recurrent language models" (2018): each user is of a step with the same
probability, his gradient is clipped to a length, and the sum gets normal noise.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from llmrec.errors import UserError


@dataclass(frozen=True)
class Mechanism:
    """What all steps together promise, (epsilon, delta), and what is done to each for it. rate: the probability of each
    user to be of it; users: how many there are; norm: the length that a user's gradient is clipped to; noise: the
    standard deviation of what is added to the sum, in norms."""

    epsilon: float
    delta: float
    rate: float
    users: int
    norm: float
    noise: float

    @property
    def expected(self) -> float:
        """Users of a step."""
        return self.rate * self.users


def mechanism(epsilon: float, delta: float, users: int, a_step: int, steps: int, norm: float) -> Mechanism:
    """The least noise by which so many steps are (epsilon, delta)-private, by Opacus' accounting of Rényi divergences.

    a_step: users expected in a step.

    Raises:
        UserError: Opacus is not installed, or no noise is enough.
    """
    try:
        from opacus.accountants.utils import get_noise_multiplier
    except ImportError:
        raise UserError(
            "train.private needs Opacus, which counts what privacy costs; pip install 'llmrec[private]'"
        ) from None
    rate = min(1.0, a_step / users)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Optimal order")  # a looser bound: more noise than must be
            noise = get_noise_multiplier(
                target_epsilon=epsilon, target_delta=delta, sample_rate=rate, steps=steps, accountant="rdp"
            )
    except ValueError as error:
        raise UserError(
            f"train.private.epsilon = {epsilon:g} with delta = {delta:g}: {error}; take fewer steps or a larger epsilon"
        ) from None
    return Mechanism(epsilon, delta, rate, users, norm, float(noise))


def drawn(count: int, rate: float, rng: np.random.Generator) -> np.ndarray:
    """int64[any] of range(count), each with probability `rate`, whatever the others."""
    return np.flatnonzero(rng.random(count) < rate)


class PrivateGradient:
    """The sum of users' clipped gradients of some parameters.

    The noise is of a seed that nobody knows. In floating point it is not proof against who reads its last bits
    (Mironov, 2012).
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], how: Mechanism) -> None:
        self.parameters, self.how = list(parameters), how
        self.sums = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in self.parameters]
        device = self.parameters[0].device
        self.generator = torch.Generator(device).manual_seed(secrets.randbits(63))

    def add(self) -> float:
        """Take in `grad`, which is one user's, and clear it; its length before it is clipped. A gradient that is not
        finite counts as none."""
        there = [(s, p.grad.float()) for s, p in zip(self.sums, self.parameters, strict=True) if p.grad is not None]
        length = float(torch.stack([grad.norm() for _, grad in there]).norm()) if there else 0.0
        if np.isfinite(length):
            share = min(1.0, self.how.norm / max(length, 1e-12))
            for total, grad in there:
                total.add_(grad, alpha=share)
        for parameter in self.parameters:
            parameter.grad = None
        return length

    def release(self, world: int = 1) -> None:
        """Leave in `grad` the mean over the users expected of all ranks' sums and noise, and begin a new sum.

        world: ranks, each of which adds its part of the noise.
        """
        deviation = self.how.noise * self.how.norm / world**0.5
        for parameter, total in zip(self.parameters, self.sums, strict=True):
            found = total + torch.empty_like(total).normal_(0.0, deviation, generator=self.generator)
            if world > 1:
                dist.all_reduce(found)
            parameter.grad = (found / self.how.expected).to(parameter.dtype)
            total.zero_()
