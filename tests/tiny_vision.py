"""Small random vision encoders with their image processors, saved as transformers does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel, ConvNextConfig, ConvNextModel, PreTrainedModel, ViTConfig, ViTModel

SIDE = 32
SMALL = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": SIDE,
    "patch_size": 8,
}  # fmt: skip


def vision_transformer(directory: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    return _saved(ViTModel(ViTConfig(**SMALL)), "ViTImageProcessor", directory)


def convolutional_model(directory: Path) -> Path:
    torch.manual_seed(0)
    shape = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=SIDE)
    return _saved(ConvNextModel(shape), "ViTImageProcessor", directory)


def clip_model(directory: Path) -> Path:
    """Text and pictures, of 8 dimensions in common."""
    torch.manual_seed(0)
    text = {key: SMALL[key] for key in SMALL if key not in ("image_size", "patch_size")}
    words = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    shape = CLIPConfig(text_config=text | words, vision_config=SMALL, projection_dim=8)
    crop = {"do_center_crop": True, "crop_size": SIDE, "size": {"shortest_edge": SIDE}, "do_convert_rgb": True}
    return _saved(CLIPModel(shape), "CLIPImageProcessor", directory, **crop)


def _saved(model: PreTrainedModel, processor: str, directory: Path, **settings: Any) -> Path:
    model.save_pretrained(directory)
    said = {
        "image_processor_type": processor, "do_resize": True, "size": {"height": SIDE, "width": SIDE}, "resample": 2,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3, **settings,
    }  # fmt: skip
    (directory / "preprocessor_config.json").write_text(json.dumps(said))
    return directory
