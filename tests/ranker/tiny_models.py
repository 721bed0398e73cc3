"""Tiny random models, requests for them, and plain transformers, the reference for packed results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    BertTokenizer,
    EuroBertConfig,
    EuroBertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaModel,
)

from llmrec.config import Model, Prompt
from llmrec.ranker.model import Ranker
from llmrec.ranker.packing import Request
from llmrec.ranker.prompts import Catalogue
from llmrec.ranker.ragged import Ragged

HIDDEN = 32
POSITIONS = 40
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    # SmolLM2: a Llama with tied embeddings.
    "smollm2": (LlamaConfig, LlamaForCausalLM, {"num_attention_heads": 8, "tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"use_sliding_window": False}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16, "tie_word_embeddings": True}),
}
ENCODERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert": (BertConfig, BertModel, {"max_position_embeddings": POSITIONS}),
    # Its positions are counted from behind the padding token's id, 1.
    "roberta": (RobertaConfig, RobertaModel, {"max_position_embeddings": POSITIONS + 2, "pad_token_id": 1}),
    # Bidirectional, but built like a decoder: rotary positions, norms before.
    "eurobert": (EuroBertConfig, EuroBertModel, {"pad_token_id": 0}),
}
DEVICES = ["cpu", "cuda"]


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and ' yes' and ' no' as one token each."""
    merges = [("Ġ", "y"), ("Ġy", "e"), ("Ġye", "s"), ("Ġ", "n"), ("Ġn", "o")]
    words = ["<s>", *sorted(ByteLevel.alphabet()), *(a + b for a, b in merges)]
    model = Tokenizer(BPE(vocab={w: i for i, w in enumerate(words)}, merges=merges))
    model.pre_tokenizer = ByteLevel(add_prefix_space=False)
    model.decoder = ByteLevelDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>")


def wordpieces() -> BertTokenizer:
    """Letters, each also as the rest of a word, BERT's special tokens, and as many tokens in all as `tokenizer`."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters)]
    words += [f"w{i}" for i in range(262 - len(words))]
    return BertTokenizer(vocab={w: i for i, w in enumerate(words)})


def save_tiny(kind: str, directory: Path) -> str:
    """A model whose weights are large enough for every wrong mask or position to show."""
    config_class, model_class, extra = (KINDS | ENCODERS)[kind]
    words = tokenizer() if kind in KINDS else wordpieces()
    torch.manual_seed(0)
    model = model_class(
        config_class(
            vocab_size=len(words),
            hidden_size=HIDDEN,
            intermediate_size=48,
            num_hidden_layers=2,
            **{"num_attention_heads": 4, "num_key_value_heads": 2, **extra},
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.lower().endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.3)
    model.save_pretrained(directory)
    words.save_pretrained(str(directory))
    return str(directory)


def device_or_skip(device: str) -> str:
    import pytest

    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return device


def make_ranker(directory: str, items: str, head: str, layers: int | None = None) -> Ranker:
    """A ranker whose head is random, so that every score depends on every direction of the state."""
    ranker = Ranker.from_base(Model(base=directory, items=items, head=head, layers=layers), Prompt(), directory)
    torch.manual_seed(1)
    if head == "linear":
        torch.nn.init.normal_(ranker.head.weight)
    elif head == "dot":
        torch.nn.init.normal_(ranker.head.weight, std=0.5)
    return ranker


def make_catalogue(texts: list[list[int]], ids: list[int] | None = None) -> Catalogue:
    event = Ragged.of(texts)
    ids = list(range(len(texts))) if ids is None else ids
    return Catalogue(pa.array(ids, pa.int64()), event, event, np.zeros(len(texts), bool))


def random_catalogue(items: int, vocabulary: int, seed: int = 0) -> Catalogue:
    rng = np.random.default_rng(seed)
    return make_catalogue([rng.integers(0, vocabulary, rng.integers(1, 5)).tolist() for _ in range(items)])


def shake_items(ranker: Ranker) -> None:
    """Learned parts and biases as if training had moved them."""
    assert ranker.items is not None
    torch.manual_seed(2)
    torch.nn.init.normal_(ranker.items.learned, std=0.3)
    torch.nn.init.normal_(ranker.items.bias, std=0.3)


@st.composite
def requests(
    draw: st.DrawFn, tokens: st.SearchStrategy[int], branch: tuple[int, int] = (1, 4), midway: bool = True
) -> Request:
    """Any trunk, any branches, each attached anywhere (or all at the trunk's end)."""
    trunk = draw(st.lists(tokens, min_size=1, max_size=12))
    branches = draw(st.lists(st.lists(tokens, min_size=branch[0], max_size=branch[1]), max_size=5))
    attach = [draw(st.integers(0 if midway else len(trunk) - 1, len(trunk) - 1)) for _ in branches]
    return Request(
        np.asarray(trunk, np.int32), Ragged.of(branches), np.asarray(attach, np.int32), np.empty(0, np.int32)
    )


@dataclass(frozen=True)
class Plain:
    """Transformers' own eager attention over ordinary causal sequences; shares no code with the ranker."""

    model: Any
    vocabulary: int
    item_vectors: torch.Tensor | None = None

    @staticmethod
    def load(directory: str, causal: bool = False, item_vectors: torch.Tensor | None = None) -> Plain:
        kind = AutoModelForCausalLM if causal else AutoModel
        model = kind.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()
        return Plain(model, model.config.vocab_size, item_vectors)

    def states(self, tokens: np.ndarray) -> torch.Tensor:
        """[length, hidden] (or [length, vocabulary] logits of a causal model) of one sequence."""
        sequence = torch.tensor(np.asarray(tokens, np.int64), device=self.model.device)
        if self.item_vectors is None:
            out = self.model(input_ids=sequence[None], use_cache=False)
        else:
            words = self.model.get_input_embeddings()
            vectors = [
                self.item_vectors[t - self.vocabulary] if t >= self.vocabulary else words.weight[t]
                for t in sequence.tolist()
            ]
            out = self.model(inputs_embeds=torch.stack(vectors)[None], use_cache=False)
        return (out.logits if hasattr(out, "logits") else out.last_hidden_state)[0]

    def branch_ends(self, request: Request) -> list[torch.Tensor]:
        """The last state of each branch as a sequence of its own."""
        return [
            self.states(np.concatenate([request.trunk[: request.attach[i] + 1], request.branches[i]]))[-1]
            for i in range(len(request.branches))
        ]


def naive_item_vectors(catalogue: Catalogue, words: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    """Item vectors in plain loops: mean embedding, centred over the catalogue, of a token's usual length."""
    means = torch.stack([
        torch.stack([words[t] for t in catalogue.event[i]]).mean(0) for i in range(len(catalogue.ids))
    ])  # fmt: skip
    centred = means - means.mean(0)
    usual = torch.stack([w.norm() for w in words]).mean()
    return torch.stack([v / v.norm() * usual for v in centred]) + learned


def assert_scores(found: torch.Tensor, wanted: torch.Tensor, rtol: float = 1e-4) -> None:
    """Equal up to rtol of the score's size; scores near zero are held to the scale of all of them."""
    scale = float(wanted.abs().max()) if wanted.numel() else 1.0
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=rtol * max(scale, 1.0) * 0.1)
