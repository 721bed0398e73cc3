"""Training objectives over the scores of one true item and its negatives."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy, pad

from llmrec.ranker.packing import WHOLE, whole

CELLS = 1 << 22  # scores of decisions and items at once, 16 MiB


def listwise_softmax(
    positive: torch.Tensor, negative: torch.Tensor, usable: torch.Tensor, counted: torch.Tensor | None = None
) -> torch.Tensor:
    """Softmax cross-entropy of the true item among its candidates, summed over decisions.

    ListNet's top-one likelihood with a single relevant item (Cao et al., 2007, eq. 5).

    positive: float32[D]; negative: float32[D, n]; usable: bool[D, n], false where a negative is the true item itself;
    counted: float32[D], what each decision weighs, None if all weigh 1.
    """
    scores = torch.cat([positive[:, None], negative.masked_fill(~usable, float("-inf"))], dim=1)
    first = torch.zeros(len(positive), dtype=torch.long, device=scores.device)
    if counted is None:
        return cross_entropy(scores, first, reduction="sum")
    return (cross_entropy(scores, first, reduction="none") * counted).sum()


def distillation(scores: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """How far a list's softmax is from a teacher's, KL(teacher || own) * temperature ** 2 (Hinton et al., 2015).

    scores, teacher: float32[N], of the same items.
    """
    own, wanted = ((t / temperature).log_softmax(0) for t in (scores, teacher.float()))
    return temperature**2 * (wanted.exp() * (wanted - own)).sum()


def catalogue_softmax(
    users: torch.Tensor,
    items: torch.Tensor,
    bias: torch.Tensor,
    answers: torch.Tensor,
    decay: float,
    closed: tuple[torch.Tensor, torch.Tensor] | None = None,
    counted: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax cross-entropy over the whole catalogue, summed over decisions.

    A decision's answers weigh 1, decay, decay**2 ..., together 1: what comes a little later is right too, if less so.
    A decision's scores are users @ items.T + bias. They and their gradient are made for some decisions at a time,
    in one go, so that memory does not grow with decisions times items; as the fused linear cross-entropy
    of Liger Kernel (Hsu et al., 2024).

    users: [D, hidden]; items: [n_items, hidden], of the same type, in which they are multiplied; bias:
    float32[n_items], -inf for items that are no choice; answers: int64[D, w] catalogue rows, -1 for none, the first
    always one. closed: int64[N] decisions, ascending, and int64[N] the items that are no choice for them, unless they
    are their answers. counted: float32[D], what each decision weighs, None if all weigh 1.
    """
    weight = (answers >= 0) * decay ** torch.arange(answers.shape[1], device=answers.device)
    weight = weight / weight.sum(1, keepdim=True)
    answers = torch.where(answers < 0, answers[:, :1], answers)
    return _CatalogueSoftmax.apply(users, items, bias, answers, weight, closed, counted)


class _CatalogueSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        users: torch.Tensor,
        items: torch.Tensor,
        bias: torch.Tensor,
        answers: torch.Tensor,
        weight: torch.Tensor,
        closed: tuple[torch.Tensor, torch.Tensor] | None,
        counted: torch.Tensor | None,
    ) -> torch.Tensor:
        wanted = any(ctx.needs_input_grad)
        loss, to_users = bias.new_zeros(()), torch.empty_like(users)
        to_items, to_bias = torch.zeros_like(items, dtype=torch.float32), torch.zeros_like(bias)
        rows = max(1, CELLS // len(items) // WHOLE) * WHOLE
        for here in (slice(start, start + rows) for start in range(0, len(users), rows)):
            count, some = len(users[here]), whole(users[here])
            scores = (some @ items.T)[:count].float() + bias
            own = scores.gather(1, answers[here])
            if closed is not None:
                decisions, these = closed
                part = slice(*torch.searchsorted(decisions, decisions.new_tensor([here.start, here.stop])).tolist())
                scores[decisions[part] - here.start, these[part]] = float("-inf")
                scores.scatter_(1, answers[here], own)
            total = scores.logsumexp(1, keepdim=True)
            surprise = (total - own).masked_fill(weight[here] == 0, 0.0)
            surprise *= weight[here]
            loss += surprise.sum() if counted is None else (surprise.sum(1) * counted[here]).sum()
            if wanted:
                gradient = (scores - total).exp_().scatter_add_(1, answers[here], -weight[here])
                if counted is not None:
                    gradient *= counted[here, None]
                to_bias += gradient.sum(0)
                gradient = pad(gradient.to(users.dtype), (0, 0, 0, len(some) - count))
                to_users[here] = (gradient @ items)[:count]
                to_items += gradient.T @ some
        ctx.save_for_backward(to_users, to_items.to(items.dtype), to_bias)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        to_users, to_items, to_bias = ctx.saved_tensors
        return gradient * to_users, gradient * to_items, gradient * to_bias, None, None, None, None
