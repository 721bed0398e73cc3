"""Items' titles, years and categories as vectors of a sentence encoder, made once per catalogue and encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from benchmarks.quality import cache
from benchmarks.quality.datasets import Dataset
from llmrec.errors import UserError
from llmrec.schema import TITLE

YEAR, CATEGORY = ("year", "release_year"), ("category", "genres")  # the first that an item has


def vectors(dataset: Dataset, encoder: Path, directory: Path) -> tuple[np.ndarray, str]:
    """float32[n_items, any] of length 1, or 0 where there is no title, and a digest of texts and encoder.

    directory: where they are kept.

    Raises:
        UserError: no such encoder, or the items have no titles.
    """
    if not (encoder / "config.json").is_file():
        raise UserError(f"--encoder {encoder}: no config.json there; give a directory of a sentence-transformers model")
    if TITLE not in dataset.items.column_names:
        raise UserError(f"{dataset.name}: items have no column '{TITLE}'; leave title-similarity out of --methods")
    written = texts(dataset.items)
    digest = _digest(written, encoder)
    file = directory / dataset.name / f"titles-{digest}.npz"
    if not file.exists():
        cache.save(file, vectors=_encoded(written, encoder))
    with np.load(file) as kept:
        return kept["vectors"], digest


def texts(items: pa.Table) -> list[str]:
    """`Title (year) category`, as far as an item has them; without a title nothing."""
    columns = {name: items[name].to_pylist() for name in (TITLE, *YEAR, *CATEGORY) if name in items.column_names}
    found = []
    for row in (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)):
        year = next((f"({row[name]})" for name in YEAR if row.get(name)), "")
        category = next((str(row[name]).replace("|", ", ") for name in CATEGORY if row.get(name)), "")
        found.append(" ".join(part for part in (row[TITLE], year, category) if part) if row[TITLE] else "")
    return found


def _encoded(texts: list[str], encoder: Path) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(encoder), device="cpu")
    found = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    found[[not text for text in texts]] = 0
    return np.asarray(found, np.float32)


def _digest(texts: list[str], directory: Path) -> str:
    found = xxhash.xxh3_64("\0".join(texts).encode())
    for file in sorted(f for f in directory.rglob("*") if f.is_file()):
        found.update(str(file.relative_to(directory)).encode())
        found.update(file.read_bytes())
    return str(found.hexdigest())
