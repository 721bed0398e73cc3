"""Tiny models that know the words of some texts, for examples at a small size."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch


def save(texts: Iterable[str], directory: Path) -> tuple[str, str]:
    """A two-layer random Llama and BERT that know the words of these texts: (decoder, encoder) directories."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = sorted({word for text in texts for word in re.findall(r"\w+", text.lower())})
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<s>", "<unk>", *words])}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    form: dict[str, Any] = {
        "vocab_size": len(words) + 2, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }  # fmt: skip
    decoder, encoder = directory / "decoder", directory / "encoder"
    for where in (decoder, encoder):
        PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>").save_pretrained(where)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**form, num_key_value_heads=2)).save_pretrained(decoder)
    BertModel(BertConfig(**form, max_position_embeddings=64)).save_pretrained(encoder)
    return str(decoder), str(encoder)
