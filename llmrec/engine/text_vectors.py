"""The vectors of the items' texts, as embed has left them, for whom compares items by them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from llmrec import assets
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.tables import embeddings
from llmrec.tables.embeddings import TEXT, Description


def text_vectors(layout: Layout, ids: pa.Array, setting: str) -> np.ndarray:
    """float32[n_items, d], mapped from a file and read-only: of length 1, or 0 for an item without text.

    ids: of the catalogue; setting: what asks for them.

    Raises:
        UserError: embed has not run for this catalogue, or without an encoder.
    """
    made = embeddings.open_embeddings(layout.embeddings, assets.cache_directory() / "embeddings")
    if made is None or TEXT not in made.parts or not made.ids.equals(ids):
        raise _none(layout, setting)
    return made.parts[TEXT]


def described(layout: Layout, setting: str) -> Description:
    """What made these vectors.

    Raises:
        UserError: embed has not run, or without an encoder.
    """
    made = embeddings.describe(layout.embeddings)
    if made is None or TEXT not in made.dimensions:
        raise _none(layout, setting)
    return made


def _none(layout: Layout, setting: str) -> UserError:
    return UserError(
        f"{setting}: {layout.embeddings} has no text vectors of the items of {layout.items}; set items.encoder and run "
        "jobs/embed.py"
    )
