"""transformers as usually written: every pair a sequence of its own, a user's pairs in padded batches, SDPA."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel

from benchmarks.speed.request import Scored, UserRequest, spans_alone
from benchmarks.speed.weights import score_vector

PACKAGES = ("torch", "transformers")
BATCH = 32  # pairs


def load(model: str, precision: str, threads: int) -> Callable[[Sequence[UserRequest]], Scored]:
    """A scorer with the model loaded in this precision."""
    backbone = AutoModel.from_pretrained(model, dtype=getattr(torch, precision), attn_implementation="sdpa").eval()
    weight = score_vector(backbone.config.hidden_size)

    def score(requests: Sequence[UserRequest]) -> Scored:
        scores, padding = [], 0
        with torch.inference_mode():
            for request in requests:
                found: list[float] = []
                for start in range(0, len(request.items), BATCH):
                    rows = [torch.tensor(pair) for pair in request.pairs[start : start + BATCH]]
                    lengths = torch.tensor([len(row) for row in rows])
                    ids = pad_sequence(rows, batch_first=True)
                    mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
                    hidden = backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
                    found += (hidden[torch.arange(len(rows)), lengths - 1].float() @ weight).tolist()
                    padding += int((~mask).sum())
                scores.append(found)
        return Scored(scores, spans_alone(requests), padding)

    return score
