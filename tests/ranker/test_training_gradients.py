"""The packed training loss and its gradients against one ordinary sequence per decision and candidate."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_models import (
    DEVICES,
    KINDS,
    Plain,
    bind_items,
    device_or_skip,
    make_ranker,
    naive_item_vectors,
    random_catalogue,
)

from llmrec.config import Train
from llmrec.ranker import losses
from llmrec.ranker.examples import Example
from llmrec.ranker.losses import catalogue_softmax, listwise_softmax
from llmrec.ranker.objective import loss_of
from llmrec.ranker.packing import pack
from llmrec.ranker.prompts import catalogue_training_request, training_request

Tiny = Callable[[str], str]
N_ITEMS = 7
PREFIXES = [np.asarray([0, 70, 71], np.int32), np.asarray([0], np.int32)]
HISTORIES = [np.asarray([3, 1, 4, 1, 5]), np.asarray([2, 6])]
DECISIONS = [np.asarray([0, 2, 4]), np.asarray([0, 1])]
NEGATIVES = [np.asarray([[2, 6, 0], [4, 5, 5], [0, 1, 2]]), np.asarray([[0, 1, 3], [3, 4, 5]])]
EARLIER = np.asarray([2])


def tokens_of(catalogue, rows) -> list[int]:
    return [t for row in rows for t in catalogue.event[row].tolist()]


def item_tokens(rows, per_item: int) -> list[int]:
    return [262 + int(row) * per_item + j for row in rows for j in range(per_item)]


def close(found: torch.Tensor, wanted: torch.Tensor, name: str) -> None:
    scale = float(wanted.abs().max())
    assert scale > 0, f"{name} has no gradient, so comparing it shows nothing"
    off = float((found - wanted).abs().max())
    allowed = 1e-4 if wanted.ndim else 1e-3  # one number is a sum in which much cancels
    assert off <= allowed * scale, f"{name}: off by {off:.2g} of {scale:.2g}"


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
    scores = ranker(pack(made).to(device)).items
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
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_item", [1, 2])
@pytest.mark.parametrize("head", ["retrieve", "rank"])
def test_loss_over_items_and_gradients(tiny: Tiny, head: str, per_item: int, kind: str, device: str) -> None:
    """Decisions against the catalogue, all but item 0, with several right answers; with a rank head against their
    negatives too."""
    device_or_skip(device)
    train = Train(horizon=3, horizon_decay=0.6)
    trained = np.arange(N_ITEMS) != 0
    ranker = make_ranker(tiny(kind), "token", head, per_item=per_item)
    catalogue, features = bind_items(ranker, N_ITEMS, trained)
    plain, encoder, weights = Plain.load(tiny(kind)), copy.deepcopy(ranker.items), copy.deepcopy(ranker.head)
    ranker.to(device).eval()
    made, examples = [], []
    for prefix, history, decisions, negatives in zip(PREFIXES, HISTORIES, DECISIONS, NEGATIVES, strict=True):
        answers = np.asarray([[*history[e : e + 3], -1, -1][:3] for e in decisions])
        drawn = negatives if head == "rank" else negatives[:, :0]
        examples.append(Example(history, decisions, drawn, drawn != history[decisions][:, None], answers, EARLIER))
        made.append(
            training_request(prefix, catalogue, history, decisions, negatives)
            if head == "rank"
            else catalogue_training_request(prefix, catalogue, history, decisions)
        )
    batch = pack(made).to(device)
    scores = ranker(batch)
    assert (scores.items is None) == (head == "retrieve") and len(scores.catalogue.users) == 5
    loss = loss_of(scores, examples, train, torch.from_numpy(trained).to(device), 1.0, 1.0)
    loss.backward()
    if head == "rank":
        with torch.no_grad():
            torch.testing.assert_close(ranker.score(batch), scores.items, rtol=1e-4, atol=1e-4)

    plain = Plain(plain.model, plain.vocabulary, naive_item_vectors(encoder, features))
    retrieve = weights if head == "retrieve" else weights.retrieve
    wanted = torch.zeros(())
    for prefix, history, decisions, negatives in zip(PREFIXES, HISTORIES, DECISIONS, NEGATIVES, strict=True):
        for event, drawn in zip(decisions, negatives, strict=True):
            context = [*prefix.tolist(), *item_tokens(history[:event], per_item)]
            user = plain.states(np.asarray(context))[-1]
            found = torch.stack([plain.items.retrieve(retrieve, user, row) for row in range(N_ITEMS)])
            right = history[event : event + 3]
            closed = {0, *EARLIER, *history[:event]} - set(right)  # item 0 is no choice, nor what the user had
            kept = torch.tensor([row not in closed for row in range(N_ITEMS)])
            chances = torch.log_softmax(found.masked_fill(~kept, float("-inf")), 0)
            share = np.asarray([1, 0.6, 0.36][: len(right)])
            for row, weight in zip(right, share / share.sum(), strict=True):
                wanted = wanted - weight * chances[row]
            if head == "rank":
                rows = [history[event], *(i for i in drawn if i != history[event])]
                ends = [plain.states(np.asarray(context + item_tokens([i], per_item)))[-1] for i in rows]
                each = [found[row] + end @ weights.branch.weight for row, end in zip(rows, ends, strict=True)]
                wanted = wanted - torch.log_softmax(torch.stack(each), 0)[0]
    wanted.backward()

    torch.testing.assert_close(loss.detach().cpu(), wanted.detach(), rtol=1e-5, atol=1e-4)
    for ours, theirs in ((ranker.items, encoder), (ranker.head, weights), (ranker.backbone, plain.model)):
        found = dict(ours.named_parameters())
        assert len(found) == len(list(theirs.parameters()))
        for name, parameter in theirs.named_parameters():
            close(found[name].grad.cpu(), parameter.grad, name)


def test_listwise_softmax_leaves_unusable_negatives_out() -> None:
    positive, negative = torch.tensor([1.0, 0.0]), torch.tensor([[2.0, 3.0], [0.5, -1.0]])
    usable = torch.tensor([[True, False], [True, True]])
    by_hand = -np.log(np.exp(1) / (np.exp(1) + np.exp(2))) - np.log(1 / (1 + np.exp(0.5) + np.exp(-1)))
    assert float(listwise_softmax(positive, negative, usable)) == pytest.approx(by_hand, rel=1e-6)


def over_scores(scores: torch.Tensor, answers: torch.Tensor, decay: float) -> torch.Tensor:
    """The softmax over a catalogue whose scores are given: those of users along each item's own axis."""
    n = scores.shape[1]
    return catalogue_softmax(scores, torch.eye(n), torch.zeros(n), answers, decay)


