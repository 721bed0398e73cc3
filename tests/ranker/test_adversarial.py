"""Changes of what a ranker reads that hurt it: by finite differences, and against changes of the same length."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_models import bind_items, make_ranker

from llmrec.config import Train
from llmrec.ranker.adversarial import perturbation
from llmrec.ranker.examples import sample
from llmrec.ranker.model import Ranker
from llmrec.ranker.objective import loss_of, request_of
from llmrec.ranker.packing import Batch, Request, pack
from llmrec.ranker.ragged import Ragged

ITEMS, SHARE = 12, 0.05


def made(tiny: Callable[[str], str]) -> tuple[Ranker, Batch, Callable[[torch.Tensor | None], torch.Tensor]]:
    ranker = make_ranker(tiny("llama"), "token", "retrieve").train()
    ranker.keep_embedded = True
    catalogue, _ = bind_items(ranker, ITEMS)
    train = Train(horizon=1)
    entry = sample(np.asarray([1, 5, 2, 8, 3]), train, 10, None, np.random.default_rng(0))
    batch = pack([request_of(entry, np.asarray([0, 70], np.int32), catalogue, ranker)])

    def loss(added: torch.Tensor | None) -> torch.Tensor:
        return loss_of(ranker(batch, added), [entry], train, torch.ones(ITEMS, dtype=torch.bool), 5.0, 1.0)

    return ranker, batch, loss


def test_a_step_is_along_the_gradient_and_as_long_as_its_share(tiny: Callable[[str], str]) -> None:
    ranker, _, loss = made(tiny)
    loss(None).backward()
    read = ranker.embedded
    assert read is not None and read.grad is not None
    added = perturbation(read, SHARE)
    moved = added.norm(dim=-1) > 0
    assert moved.any()
    assert torch.allclose(added.norm(dim=-1)[moved], SHARE * read.detach().norm(dim=-1)[moved], rtol=1e-4)
    little = 1e-3 * added
    with torch.no_grad():
        slope = (loss(little) - loss(-little)) / 2
    assert float(slope) == pytest.approx(float((little * read.grad).sum()), rel=0.05)


def test_it_hurts_more_than_any_of_many_others_of_the_same_length(tiny: Callable[[str], str]) -> None:
    ranker, _, loss = made(tiny)
    plain = loss(None)
    plain.backward()
    assert ranker.embedded is not None
    added = perturbation(ranker.embedded, SHARE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        theirs = []
        for _ in range(20):
            other = torch.randn(added.shape, generator=generator)
            theirs.append(loss(other / other.norm(dim=-1, keepdim=True) * added.norm(dim=-1, keepdim=True)))
        assert loss(added) > max(theirs) and loss(added) > plain.detach()


def test_words_that_do_not_learn_are_perturbed_too(tiny: Callable[[str], str]) -> None:
    ranker = make_ranker(tiny("llama"), "text", "linear").train()
    ranker.keep_embedded = True
    ranker.backbone.get_input_embeddings().requires_grad_(False)
    batch = pack([Request.to_score(np.asarray([0, 40, 41], np.int32), Ragged.of([[65, 66], [67]]))])
    ranker(batch).items.sum().backward()
    assert ranker.embedded is not None and perturbation(ranker.embedded, SHARE).norm() > 0
    ranker.eval()
    ranker.embedded = None
    with torch.no_grad():
        ranker(batch)
    assert ranker.embedded is None, "scoring keeps nothing"
