"""One training step's forward and backward pass, packed against pair by pair: same loss, same weights, float32.

Run as a child process. The softmax couples a user's candidates, so pair by pair needs all scores before any gradient:
they come from a pass without gradients, which is not timed, and the timed pass then goes through batches of pairs and
sums score * dloss/dscore, whose gradient is that of the loss. Memory stays that of one batch.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from transformers import AutoModel

from benchmarks.speed.child import forget_peak, peak_mb, tell
from benchmarks.speed.ours import as_request, with_score_vector
from benchmarks.speed.request import UserRequest, read_requests
from benchmarks.speed.weights import score_vector
from llmrec.ranker.losses import listwise_softmax
from llmrec.ranker.packing import pack

Gradients = dict[str, torch.Tensor]
BATCH = 10  # pairs; keeps activations of float32 within a few GB


def loss_of(scores: torch.Tensor) -> torch.Tensor:
    """Listwise softmax of one user's scores, float32[N], the first being the true item's."""
    return listwise_softmax(scores[:1], scores[None, 1:], torch.ones(1, len(scores) - 1, dtype=torch.bool))


def packed(model: str, request: UserRequest) -> tuple[float, Gradients]:
    """Seconds, and the gradient of each parameter."""
    ranker = with_score_vector(model).eval()
    batch = pack([as_request(request)])
    start = time.perf_counter()
    loss_of(ranker(batch)).backward()
    return time.perf_counter() - start, _gradients(ranker.backbone, ranker.head.weight)


def pair_by_pair(model: str, request: UserRequest) -> tuple[float, Gradients]:
    """Seconds without the pass that only finds the scores, and the gradient of each parameter."""
    backbone = AutoModel.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa").eval()
    weight = torch.nn.Parameter(score_vector(backbone.config.hidden_size))
    batches = torch.tensor(request.pairs).split(BATCH)

    def score(ids: torch.Tensor) -> torch.Tensor:
        return backbone(input_ids=ids, use_cache=False).last_hidden_state[:, -1] @ weight

    with torch.no_grad():
        scores = torch.cat([score(ids) for ids in batches])
    scores.requires_grad_()
    (slope,) = torch.autograd.grad(loss_of(scores), scores)
    start = time.perf_counter()
    for ids, part in zip(batches, slope.split(BATCH), strict=True):
        (score(ids) * part).sum().backward()
    return time.perf_counter() - start, _gradients(backbone, weight)


def _gradients(backbone: torch.nn.Module, weight: torch.nn.Parameter) -> Gradients:
    found = {name: p.grad for name, p in [*backbone.named_parameters(), ("score", weight)]}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def main() -> None:
    task = json.loads(sys.argv[1])
    (request,) = read_requests(task["requests"])
    packed(task["model"], request.first(8))  # warm-up
    forget_peak()
    ours, first = packed(task["model"], request)
    memory = peak_mb()
    naive, second = pair_by_pair(task["model"], request)
    assert first.keys() == second.keys()
    largest = max(float(g.abs().max()) for g in second.values())
    apart = max(float((first[name] - second[name]).abs().max()) for name in first)
    tell({
        "candidates": len(request.items),
        "packed_seconds": ours,
        "packed_peak_mb": memory,
        "pair_by_pair_seconds": naive,
        "ratio": naive / ours,
        "gradient_difference": apart / largest,
    })  # fmt: skip


if __name__ == "__main__":
    main()
