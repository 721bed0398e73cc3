"""Sentence vectors equal those of sentence-transformers, and of plain transformers one text at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import POSITIONS, device_or_skip, save_tiny
from transformers import AutoModel, AutoTokenizer

from llmrec import assets
from llmrec.errors import UserError
from llmrec.ranker.sentence import SentenceEncoder

TEXTS = [
    "a short one",
    "",
    "Toy Story (1995) Animation, Children's, Comedy " * 12,
    "naïve 日本語 \U0001f600",
    "w",
    "  \n",
    "the same again",
    "the same again",
    *(" ".join(["word"] * n) for n in (3, 30, 7)),
]
EMPTY = [not text.strip() for text in TEXTS]


def alone(directory: str, text: str, max_tokens: int) -> np.ndarray:
    """One text through plain transformers: no padding, no batch."""
    tokens = AutoTokenizer.from_pretrained(directory)([text], truncation=True, max_length=max_tokens)["input_ids"]
    with torch.no_grad():
        states = AutoModel.from_pretrained(directory)(torch.tensor(tokens)).last_hidden_state[0]
    mean = states.mean(0)
    return (mean / mean.norm()).numpy()


@pytest.mark.parametrize("max_tokens", [8, 96, 256])
def test_vectors_are_those_of_sentence_transformers(max_tokens: int) -> None:
    library = pytest.importorskip("sentence_transformers")
    if not assets.location("all-minilm-l6-v2").is_dir():
        pytest.skip("all-minilm-l6-v2 is not in the cache (llmrec assets get all-minilm-l6-v2)")
    directory = assets.resolve_model("all-minilm-l6-v2")
    theirs = library.SentenceTransformer(directory, device="cpu")
    theirs.max_seq_length = max_tokens
    expected = theirs.encode(TEXTS, batch_size=4, normalize_embeddings=True)
    found = SentenceEncoder(directory, max_tokens).encode(TEXTS, batch_size=3)
    assert found.dtype == np.float32 and found.shape == (len(TEXTS), 384)
    words = [not empty for empty in EMPTY]
    np.testing.assert_allclose(found[words], expected[words], atol=1e-5)
    assert not found[EMPTY].any()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "eurobert", "llama", "smollm2", "qwen3"])
def test_encoders_and_decoders_are_read_as_alone(kind: str, device: str, tmp_path: Path) -> None:
    directory = save_tiny(kind, tmp_path)
    encoder = SentenceEncoder(directory, 24, device_or_skip(device))
    told: list[int] = []
    found = encoder.encode(TEXTS, 4, told.append)
    assert sum(told) == len(TEXTS) and len(told) == math.ceil(len(TEXTS) / 4)
    np.testing.assert_array_equal(found.any(axis=1), ~np.asarray(EMPTY))
    for text, vector, empty in zip(TEXTS, found, EMPTY, strict=True):
        if not empty:
            np.testing.assert_allclose(vector, alone(directory, text, 24), atol=1e-5, err_msg=text)


def test_neither_order_nor_company_counts(tmp_path: Path) -> None:
    encoder = SentenceEncoder(save_tiny("bert", tmp_path), 24)
    found = encoder.encode(TEXTS, 64)
    np.testing.assert_allclose(encoder.encode(TEXTS[::-1], 2), found[::-1], atol=1e-6)
    assert encoder.encode([], 64).shape == (0, encoder.dimensions)


def test_a_text_without_a_token_of_its_own_is_missing(tmp_path: Path) -> None:
    """BERT's tokenizers drop control characters, and put their special tokens around nothing."""
    encoder = SentenceEncoder(save_tiny("bert", tmp_path), 24)
    assert encoder.encode(["\x00\x01", "a"], 2).any(axis=1).tolist() == [False, True]


def test_more_tokens_than_positions_are_refused(tmp_path: Path) -> None:
    for kind in ("bert", "roberta"):
        directory = save_tiny(kind, tmp_path / kind)
        assert SentenceEncoder(directory, POSITIONS).encode(TEXTS, 4).any()
        with pytest.raises(UserError, match=rf"items.max_tokens = {POSITIONS + 1}: .* has {POSITIONS} positions"):
            SentenceEncoder(directory, POSITIONS + 1)


def test_a_directory_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    refused: Any = pytest.raises(UserError, match=str(tmp_path))
    with refused as caught:
        SentenceEncoder(str(tmp_path), 8)
    assert "\n" not in str(caught.value)
