from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrec.ranker.averaging import WeightAverage


def walk(model: torch.nn.Module, average: WeightAverage, steps: int) -> list[np.ndarray]:
    """The weights after each step."""
    seen = []
    generator = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        with torch.no_grad():
            for weight in model.parameters():
                weight += torch.randn(weight.shape, generator=generator)
        average.update(step)
        seen.append(model.weight.detach().numpy().copy())
    return seen


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_it_is_the_weighted_sum_of_the_steps(decay: float) -> None:
    model = torch.nn.Linear(3, 2)
    first = model.weight.detach().numpy().copy()
    average = WeightAverage(model.parameters(), decay)
    seen = walk(model, average, 40)
    shares = np.asarray([min(decay, (1 + t) / (10 + t)) for t in range(1, 41)])
    kept = np.append(np.cumprod(shares[::-1])[::-1][1:], 1.0)  # of step t's part, to the end
    wanted = sum(w * (1 - s) * k for w, s, k in zip(seen, shares, kept, strict=True)) + first * shares.prod()
    with average.applied():
        np.testing.assert_allclose(model.weight.detach().numpy(), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(model.weight.detach().numpy(), seen[-1])


def test_what_is_loaded_meanwhile_is_the_averages() -> None:
    model = torch.nn.Linear(3, 2)
    average = WeightAverage(model.parameters(), 0.5)
    own = model.weight.detach().clone()
    with average.applied():
        model.load_state_dict({"weight": torch.ones(2, 3), "bias": torch.zeros(2)})
    assert torch.equal(model.weight, own)
    with average.applied():
        assert torch.equal(model.weight, torch.ones(2, 3))


def test_frozen_weights_stay_out() -> None:
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average = WeightAverage(model.parameters(), 0.5)
    assert len(average.means) == 1
