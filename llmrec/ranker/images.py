"""Pictures as vectors by a frozen vision encoder, of length one, as texts are by a sentence encoder."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from llmrec.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 100_000_000  # a small file may unfold to more than a machine has


class UnreadableImageError(Exception):
    """The bytes are no picture that can be read; the message says what is wrong, in a few words."""


def decoded(data: bytes) -> Image:
    """A picture in RGB, the right way up; of one that moves, its first frame.

    Raises:
        UnreadableImageError: no picture, a damaged one, or one of more than MAX_PIXELS.
        UserError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise UserError("items.images needs Pillow; install llmrec[images], on every node") from None
    if not data:
        raise UnreadableImageError("an empty file")
    try:
        with Image.open(io.BytesIO(data)) as found:
            if found.width * found.height > MAX_PIXELS:
                raise UnreadableImageError(f"{found.width} x {found.height} pixels, more than {MAX_PIXELS:,}")
            return ImageOps.exif_transpose(found).convert("RGB")
    except UnreadableImageError:
        raise
    except Image.UnidentifiedImageError:
        raise UnreadableImageError("no picture of a known format") from None
    except Exception as error:  # noqa: BLE001 - decoders of damaged files end in whatever they run into
        raise UnreadableImageError(f"damaged: {' '.join(str(error).split())[:120]}") from None


def _blank() -> Image:
    from PIL import Image

    return Image.new("RGB", (64, 64))


class ImageEncoder:
    """A vision model of transformers with its image processor: the vision half of CLIP or SigLIP by its projection,
    another (ViT, DINOv2, ConvNeXt ...) by the mean of its last hidden states over all places.

    In float32 on any device, so that a picture has one vector whatever it is encoded with. dimensions: of its vectors.
    """

    def __init__(self, directory: str, device: torch.device | str = "cpu") -> None:
        """
        Raises:
            UserError: the model or its image processor cannot be loaded, or it takes no pictures.
        """
        self.device = torch.device(device)
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        try:
            # By Pillow also where torchvision is installed: the two resize differently, and so would vectors.
            self.processor = AutoImageProcessor.from_pretrained(directory, backend="pil")
            model: PreTrainedModel = AutoModel.from_pretrained(directory, dtype=torch.float32)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(
                f"items.image_encoder '{directory}' cannot be loaded: {str(error).strip().splitlines()[0]}"
            ) from None
        if not hasattr(model, "get_image_features") and model.main_input_name != "pixel_values":
            raise UserError(f"items.image_encoder '{directory}' is a {type(model).__name__}, which takes no pictures")
        self.model = model.eval().to(self.device)
        # Models name it in several places: one picture tells.
        self.dimensions: int = self.encode([_blank()]).shape[1]

    @torch.inference_mode()
    def encode(self, images: Sequence[Image]) -> np.ndarray:
        """float32[n, d]: unit vectors of some pictures, n >= 1, in one forward pass."""
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"].to(self.device)
        if hasattr(self.model, "get_image_features"):
            found = self.model.get_image_features(pixel_values=pixels)
            vectors = found if isinstance(found, torch.Tensor) else found.pooler_output
        else:
            states = self.model(pixel_values=pixels).last_hidden_state
            # [n, places, d] of a transformer, [n, d, height, width] of a convolutional network
            vectors = states.mean(1) if states.ndim == 3 else states.flatten(2).mean(2)
        unit: np.ndarray = nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()
        return unit
