"""Tiny random models, requests for them, and plain transformers, the reference for packed results."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
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

from llmrec.config import Items, Model, Prompt
from llmrec.ranker.item_encoder import ItemEncoder
from llmrec.ranker.item_features import ItemFeatures
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


def make_ranker(directory: str, items: str, head: str, layers: int | None = None, per_item: int = 1) -> Ranker:
    """A ranker whose head is random, so that every score depends on every direction of the state."""
    model = Model(base=directory, items=items, head=head, layers=layers)
    ranker = Ranker.from_base(model, Prompt(), directory, items=Items(per_item=per_item))
    torch.manual_seed(1)
    if head == "linear":
        torch.nn.init.normal_(ranker.head.weight)
    elif head == "retrieve":
        torch.nn.init.normal_(ranker.head.weight, std=0.5)
    elif head == "rank":
        torch.nn.init.normal_(ranker.head.retrieve.weight, std=0.5)
        torch.nn.init.normal_(ranker.head.branch.weight)
    return ranker


def make_catalogue(texts: list[list[int]], ids: list[int] | None = None) -> Catalogue:
    event = Ragged.of(texts)
    ids = list(range(len(texts))) if ids is None else ids
    return Catalogue(pa.array(ids, pa.int64()), event, event, np.zeros(len(texts), bool))


def random_catalogue(items: int, vocabulary: int, seed: int = 0) -> Catalogue:
    rng = np.random.default_rng(seed)
    return make_catalogue([rng.integers(0, vocabulary, rng.integers(1, 5)).tolist() for _ in range(items)])


def make_features(ids: Iterable[int], seed: int = 0) -> ItemFeatures:
    """Every kind of part, each of which some items lack. What an item has follows from its id alone."""
    ids = list(ids)
    drawn = [np.random.default_rng([seed, i]) for i in ids]
    text, image = (np.stack([d.normal(2, 3, size) for d in drawn]).astype(np.float32) for size in (6, 3))
    has_text, has_image = np.asarray([i % 5 != 1 for i in ids]), np.asarray([i % 4 != 2 for i in ids])
    text[~has_text], image[~has_image] = 0, 0
    genres = [
        [["drama", "war"], ["comedy"], None, ["drama", f"only {i}"], ["war", "comedy", "drama"], [None, "war"]][i % 6]
        for i in ids
    ]
    tags = [[f"only {i}"] if i % 2 else ["old"] for i in ids]
    year, price = (np.asarray([d.uniform(*span) for d in drawn], np.float32) for span in ((1900, 2000), (0, 1)))
    year[[i % 3 == 0 for i in ids]] = np.nan
    price[[i % 6 == 3 for i in ids]] = np.nan
    return ItemFeatures(
        ids=pa.array(ids, pa.int64()),
        vectors={"text": text, "image": image},
        present={"text": has_text, "image": has_image},
        categories={
            name: pa.array(lists, pa.list_(pa.string())) for name, lists in (("genres", genres), ("tags", tags))
        },
        numbers={"year": year, "price": price},
        revisions={"text": "r1"},
    )


def only(features: ItemFeatures, *parts: str) -> ItemFeatures:
    """The features with these parts and no others."""
    left = {
        of: {name: one for name, one in getattr(features, of).items() if name in parts}
        for of in ("vectors", "present", "categories", "numbers")
    }
    return replace(features, **left)


def bind_items(ranker: Ranker, items: int = 7, trained: np.ndarray | None = None) -> tuple[Catalogue, ItemFeatures]:
    """The ranker made ready for items 0, 1, ..., as if training had moved all that it learns of them."""
    features = make_features(range(items))
    bound = ranker.bind(random_catalogue(items, 262), features, trained)
    shake_items(ranker)
    return bound, features


def shake_items(ranker: Ranker) -> None:
    """What is learned of items as if training had moved it."""
    assert ranker.items is not None
    shake_encoder(ranker.items)


def shake_encoder(encoder: ItemEncoder) -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("gate"):
                parameter.uniform_(0.5, 1.5)
            elif name.startswith("norm"):
                parameter.normal_(0.5, 0.2)
            else:
                parameter.normal_(0, 0.3)
        for buffer in (encoder.foretold, encoder.foretold_offset) if encoder.own is not None else ():
            buffer.normal_(0, 0.05)


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
    items: NaiveItems | None = None

    @staticmethod
    def load(directory: str, causal: bool = False) -> Plain:
        kind = AutoModelForCausalLM if causal else AutoModel
        model = kind.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()
        return Plain(model, model.config.vocab_size)

    def states(self, tokens: np.ndarray) -> torch.Tensor:
        """[length, hidden] (or [length, vocabulary] logits of a causal model) of one sequence."""
        sequence = torch.tensor(np.asarray(tokens, np.int64), device=self.model.device)
        if self.items is None:
            out = self.model(input_ids=sequence[None], use_cache=False)
        else:
            words = self.model.get_input_embeddings()
            items = [v for of_item in self.items.inputs for v in of_item]
            vectors = [
                items[t - self.vocabulary] if t >= self.vocabulary else words.weight[t] for t in sequence.tolist()
            ]
            out = self.model(inputs_embeds=torch.stack(vectors)[None], use_cache=False)
        return (out.logits if hasattr(out, "logits") else out.last_hidden_state)[0]

    def branch_ends(self, request: Request) -> list[torch.Tensor]:
        """The last state of each branch as a sequence of its own."""
        return [
            self.states(np.concatenate([request.trunk[: request.attach[i] + 1], request.branches[i]]))[-1]
            for i in range(len(request.branches))
        ]


@dataclass(frozen=True)
class NaiveItems:
    """vectors: [n, k, hidden], what a user is compared with; inputs: as the backbone takes them; bias: [n]."""

    vectors: torch.Tensor
    inputs: torch.Tensor
    bias: torch.Tensor

    def to(self, device: str) -> NaiveItems:
        return NaiveItems(self.vectors.to(device), self.inputs.to(device), self.bias.to(device))

    def retrieve(self, head: Any, state: torch.Tensor, row: int) -> torch.Tensor:
        """exp(s) * cos(W h, mean v) + b."""
        user, item = head.weight @ state, sum(self.vectors[row]) / len(self.vectors[row])
        return head.log_scale.exp().squeeze() * (user @ item) / (user.norm() * item.norm()) + self.bias[row]


def naive_item_vectors(encoder: ItemEncoder, features: ItemFeatures) -> NaiveItems:
    """Items in plain loops: gated networks of what is there, mean of known categories, own vector or what foretells it;
    then a layer norm.

    Reads the encoder's weights on the CPU, with their gradients.
    """
    learned = {one: row for row, one in enumerate(encoder.ids.to_pylist())}
    vectors, inputs, bias = [], [], []
    for i, one in enumerate(features.ids.to_pylist()):
        total = torch.zeros(encoder.k * HIDDEN)
        for name, part in encoder.frozen_parts.items():
            if features.present[name][i]:
                x = torch.tensor([float(v) for v in features.vectors[name][i]])
                total = total + part.gate * network(part.layers, (x - part.centre) * part.scale)
        for name, part in encoder.categories.items():
            words = [w for w in features.categories[name][i].as_py() or [] if w in encoder.plan["categories"][name]]
            if words:
                rows = [part.table.weight[encoder.plan["categories"][name].index(w)] for w in words]
                total = total + part.gate * sum(rows) / len(rows)
        if encoder.numbers is not None and any(
            not np.isnan(features.numbers[name][i]) for name in encoder.plan["numbers"]
        ):
            part, values, flags = encoder.numbers, [], []
            for column, name in enumerate(encoder.plan["numbers"]):
                value = float(features.numbers[name][i])
                flags.append(float(math.isnan(value)))
                usual = (value - float(part.centre[column])) * float(part.scale[column])
                values.append(0.0 if math.isnan(value) else max(-10.0, min(10.0, usual)))
            total = total + part.gate * network(part.layers, torch.tensor([*values, *flags]))
        if encoder.own is not None and one in learned:
            total = total + encoder.own[learned[one]]
        elif encoder.own is not None:
            total = total + encoder.foretold_offset + encoder.foretold.T @ total
        vectors.append([total[j * HIDDEN : (j + 1) * HIDDEN] for j in range(encoder.k)])
        inputs.append([layer_norm(v, encoder.norm) * encoder.scale for v in vectors[-1]])
        bias.append(encoder.bias[learned[one]] if one in learned else sum(encoder.bias) / len(encoder.bias))
    return NaiveItems(
        torch.stack([torch.stack(v) for v in vectors]), torch.stack([torch.stack(v) for v in inputs]), torch.stack(bias)
    )


def network(layers: Any, x: torch.Tensor) -> torch.Tensor:
    inner = layers[0].weight @ x + layers[0].bias
    return layers[2].weight @ (inner * 0.5 * (1 + torch.erf(inner / 2**0.5))) + layers[2].bias


def layer_norm(v: torch.Tensor, norm: Any) -> torch.Tensor:
    off = v - v.sum() / len(v)
    return off / ((off * off).sum() / len(v) + 1e-5).sqrt() * norm.weight + norm.bias


def assert_scores(found: torch.Tensor, wanted: torch.Tensor, rtol: float = 1e-4) -> None:
    """Equal up to rtol of the score's size; scores near zero are held to the scale of all of them."""
    scale = float(wanted.abs().max()) if wanted.numel() else 1.0
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=rtol * max(scale, 1.0) * 0.1)
