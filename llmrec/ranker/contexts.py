"""What a decision is made in (place, hour, device ...), as the ranker reads it: at the end of its trunk.

A ranker of texts reads a text after the history, and one of vectors may. Else it has a vector added to the last token
of what it reads: the sum of one learned for each value. They start at zero, so that training starts from the ranker
without contexts, and a value that training has not seen adds nothing. In training, where one trunk serves many
decisions, the end of each is a branch of its own, so that no decision sees another's context; its mask and positions
are those of a trunk that ends there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from llmrec.config import Prompt
from llmrec.errors import UserError
from llmrec.ranker.ragged import Ragged
from llmrec.ranker.special_tokens import as_data
from llmrec.ranker.templates import fill

WEIGHTS_FILE, VALUES_FILE = "contexts.safetensors", "contexts.json"
CODE_BITS = 32  # a token's id is in the bits below, the code of the context that is added to it in those above
CODES = 1 << 31
COMMON = 2  # of a value that fewer events have nothing is learned


@dataclass(frozen=True)
class Contexts:
    """Those of d decisions. tokens: int64, d sequences: tokens that follow what is read, or, where `added`, one each
    that its last token becomes by addition."""

    tokens: Ragged
    added: bool

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: np.ndarray) -> Contexts:
        """Those of some decisions: int64[m]."""
        return Contexts(self.tokens.take(rows), self.added)

    def tails(self, trunk: np.ndarray, ends: np.ndarray) -> tuple[Ragged, np.ndarray]:
        """A trunk that is read up to `ends` (int64[d], above 0) in each context: how it goes on, d sequences of int64
        tokens, and int64[d], the last position of the trunk that is as it was."""
        if not self.added:
            return self.tokens, ends - 1
        return Ragged(trunk[ends - 1] + self.tokens.values, np.arange(len(ends) + 1, dtype=np.int64)), ends - 2

    def ended(self, trunk: np.ndarray) -> np.ndarray:
        """The whole trunk in the one context that there is."""
        tails, (last,) = self.tails(trunk, np.asarray([len(trunk)]))
        return np.concatenate([trunk[: last + 1], tails.values])

    @property
    def more(self) -> np.ndarray:
        """int64[d]: by how many tokens a trunk is longer in each."""
        return np.zeros(len(self), np.int64) if self.added else self.tokens.lengths


def read(
    asked: pa.Table, prompt: Prompt, tokenizer: PreTrainedTokenizerBase, encoder: ContextEncoder | None
) -> Contexts:
    """Contexts as a ranker reads them: by its encoder, or as the text that `prompt.context` makes of each.

    asked: a column string[d] of each context.

    Raises:
        UserError: one gives a text without a token.
    """
    if encoder is not None:
        codes = encoder.codes(asked)
        return Contexts(Ragged(codes << CODE_BITS, np.arange(len(codes) + 1, dtype=np.int64)), added=True)
    texts = pa.array(fill(prompt.context, asked, "context"), pa.string()).dictionary_encode()
    different = as_data(texts.dictionary.to_pylist(), prompt.context, tokenizer)
    tokens = tokenizer(different, add_special_tokens=False)["input_ids"] if different else []
    for text, of in zip(different, tokens, strict=True):
        if not of:
            raise UserError(
                f"prompt.context {prompt.context!r} gives the text {text!r}, which has no token; begin it with a word, "
                "so that there is one where nothing is known"
            )
    found = Ragged.of([of[: prompt.max_context_tokens] for of in tokens])
    found = Ragged(found.values.astype(np.int64), found.offsets)
    return Contexts(found.take(texts.indices.to_numpy().astype(np.int64)), added=False)


class ContextEncoder(nn.Module):
    """From contexts to what is added to the last token that is read.

    A context is one number, its code, whose digits tell the value of each column, 0 for none that is known.
    """

    def __init__(self, values: Mapping[str, Sequence[str]], hidden: int) -> None:
        """values: those of each column that a vector is learned of.

        Raises:
            UserError: they have more combinations than there are codes.
        """
        super().__init__()
        self.values = {name: list(of) for name, of in values.items()}
        sizes = [len(of) + 1 for of in self.values.values()]
        combinations = 1
        for size in sizes:
            combinations *= size
        if combinations > CODES:
            told = ", ".join(f"{name} {len(of):,}" for name, of in self.values.items())
            raise UserError(
                f"prompt.context: the values of its columns ({told}) have more than {CODES:,} combinations; leave one "
                "out, or group the values of one"
            )
        self.sizes = sizes
        self.strides = np.cumprod([1, *sizes])[:-1]  # a column's digit is code // stride % size
        self.table = nn.Parameter(torch.zeros(sum(sizes), hidden))
        self.dropout = 0.0  # share of values that a pass in training does not know

    def codes(self, asked: pa.Table) -> np.ndarray:
        """int64[d]. asked: a column string[d] of each context."""
        total = np.zeros(asked.num_rows, np.int64)
        for stride, (name, values) in zip(self.strides.tolist(), self.values.items(), strict=True):
            column = asked[name]
            column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
            row = pa.compute.index_in(column, pa.array(values, pa.string())).fill_null(-1)
            total += stride * (row.to_numpy(zero_copy_only=False).astype(np.int64) + 1)
        return total

    def forward(self, vectors: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """[T, hidden]: input vectors with what their codes, int64[T], add."""
        where = torch.nonzero(codes)[:, 0]
        some, total = codes[where], vectors.new_zeros(len(where), vectors.shape[1])
        first = 0
        for stride, size in zip(self.strides.tolist(), self.sizes, strict=True):
            digit = some // stride % size
            known = digit > 0
            if self.training and self.dropout:
                known = known & (torch.rand(len(digit), device=digit.device) >= self.dropout)
            total = total + self.table[first + digit] * known[:, None]
            first += size
        return vectors.index_add(0, where, total.to(vectors.dtype))

    @torch.no_grad()
    def extended(self, values: Mapping[str, Sequence[str]]) -> ContextEncoder:
        """An encoder of other values of the same columns, with what this one has learned of those that it knows."""
        found = ContextEncoder(values, self.table.shape[1]).to(self.table.device)
        theirs, ours = 1, 1  # the first row of a column is of no value
        for name, before in self.values.items():
            for row, value in enumerate(found.values[name]):
                if value in before:
                    found.table[ours + row] = self.table[theirs + before.index(value)]
            theirs, ours = theirs + len(before) + 1, ours + len(found.values[name]) + 1
        return found

    def save_pretrained(self, directory: Path) -> None:
        save_file({"table": self.table.detach().float().cpu().contiguous()}, directory / WEIGHTS_FILE)
        (directory / VALUES_FILE).write_text(json.dumps(self.values, indent=1) + "\n")

    @staticmethod
    def from_pretrained(directory: Path) -> ContextEncoder | None:
        """The encoder of a saved ranker, if it has one."""
        if not (directory / VALUES_FILE).exists():
            return None
        weights = load_file(directory / WEIGHTS_FILE)
        encoder = ContextEncoder(json.loads((directory / VALUES_FILE).read_text()), weights["table"].shape[1])
        encoder.load_state_dict(weights)
        return encoder


def split_code(token: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and ids of tokens: int64[T] each."""
    return token >> CODE_BITS, token & ((1 << CODE_BITS) - 1)
