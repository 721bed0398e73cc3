"""sentence-transformers' CrossEncoder: the same weights as a one-label classifier, `predict` on pairs of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from sentence_transformers import CrossEncoder

from benchmarks.speed.request import Scored, UserRequest, spans_alone

PACKAGES = ("sentence-transformers", "transformers", "torch")
BATCH = 32  # pairs; its default


def load(classifier: str, precision: str, threads: int) -> Callable[[Sequence[UserRequest]], Scored]:
    """A scorer with the model loaded in this precision."""
    encoder = CrossEncoder(
        classifier, device="cpu", model_kwargs={"dtype": getattr(torch, precision)}, activation_fn=torch.nn.Identity()
    )

    def score(requests: Sequence[UserRequest]) -> Scored:
        scores = []
        for r in requests:
            pairs = [(r.trunk_text, text) for text in r.item_texts]
            found = encoder.predict(pairs, batch_size=BATCH, show_progress_bar=False, convert_to_tensor=True)
            scores.append(found.float().tolist())
        return Scored(scores, spans_alone(requests))

    return score
