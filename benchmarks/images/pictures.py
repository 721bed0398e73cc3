"""Data sets with a known truth, of which pictures tell it, or tell nothing.

Every item has a look, one of LOOKS: a colour and the way its stripes run, drawn with noise, at a place and a brightness
of its own. Every user likes two looks and takes four of five items from them, the others from all. In `tells` an item's
title says nothing of its look, and its picture shows it; in `noise` the title says it in words, and the picture shows a
look drawn anew, which no user goes by.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

COLOURS = {"red": (1.0, 0.25, 0.2), "green": (0.2, 0.9, 0.3), "blue": (0.25, 0.35, 1.0), "yellow": (0.95, 0.85, 0.2)}
STRIPES = ("upright", "level")
LOOKS = tuple((colour, stripes) for colour in COLOURS for stripes in STRIPES)
LIKED, LOYALTY, EVENTS = 2, 0.8, 8
SIDE = 32
TELLS, NOISE = "tells", "noise"


@dataclass(frozen=True)
class Pictured:
    """A folder as `quality.datasets.read` takes it, whose items have a column `photo`. looks: int64[n_items], by
    ascending id: the truth."""

    folder: Path
    looks: np.ndarray


def write(folder: Path, kind: str, users: int, items: int, seed: int) -> Pictured:
    """Make a data set, `tells` or `noise`, with its pictures under folder/photos."""
    rng = np.random.default_rng(seed)
    looks = rng.integers(len(LOOKS), size=items)
    shown = looks if kind == TELLS else rng.integers(len(LOOKS), size=items)
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    for item, look in enumerate(shown):
        Image.fromarray(picture(LOOKS[look], rng)).save(folder / "photos" / f"{item}.png")
    titles = [
        f"article {item}" if kind == TELLS else f"{LOOKS[look][0]} {LOOKS[look][1]} striped article {item}"
        for item, look in enumerate(looks)
    ]
    photos = [f"{item}.png" for item in range(items)]
    pl.DataFrame({"item_id": np.arange(items), "title": titles, "photo": photos}).write_parquet(
        folder / "items.parquet"
    )
    pl.DataFrame({
        "user_id": np.repeat(np.arange(users), EVENTS), "item_id": np.concatenate(_taken(looks, users, rng)),
        "order": np.tile(np.arange(EVENTS), users),
    }).write_parquet(folder / "interactions.parquet")  # fmt: skip
    return Pictured(folder, looks)


def picture(look: tuple[str, str], rng: np.random.Generator) -> np.ndarray:
    """uint8[SIDE, SIDE, 3]."""
    colour, stripes = look
    along = np.sin(np.arange(SIDE) * 2 * np.pi / 8 + rng.uniform(0, 2 * np.pi))
    lines = np.broadcast_to(along, (SIDE, SIDE)) if stripes == "upright" else np.repeat(along[:, None], SIDE, axis=1)
    light = 0.55 + 0.25 * lines + rng.uniform(-0.1, 0.1)
    noisy = light[..., None] * np.asarray(COLOURS[colour]) + rng.normal(0, 0.1, (SIDE, SIDE, 3))
    found: np.ndarray = (255 * noisy.clip(0, 1)).astype(np.uint8)
    return found


def _taken(looks: np.ndarray, users: int, rng: np.random.Generator) -> list[np.ndarray]:
    """int64[EVENTS] different items of each user."""
    found = []
    for _ in range(users):
        liked = rng.choice(len(LOOKS), LIKED, replace=False)
        fits = np.isin(looks, liked)
        chance = LOYALTY * fits / fits.sum() + (1 - LOYALTY) / len(looks)
        found.append(rng.choice(len(looks), EVENTS, replace=False, p=chance))
    return found


def vision_encoder(directory: Path, seed: int = 0) -> Path:
    """A small vision transformer with random weights and its image processor, as transformers saves them: its vectors
    hold colours and edges, whatever it has not been taught."""
    torch.manual_seed(seed)
    shape = ViTConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, image_size=SIDE,
        patch_size=4,
    )  # fmt: skip
    ViTModel(shape).save_pretrained(directory)
    processor = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": SIDE, "width": SIDE},
        "do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return directory
