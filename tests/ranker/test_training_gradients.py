"""The packed training loss and its gradients against one ordinary sequence per decision and candidate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_models import DEVICES, KINDS, Plain, device_or_skip, make_ranker, naive_item_vectors, random_catalogue

from llmrec.ranker.losses import catalogue_softmax, listwise_softmax
from llmrec.ranker.packing import pack
from llmrec.ranker.prompts import catalogue_training_request, training_request

Tiny = Callable[[str], str]
PREFIXES = [np.asarray([0, 70, 71], np.int32), np.asarray([0], np.int32)]
HISTORIES = [np.asarray([3, 1, 4, 1, 5]), np.asarray([2, 6])]
DECISIONS = [np.asarray([0, 2, 4]), np.asarray([0, 1])]
NEGATIVES = [np.asarray([[2, 6, 0], [4, 5, 5], [0, 1, 2]]), np.asarray([[0, 1, 3], [3, 4, 5]])]


def tokens_of(catalogue, rows) -> list[int]:
    return [t for row in rows for t in catalogue.event[row].tolist()]


def close(found: torch.Tensor, wanted: torch.Tensor, name: str) -> None:
    scale = float(wanted.abs().max())
    assert scale > 0, f"{name} has no gradient, so comparing it shows nothing"
    assert float((found - wanted).abs().max()) <= 1e-4 * scale, name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_listwise_loss_and_gradients(tiny: Tiny, kind: str, device: str) -> None:
    device_or_skip(device)
    ranker = make_ranker(tiny(kind), "text", "linear").to(device).eval()
    catalogue = random_catalogue(7, 262)
    made = [
        training_request(p, catalogue, h, d, n)
        for p, h, d, n in zip(PREFIXES, HISTORIES, DECISIONS, NEGATIVES, strict=True)
    ]
    scores = ranker(pack(made).to(device))
    positive, negative, usable, start = [], [], [], 0
    for history, decisions, negatives in zip(HISTORIES, DECISIONS, NEGATIVES, strict=True):
        d, n = negatives.shape
        positive.append(scores[start : start + d])
        negative.append(scores[start + d : start + d + d * n].view(d, n))
        usable.append(torch.from_numpy(negatives != history[decisions][:, None]))
        start += d + d * n
    assert start == len(scores)
    loss = listwise_softmax(torch.cat(positive), torch.cat(negative), torch.cat(usable).to(device))
    loss.backward()

    plain = Plain.load(tiny(kind))
    plain.model.to(device)
    weight = ranker.head.weight.detach().clone().requires_grad_()
    wanted = torch.zeros((), device=device)
    for prefix, history, decisions, negatives in zip(PREFIXES, HISTORIES, DECISIONS, NEGATIVES, strict=True):
        for event, drawn in zip(decisions, negatives, strict=True):
            context = [*prefix.tolist(), *tokens_of(catalogue, history[:event])]
            items = [history[event], *(i for i in drawn if i != history[event])]
            naive = torch.stack([plain.states(np.asarray(context + tokens_of(catalogue, [i])))[-1] for i in items])
            wanted = wanted - torch.log_softmax(naive @ weight, 0)[0]
    wanted.backward()

    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
    close(ranker.head.weight.grad, weight.grad, "head")
    found = dict(ranker.backbone.named_parameters())
    for name, parameter in plain.model.named_parameters():
        close(found[name].grad, parameter.grad, name)


@pytest.mark.parametrize("device", DEVICES)
def test_catalogue_loss_and_gradients(tiny: Tiny, device: str) -> None:
    device_or_skip(device)
    ranker = make_ranker(tiny("llama"), "token", "dot")
    bare = random_catalogue(7, 262)
    catalogue = ranker.bind(bare)
    ranker.to(device).eval()
    made = [
        catalogue_training_request(p, catalogue, h, d) for p, h, d in zip(PREFIXES, HISTORIES, DECISIONS, strict=True)
    ]
    true = np.concatenate([h[d] for h, d in zip(HISTORIES, DECISIONS, strict=True)])
    loss = catalogue_softmax(ranker(pack(made).to(device)), torch.from_numpy(true).to(device))
    loss.backward()

    plain = Plain.load(tiny("llama"))
    words = plain.model.get_input_embeddings().weight.detach()
    learned = ranker.items.learned.detach().cpu().clone().requires_grad_()
    bias = ranker.items.bias.detach().cpu().clone().requires_grad_()
    weight = ranker.head.weight.detach().cpu().clone().requires_grad_()
    vectors = naive_item_vectors(bare, words, learned)
    plain = Plain(plain.model, plain.vocabulary, vectors)
    wanted = torch.zeros(())
    for prefix, history, decisions in zip(PREFIXES, HISTORIES, DECISIONS, strict=True):
        for event in decisions:
            user = weight @ plain.states(np.concatenate([prefix, 262 + history[:event]]))[-1]
            cosines = torch.stack([user @ v / (user.norm() * v.norm()) for v in vectors])
            scores = ranker.head.log_scale.detach().cpu().exp() * cosines + bias
            wanted = wanted - torch.log_softmax(scores, 0)[history[event]]
    wanted.backward()

    torch.testing.assert_close(loss.cpu(), wanted, rtol=1e-5, atol=1e-5)
    close(ranker.items.learned.grad.cpu(), learned.grad, "learned")
    close(ranker.items.bias.grad.cpu(), bias.grad, "bias")
    close(ranker.head.weight.grad.cpu(), weight.grad, "head")
    found = dict(ranker.backbone.named_parameters())
    for name, parameter in plain.model.named_parameters():
        close(found[name].grad.cpu(), parameter.grad, name)


def test_listwise_softmax_leaves_unusable_negatives_out() -> None:
    positive, negative = torch.tensor([1.0, 0.0]), torch.tensor([[2.0, 3.0], [0.5, -1.0]])
    usable = torch.tensor([[True, False], [True, True]])
    by_hand = -np.log(np.exp(1) / (np.exp(1) + np.exp(2))) - np.log(1 / (1 + np.exp(0.5) + np.exp(-1)))
    assert float(listwise_softmax(positive, negative, usable)) == pytest.approx(by_hand, rel=1e-6)


def test_catalogue_softmax_by_hand() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.0]])
    by_hand = -np.log(np.exp(2) / (np.exp(1) + np.exp(2) + 1))
    assert float(catalogue_softmax(scores, torch.tensor([1]))) == pytest.approx(by_hand, rel=1e-6)
