"""Each user's clipped part and the noise, against Opacus' own optimizer, and their accounting against a closed form."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer

from llmrec import config
from llmrec.errors import UserError
from llmrec.ranker.private import Mechanism, PrivateGradient, drawn, mechanism

USERS, NORM = 12, 0.7
STILL = Mechanism(epsilon=math.inf, delta=0.0, rate=0.25, users=4 * USERS, norm=NORM, noise=0.0)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))


def asked() -> torch.Tensor:
    """Some users' gradients are shorter than the norm, others much longer."""
    return torch.randn(USERS, 6, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 1, USERS)[:, None]


def test_clipped_sums_are_those_of_opacus() -> None:
    theirs, features = GradSampleModule(network()), asked()
    optimizer = DPOptimizer(
        torch.optim.SGD(theirs.parameters(), lr=0.1),
        noise_multiplier=0.0,
        max_grad_norm=NORM,
        expected_batch_size=USERS,
    )
    theirs(features.requires_grad_()).pow(2).mean().backward()
    optimizer.pre_step()
    ours = network()
    summed, lengths = PrivateGradient(ours.parameters(), STILL), []
    for one in features.detach():
        ours(one[None]).pow(2).mean().backward()
        lengths.append(summed.add())
        assert all(parameter.grad is None for parameter in ours.parameters())
    assert min(lengths) < NORM < max(lengths)
    summed.release()
    for mine, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, wanted.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wild", [1e6, math.inf, math.nan])
def test_no_user_moves_a_step_by_more_than_the_norm(wild: float) -> None:
    layer = torch.nn.Linear(6, 1)
    found = []
    for other in (None, wild):
        layer.zero_grad()
        summed = PrivateGradient(layer.parameters(), STILL)
        for one in asked()[:3]:
            layer(one).sum().backward()
            summed.add()
        if other is not None:
            layer.weight.grad = torch.full_like(layer.weight, other)
            summed.add()
        summed.release()
        found.append(torch.cat([p.grad.ravel() for p in layer.parameters()]))
    assert float((found[1] - found[0]).norm()) <= NORM / STILL.expected * (1 + 1e-4)


@pytest.mark.parametrize("world", [1, 4])
def test_the_noise_is_as_large_as_it_says_and_new_each_time(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: None)
    layer = torch.nn.Linear(400, 100, bias=False)
    how = Mechanism(epsilon=1.0, delta=1e-5, rate=0.1, users=500, norm=2.0, noise=1.5)
    summed, found = PrivateGradient(layer.parameters(), how), []
    for _ in range(2):
        summed.release(world)
        found.append(layer.weight.grad.ravel())
    for noise in found:
        assert float(noise.std()) == pytest.approx(1.5 * 2.0 / 50 / world**0.5, rel=0.02)
        assert abs(float(noise.mean())) < 5 * float(noise.std()) / 200
    assert abs(float(torch.corrcoef(torch.stack(found))[0, 1])) < 0.03
    again = PrivateGradient(layer.parameters(), how)
    again.release(world)
    assert not torch.equal(layer.weight.grad.ravel(), found[0]), "another training drew the same noise"


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 8.0])
def test_noise_of_whole_batches_is_what_renyi_divergence_asks_for(epsilon: float) -> None:
    """Mironov (2017), proposition 7, of the normal noise, and Canonne, Kamath and Steinke (2020), proposition 12, from
    there to epsilon, over all orders."""
    steps, delta = 30, 1e-5
    noise = mechanism(epsilon, delta, users=100, a_step=200, steps=steps, norm=1.0).noise
    orders = np.linspace(1.01, 60, 100_000)
    spent = steps * orders / (2 * noise**2) + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    assert spent.min() == pytest.approx(epsilon, rel=0.03) and spent.min() <= epsilon


def test_fewer_users_of_a_step_and_fewer_steps_need_less_noise() -> None:
    given = {"epsilon": 2.0, "delta": 1e-5, "users": 10_000, "a_step": 500, "steps": 100, "norm": 1.0}
    noise = mechanism(**given).noise
    assert mechanism(**given | {"a_step": 50}).noise < noise
    assert mechanism(**given | {"steps": 10}).noise < noise
    assert mechanism(**given | {"epsilon": 4.0}).noise < noise
    assert mechanism(**given).rate == 0.05
    assert (mechanism(**given).epsilon, mechanism(**given).delta) == (2.0, 1e-5)


def test_an_epsilon_that_no_noise_gives_is_refused() -> None:
    with pytest.raises(UserError, match=r"train\.private\.epsilon = 1e-09 with delta = 1e-05: .*larger epsilon"):
        mechanism(1e-9, 1e-5, users=10, a_step=10, steps=10_000, norm=1.0)


def test_each_user_is_drawn_with_the_same_probability_whatever_the_others() -> None:
    rng, counts = np.random.default_rng(0), []
    times = np.zeros(200)
    for _ in range(4000):
        chosen = drawn(200, 0.3, rng)
        times[chosen] += 1
        counts.append(len(chosen))
    np.testing.assert_allclose(times / 4000, 0.3, atol=5 * math.sqrt(0.21 / 4000))
    assert np.var(counts) == pytest.approx(200 * 0.21, rel=0.15), "a step's number of users varies as of a binomial"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": {"items": "token", "head": "rank"}}, "needs model.head = retrieve, not rank"),
        ({"items": {"id_start": 8}}, "needs items.id_start = 0, not 8: it is counted in the log"),
        ({"prompt": {"context": "{place}"}}, "needs prompt.context = '', not {place}"),
        ({"train": {"teacher": "s3://b/t"}}, "needs train.teacher = '', not s3://b/t: it has seen all users"),
        ({"train": {"start": "previous"}}, "needs train.start = ''"),
        ({"feedback": {"impressions": "s3://b/seen"}}, "needs feedback.impressions = ''"),
        ({"train": {"strategy": "fsdp2"}}, "needs train.strategy = ddp"),
    ],
)
def test_what_would_learn_of_users_in_another_way_is_refused(changed: dict, message: str) -> None:
    values = {
        "root": "s3://b/r", "model": {"items": "token", "head": "retrieve"}, "items": {"id_start": 0},
        "train": {"private": {"epsilon": 2.0}},
    }  # fmt: skip
    config.build(copy.deepcopy(values))
    for name, section in changed.items():
        values[name] = values.get(name, {}) | section
    with pytest.raises(UserError, match=r"train\.private\.epsilon = 2 needs") as told:
        config.build(values)
    assert message in str(told.value)
