"""Items as vectors in the backbone's input space: what their text says plus what training learned of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llmrec.ranker.ragged import Ragged

VECTORS_FILE, IDS_FILE = "items.safetensors", "items.parquet"
LEARNED_STD = 0.02


class ItemVectors(nn.Module):
    """n items as vectors [n, hidden] and biases [n].

    The text part is frozen: the mean of the backbone's token embeddings over the item's text, centred over the training
    catalogue and scaled to a token's usual length. The learned part starts near zero. An item that training has not
    seen keeps its text part, so a cold item is never without a vector.
    """

    def __init__(
        self, ids: pa.Array, text: torch.Tensor, learned: torch.Tensor, bias: torch.Tensor, centre: torch.Tensor
    ) -> None:
        super().__init__()
        self.ids = ids
        self.text: torch.Tensor
        self.centre: torch.Tensor
        self.register_buffer("text", text, persistent=False)
        self.register_buffer("centre", centre, persistent=False)
        self.learned, self.bias = nn.Parameter(learned), nn.Parameter(bias)

    def of(self, rows: torch.Tensor) -> torch.Tensor:
        """Vectors [m, hidden] of these rows (int64[m])."""
        return self.text[rows] + self.learned[rows]

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All vectors [n, hidden] and biases [n]."""
        return self.text + self.learned, self.bias

    @staticmethod
    def of_catalogue(ids: pa.Array, texts: Ragged, words: torch.Tensor, known: ItemVectors | None) -> ItemVectors:
        """Vectors of a catalogue: text parts from `words` ([vocabulary, hidden]), learned parts from `known` by id.

        Without `known`, learned parts are drawn from the global torch generator. The bias of an item that `known` lacks
        is the mean of its biases.
        """
        mean = _mean_embedding(texts, words)
        centre = mean.mean(0) if known is None else known.centre
        text = nn.functional.normalize(mean - centre, dim=-1) * words.norm(dim=-1).mean()
        if known is None:
            learned = torch.randn(text.shape, device=text.device) * LEARNED_STD
            return ItemVectors(ids, text, learned, torch.zeros(len(ids), device=text.device), centre)
        rows = pa.compute.index_in(ids, known.ids).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        there = torch.from_numpy(rows >= 0).to(text.device)
        row = torch.from_numpy(np.maximum(rows, 0)).to(text.device)
        learned = torch.where(there[:, None], known.learned.detach()[row], 0.0)
        bias = torch.where(there, known.bias.detach()[row], known.bias.detach().mean())
        return ItemVectors(ids, text, learned, bias, centre)

    def save_pretrained(self, directory: Path) -> None:
        tensors = {"learned": self.learned, "bias": self.bias, "centre": self.centre}
        save_file({k: v.detach().float().cpu().contiguous() for k, v in tensors.items()}, directory / VECTORS_FILE)
        pq.write_table(pa.table({"item_id": self.ids}), directory / IDS_FILE)

    @staticmethod
    def from_pretrained(directory: Path) -> ItemVectors:
        """Learned parts only; text parts come with the catalogue."""
        tensors = load_file(directory / VECTORS_FILE)
        ids = pq.read_table(directory / IDS_FILE)["item_id"].combine_chunks()
        return ItemVectors(
            ids, torch.empty(0, len(tensors["centre"])), tensors["learned"], tensors["bias"], tensors["centre"]
        )


def _mean_embedding(texts: Ragged, words: torch.Tensor) -> torch.Tensor:
    """float32[n, hidden]: the mean of each text's token embeddings."""
    token = torch.from_numpy(texts.values.astype(np.int64)).to(words.device)
    offsets = torch.from_numpy(texts.offsets[:-1]).to(words.device)
    return nn.functional.embedding_bag(token, words.float(), offsets, mode="mean")
