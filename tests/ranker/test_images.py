"""Pictures as vectors: those of plain transformers, and what is no picture says so."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vision import clip_model, convolutional_model, vision_transformer
from transformers import AutoImageProcessor, CLIPModel, ConvNextModel, ViTModel

from llmrec.errors import UserError
from llmrec.ranker import images
from llmrec.ranker.images import ImageEncoder, UnreadableImageError, decoded


def png(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def pictures(n: int = 5) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(40, 30), (16, 80), (33, 33), (128, 20), (8, 8)]
    return [
        Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in (sizes[i % 5] for i in range(n))
    ]


@pytest.mark.parametrize("kind", ["clip", "vit", "convnext"])
def test_vectors_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    make = {"clip": clip_model, "vit": vision_transformer, "convnext": convolutional_model}[kind]
    directory = make(tmp_path / kind)
    encoder = ImageEncoder(str(directory))
    found = encoder.encode(pictures())
    processor = AutoImageProcessor.from_pretrained(directory)
    for image, vector in zip(pictures(), found, strict=True):
        pixels = processor(images=image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            if kind == "clip":
                model = CLIPModel.from_pretrained(directory)
                expected = model.visual_projection(model.vision_model(pixels).pooler_output)[0]
            elif kind == "vit":
                expected = ViTModel.from_pretrained(directory)(pixels).last_hidden_state[0].mean(0)
            else:
                expected = ConvNextModel.from_pretrained(directory)(pixels).last_hidden_state[0].mean((1, 2))
        np.testing.assert_allclose(vector, (expected / expected.norm()).numpy(), atol=1e-5)
    assert found.shape == (5, encoder.dimensions) and found.dtype == np.float32


def test_pictures_come_out_in_colour_and_upright() -> None:
    grey = decoded(png(Image.new("L", (4, 6), 7)))
    assert (grey.mode, grey.size, grey.getpixel((0, 0))) == ("RGB", (4, 6), (7, 7, 7))
    assert decoded(png(Image.new("RGBA", (4, 6), (1, 2, 3, 9)))).getpixel((1, 1)) == (1, 2, 3)
    turned = Image.new("RGB", (4, 6))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    assert decoded(png(turned, "JPEG", exif=exif)).size == (6, 4)
    moving = io.BytesIO()
    Image.new("RGB", (3, 3), (255, 0, 0)).save(
        moving, "GIF", save_all=True, append_images=[Image.new("RGB", (3, 3), (0, 0, 255))]
    )
    assert decoded(moving.getvalue()).getpixel((0, 0)) == (255, 0, 0)


def test_what_is_no_picture_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = png(pictures(1)[0])
    for data, told in (
        (b"", "an empty file"), (b"<html>not found</html>", "no picture of a known format"),
        (whole[: len(whole) // 2], "damaged"), (whole[:60], "damaged"),
    ):  # fmt: skip
        with pytest.raises(UnreadableImageError, match=told):
            decoded(data)
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    with pytest.raises(UnreadableImageError, match="11 x 10 pixels, more than 100"):
        decoded(png(Image.new("RGB", (11, 10))))


def test_a_model_that_takes_no_pictures_is_refused(tiny_encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"items\.image_encoder '.*' cannot be loaded"):
        ImageEncoder(str(tiny_encoder))
    with pytest.raises(UserError, match=r"items\.image_encoder '.*' cannot be loaded"):
        ImageEncoder(str(tmp_path))
    text = vision_transformer(tmp_path / "vit")
    for file in tiny_encoder.glob("*"):
        if file.name != "preprocessor_config.json":
            (text / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="which takes no pictures"):
        ImageEncoder(str(text))