def test_catalogue_softmax_by_hand() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.0]])
    by_hand = -np.log(np.exp(2) / (np.exp(1) + np.exp(2) + 1))
    assert float(over_scores(scores, torch.tensor([[1]]), 0.7)) == pytest.approx(by_hand, rel=1e-6)


def test_later_answers_weigh_less_and_an_answer_weighs_what_it_would_alone() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.0], [0.5, -1.0, 3.0], [0.0, 1.0, 0.0]])
    surprise = [-np.log(np.exp(row) / np.exp(row).sum()) for row in scores.double().numpy()]
    by_hand = (
        (1 * surprise[0][1] + 0.5 * surprise[0][0] + 0.25 * surprise[0][1]) / 1.75
        + (1 * surprise[1][2] + 0.5 * surprise[1][0]) / 1.5
        + surprise[2][0]
    )
    answers = torch.tensor([[1, 0, 1], [2, 0, -1], [0, -1, -1]])
    assert float(over_scores(scores, answers, 0.5)) == pytest.approx(by_hand, rel=1e-6)
    even = sum(surprise[0][i] for i in (1, 0, 1)) / 3
    assert float(over_scores(scores[:1], answers[:1], 1.0)) == pytest.approx(even, rel=1e-6)


def test_items_that_are_no_choice_count_for_nothing() -> None:
    """Also where a missing answer stands for such an item's row."""
    users, items = torch.tensor([[5.0, 2.0, 0.0, 7.0]], requires_grad=True), torch.eye(4, requires_grad=True)
    closed = torch.tensor([float("-inf"), 0.0, 0.0, float("-inf")], requires_grad=True)
    loss = catalogue_softmax(users, items, closed, torch.tensor([[2, -1]]), 0.7)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(np.log(np.exp(2) + 1), rel=1e-6)
    share = np.exp(2) / (np.exp(2) + 1)
    wanted = [0, share, -share, 0]
    assert users.grad.tolist()[0] == closed.grad.tolist() == pytest.approx(wanted, rel=1e-6)
    torch.testing.assert_close(items.grad, torch.tensor(wanted, dtype=torch.float32)[:, None] * users.detach())


@pytest.mark.parametrize("cells", [1, 64 * 90, 1 << 22])
def test_blocks_of_decisions_have_the_gradient_of_all_at_once(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    monkeypatch.setattr(losses, "CELLS", cells)
    torch.manual_seed(0)
    answers = torch.randint(0, 90, (200, 3))
    answers[::3, 2] = -1
    made = [torch.randn(200, 12), torch.randn(90, 12), torch.randn(90)]
    ours, theirs = ([part.clone().requires_grad_() for part in made] for _ in range(2))
    no_choice = torch.rand(200, 90) < 0.2
    closed = no_choice.nonzero(as_tuple=True)
    found = catalogue_softmax(*ours, answers, 0.6, closed)
    right = torch.zeros(200, 91, dtype=torch.bool).scatter_(1, answers.where(answers >= 0, 90), True)[:, :90]
    chances = (theirs[0] @ theirs[1].T + theirs[2]).masked_fill(no_choice & ~right, float("-inf")).log_softmax(1)
    wanted = torch.zeros(())
    for chance, right in zip(chances, answers, strict=True):
        right = right[right >= 0]
        share = 0.6 ** torch.arange(len(right))
        wanted = wanted - (chance[right] * share / share.sum()).sum()
    torch.testing.assert_close(found, wanted)
    (found * 2).backward()
    (wanted * 2).backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(catalogue_softmax(*ours, answers, 0.6, closed), wanted)
