"""SASRec (Kang and McAuley, ICDM 2018) with cross-entropy over the whole catalogue.

How many epochs: each user's last event is held out, and training stops once NDCG@10 on it has not grown for `patience`
epochs. With `refit` a new model then learns all events for as many epochs; else the best weights are kept.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.quality import protocol
from benchmarks.quality.protocol import Scorer
from benchmarks.quality.splits import Split, without_last
from llmrec.ranker.ragged import Ragged

VERSION = 1
TOKENS = 2048  # in a batch, padding included


class SASRec(nn.Module):
    """Causal self-attention over a user's items; the last state is compared with every item's embedding."""

    def __init__(self, n_items: int, positions: int, width: int, heads: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.items, self.places = nn.Embedding(n_items, width), nn.Embedding(positions, width)
        for table in (self.items, self.places):
            nn.init.normal_(table.weight, std=width**-0.5)
        layer = nn.TransformerEncoderLayer(
            width, heads, width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, blocks, nn.LayerNorm(width), enable_nested_tensor=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """float32[m, length, width] from int64[m, length]; what pads on the right is read by nothing before it."""
        length = rows.shape[1]
        hidden = self.dropout(self.items(rows) + self.places.weight[:length])
        causal = nn.Transformer.generate_square_subsequent_mask(length)
        return self.blocks(hidden, mask=causal, is_causal=True)

    def scores(self, states: torch.Tensor) -> torch.Tensor:
        return states @ self.items.weight.T


def fit(histories: Ragged, n_items: int, settings: Mapping[str, Any], seed: int) -> Scorer:
    """settings: positions, width, heads, blocks, dropout, learning_rate, epochs (at most), patience, refit."""
    held_out = _last_held_out(histories, n_items)
    best, model = -1.0, None
    epochs = 0
    for epoch, current in enumerate(_training(held_out.training, n_items, settings, seed), start=1):
        found = protocol.target_ranks(_scorer(current, settings["positions"]), held_out)
        ndcg = float(protocol.metrics(found)["ndcg@10"].mean()) if len(found) else 0.0
        if ndcg > best:
            best, epochs, model = ndcg, epoch, copy.deepcopy(current)
        if epoch == settings["epochs"] or epoch - epochs == settings["patience"]:
            break
    if settings["refit"]:
        model = next(islice(_training(histories, n_items, settings, seed), epochs - 1, None))
    assert model is not None
    return _scorer(model, settings["positions"])


def _last_held_out(histories: Ragged, n_items: int) -> Split:
    """Of the users who have an item left to be scored from."""
    training = without_last(histories, 1)
    users = np.flatnonzero(training.lengths)
    known = training.take(users)
    target = histories.values[histories.offsets[1:][users] - 1]
    return Split(training, users, known, known, target, np.ones(n_items, bool))


def _training(histories: Ragged, n_items: int, settings: Mapping[str, Any], seed: int) -> Iterator[SASRec]:
    """The model after each epoch, without end."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    positions = settings["positions"]
    model = SASRec(
        n_items, positions, *(settings[name] for name in ("width", "heads", "blocks", "dropout"))
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), settings["learning_rate"], betas=(0.9, 0.98))
    while True:
        model.train()
        windows = [_window(histories[user], positions + 1, rng) for user in np.flatnonzero(histories.lengths > 1)]
        for batch in _batches(windows, rng):
            rows = _padded(batch)
            real = torch.arange(rows.shape[1] - 1) < torch.tensor([len(w) - 1 for w in batch])[:, None]
            loss = functional.cross_entropy(model.scores(model(rows[:, :-1])[real]), rows[:, 1:][real])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield model.eval()


def _window(history: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """A long history gives another part of it every epoch."""
    start = int(rng.integers(0, len(history) - length + 1)) if len(history) > length else 0
    return history[start : start + length]


def _batches(windows: list[np.ndarray], rng: np.random.Generator) -> list[list[np.ndarray]]:
    """Windows of like length together, up to TOKENS each, in random order."""
    lengths = np.array([len(w) for w in windows])
    order = rng.permutation(len(windows))
    order = order[np.argsort(-lengths[order], kind="stable")]
    found, at = [], 0
    while at < len(order):
        count = max(1, TOKENS // int(lengths[order[at]]))
        found.append([windows[i] for i in order[at : at + count]])
        at += count
    return [found[i] for i in rng.permutation(len(found))]


def _padded(windows: list[np.ndarray]) -> torch.Tensor:
    rows = np.zeros((len(windows), max(map(len, windows))), np.int64)
    for i, window in enumerate(windows):
        rows[i, : len(window)] = window
    return torch.from_numpy(rows)


def _scorer(model: SASRec, positions: int) -> Scorer:
    @torch.inference_mode()
    def score(of: Ragged) -> np.ndarray:
        states = torch.zeros(len(of), model.items.embedding_dim)
        longest_first = np.argsort(-np.minimum(of.lengths, positions), kind="stable")
        users, at = longest_first[of.lengths[longest_first] > 0], 0
        while at < len(users):  # who has nothing keeps zeros, and so has every item tied
            count = max(1, TOKENS // min(int(of.lengths[users[at]]), positions))
            some = users[at : at + count]
            windows = [of[user][-positions:] for user in some]
            ends = torch.tensor([len(w) - 1 for w in windows])
            states[some] = model(_padded(windows))[torch.arange(len(some)), ends]
            at += count
        return np.asarray(model.scores(states).numpy())

    return score
