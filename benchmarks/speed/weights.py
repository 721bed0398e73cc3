"""One set of weights in every form that the engines read: a model directory, a classifier's directory, GGUF files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file


def score_vector(hidden: int) -> torch.Tensor:
    """float32[hidden]: the score is its product with the last hidden state. Normal(0, 1/hidden), seeded.

    Rounded to bfloat16, like the model's own weights, so that no form of it loses anything.
    """
    values = np.random.default_rng(0).standard_normal(hidden) / np.sqrt(hidden)
    return torch.from_numpy(values).to(torch.bfloat16).float()


def non_embedding_parameters(model: str) -> int:
    tensors = load_file(Path(model) / "model.safetensors")
    return sum(t.numel() for name, t in tensors.items() if "embed_tokens" not in name and "lm_head" not in name)


def write_classifier(model: str, target: Path) -> Path:
    """The model as a sequence classifier with the score vector as its one label."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it would tell that the score vector, set below, is no part of the model
    tokenizer = AutoTokenizer.from_pretrained(model)
    classifier = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=1, pad_token_id=tokenizer.pad_token_id, dtype=torch.bfloat16
    )
    classifier.score.weight.data[0] = score_vector(classifier.config.hidden_size)
    classifier.save_pretrained(target)
    tokenizer.chat_template = None  # sentence-transformers would wrap each pair in it
    tokenizer.save_pretrained(str(target))
    return target


def write_gguf(model: str, precision: str, target: Path) -> Path:
    """The model as a GGUF file of the Llama architecture without a tokeniser.

    The vocabulary head is the score vector in row 0 and zeros elsewhere, so that logit 0 of a token is its score.
    """
    import gguf

    config = json.loads((Path(model) / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    kind = {"float32": gguf.GGMLQuantizationType.F32, "bfloat16": gguf.GGMLQuantizationType.BF16}[precision]
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])

    def add(name: str, tensor: torch.Tensor) -> None:
        values = tensor.float().numpy()
        if tensor.ndim == 1 or precision == "float32":
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)

    tensors: dict[str, Any] = load_file(Path(model) / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("q_proj.weight"):
            tensor = _interleaved(tensor, heads)
        elif name.endswith("k_proj.weight"):
            tensor = _interleaved(tensor, kv_heads)
        if not name.startswith("lm_head"):
            add(names.get_name(name, try_suffixes=(".weight",)) or name, tensor)
    head = torch.zeros(config["vocab_size"], config["hidden_size"])
    head[0] = score_vector(config["hidden_size"])
    add("output.weight", head)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a q or k projection reordered: llama.cpp rotates neighbouring pairs, transformers halves of a head."""
    out, hidden = weight.shape
    return weight.reshape(heads, 2, out // heads // 2, hidden).transpose(1, 2).reshape(out, hidden).contiguous()
