"""The loss over a mixed batch, against its parts worked out one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import make_features, make_ranker, random_catalogue, shake_items
from torch.nn.functional import cross_entropy, kl_div

from llmrec.config import Train
from llmrec.ranker.examples import Example, Lesson
from llmrec.ranker.losses import catalogue_softmax, distillation
from llmrec.ranker.model import Ranker, score_pair_by_pair
from llmrec.ranker.objective import loss_of, request_of
from llmrec.ranker.packing import WHOLE, pack
from llmrec.ranker.prompts import Catalogue, scoring_request

Tiny = Callable[[str], str]
N = 7
PREFIX = np.asarray([0, 70], np.int32)
LESSON = Lesson(np.asarray([1, 3]), np.asarray([0, 2, 5]), np.asarray([0.5, -1.0, 2.0], np.float32))
TRAIN = Train(horizon_decay=0.5, teacher_weight=3.0, teacher_temperature=2.0)


def example(negatives: int) -> Example:
    history, decisions = np.asarray([4, 0, 6]), np.asarray([0, 2])
    drawn = np.asarray([[1, 2], [3, 5]])[:, :negatives]
    answers = np.asarray([[4, 0], [6, -1]])
    return Example(history, decisions, drawn, np.ones(drawn.shape, bool), answers, np.asarray([2, 6]))


def made(directory: str, items: str, head: str) -> tuple[Ranker, Catalogue]:
    ranker = make_ranker(directory, items, head)
    bare = random_catalogue(N, 262)
    if items == "text":
        return ranker.eval(), bare
    catalogue = ranker.bind(bare, make_features(bare.ids.to_pylist()))
    shake_items(ranker)
    return ranker.eval(), catalogue


def loss(
    ranker: Ranker, catalogue: Catalogue, entries: list[Example | Lesson], decisions: float, lessons: float
) -> float:
    requests = [request_of(entry, PREFIX, catalogue, ranker) for entry in entries]
    with torch.no_grad():
        scores = ranker(pack(requests, multiple=WHOLE))
        return float(loss_of(scores, entries, TRAIN, torch.ones(N, dtype=torch.bool), decisions, lessons))


@pytest.mark.parametrize(("items", "head"), [("text", "linear"), ("token", "retrieve"), ("token", "rank")])
def test_a_lesson_is_the_divergence_of_two_softmaxes(tiny: Tiny, items: str, head: str) -> None:
    ranker, catalogue = made(tiny("llama"), items, head)
    own = score_pair_by_pair(ranker, scoring_request(PREFIX, catalogue, LESSON.history, LESSON.items))
    taught = torch.from_numpy(LESSON.scores)
    wanted = 4.0 * kl_div((own / 2).log_softmax(0), (taught / 2).softmax(0), reduction="sum")
    assert loss(ranker, catalogue, [LESSON], 1.0, 5.0) == pytest.approx(3.0 * float(wanted) / 5.0, rel=1e-4)


@pytest.mark.parametrize(("items", "head"), [("text", "linear"), ("token", "retrieve"), ("token", "rank")])
def test_a_mixed_batch_is_the_sum_of_its_parts(tiny: Tiny, items: str, head: str) -> None:
    ranker, catalogue = made(tiny("llama"), items, head)
    entries: list[Example | Lesson] = [
        example(0 if head == "retrieve" else 2),
        LESSON,
        example(0 if head == "retrieve" else 2),
    ]
    parts = sum(loss(ranker, catalogue, [entry], 4.0, 2.0) for entry in entries)
    assert loss(ranker, catalogue, entries, 4.0, 2.0) == pytest.approx(parts, rel=1e-5)


def test_distillation_is_nothing_for_the_same_order_and_never_negative() -> None:
    scores = torch.tensor([0.3, -1.0, 2.0])
    assert float(distillation(scores + 7, scores, 1.5)) == pytest.approx(0.0, abs=1e-6)
    assert float(distillation(-scores, scores, 1.5)) > 0.1


@pytest.mark.parametrize(("exclude_seen", "had"), [(False, [[], []]), (True, [[2, 6], [2, 4, 0]])])
def test_the_softmax_over_the_catalogue_leaves_out_what_is_no_choice(
    tiny: Tiny, exclude_seen: bool, had: list[list[int]]
) -> None:
    """had: what the user had by each decision and what is not its answer."""
    ranker, catalogue = made(tiny("llama"), "token", "retrieve")
    entry = example(0)
    choices = torch.tensor([True, False, True, True, True, False, True])
    scores = ranker(pack([request_of(entry, PREFIX, catalogue, ranker)]))
    assert scores.catalogue is not None
    users, items, bias = (part.detach() for part in scores.catalogue)
    open_ = (users @ items.T + bias).masked_fill(~choices, float("-inf"))
    for row, closed in zip(open_, had, strict=True):
        row[closed] = float("-inf")
    first = [cross_entropy(open_[0], torch.tensor(row)) for row in (4, 0)]
    wanted = (first[0] + 0.5 * first[1]) / 1.5 + cross_entropy(open_[1], torch.tensor(6))
    train = TRAIN.model_copy(update={"exclude_seen": exclude_seen})
    found = loss_of(scores, [entry], train, choices, 1.0, 1.0).detach()
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize(("items", "head"), [("text", "linear"), ("token", "retrieve"), ("token", "rank")])
def test_a_decision_weighs_as_its_event(tiny: Tiny, items: str, head: str) -> None:
    """Two decisions of one pass against each of them alone."""
    ranker, catalogue = made(tiny("llama"), items, head)
    both = example(0 if head == "retrieve" else 2)
    alone = [
        replace(both, **{name: getattr(both, name)[[d]] for name in ("decisions", "negatives", "usable", "answers")})
        for d in (0, 1)
    ]
    single = [loss(ranker, catalogue, [entry], 1.0, 1.0) for entry in alone]
    weighed = replace(both, weights=np.asarray([0.5, 2.0], np.float32))
    assert weighed.weight == 2.5 and both.weight == 2
    found = loss(ranker, catalogue, [weighed], weighed.weight, 1.0)
    assert found == pytest.approx((0.5 * single[0] + 2.0 * single[1]) / 2.5, rel=1e-4)
    equal = replace(both, weights=np.asarray([3.0, 3.0], np.float32))
    assert loss(ranker, catalogue, [equal], equal.weight, 1.0) == pytest.approx(
        loss(ranker, catalogue, [both], both.weight, 1.0), rel=1e-5
    )


def test_the_gradient_of_weighed_decisions_is_that_of_a_plain_softmax() -> None:
    torch.manual_seed(0)
    users, items, bias = torch.randn(5, 4), torch.randn(N, 4), torch.randn(N)
    answers = torch.tensor([[1, 2], [0, -1], [6, 6], [3, 0], [2, -1]])
    counted = torch.tensor([0.5, 1.0, 3.0, 0.25, 2.0])
    leaves = [t.clone().requires_grad_() for t in (users, items, bias)]
    catalogue_softmax(*leaves, answers, 0.5, None, counted).backward()
    plain = [t.clone().requires_grad_() for t in (users, items, bias)]
    surprise = -(plain[0] @ plain[1].T + plain[2]).log_softmax(1)
    total = torch.zeros(())
    for row, (first, second) in enumerate(answers.tolist()):
        of = surprise[row, first] if second < 0 else (surprise[row, first] + 0.5 * surprise[row, second]) / 1.5
        total = total + counted[row] * of
    total.backward()
    for own, wanted in zip(leaves, plain, strict=True):
        assert own.grad is not None and wanted.grad is not None
        torch.testing.assert_close(own.grad, wanted.grad)
