"""The items' vectors of a ranker, computed once a machine and mapped into the memory of all its processes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from llmrec import assets, storage
from llmrec.layout import Layout
from llmrec.ranker.item_encoder import ItemVectors
from llmrec.ranker.model import Ranker
from llmrec.tables import embeddings

VECTORS, BIAS = "vectors.npy", "bias.npy"


def freeze(ranker: Ranker, place: str, model_version: str, layout: Layout) -> str:
    """Let a bound ranker read its items' vectors from a file of this machine, made by whoever comes first.

    place: where the ranker lies; of each place one version is kept. model_version: of its files. Returns the vectors'
    version; does nothing for items as text, which have none.

    Raises:
        UserError: the cache cannot be written.
    """
    if ranker.items is None:
        return ""
    read = [layout.items, storage.join(layout.embeddings, embeddings.DESCRIPTION)]
    what = [model_version, [storage.manifest(uri) for uri in read if storage.exists(uri)]]
    version = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    mine = hashlib.sha256(json.dumps([layout.root, place]).encode()).hexdigest()[:16]

    def make(folder: Path) -> None:
        assert ranker.items is not None
        shape = (len(ranker.items), ranker.items.k, ranker.items.hidden)
        vectors = np.lib.format.open_memmap(folder / VECTORS, "w+", np.float32, shape)
        biases = []
        for start, some in ranker.items.in_blocks():
            vectors[start : start + len(some.bias)] = some.vectors.cpu().numpy()
            biases.append(some.bias.cpu().numpy())
        vectors.flush()
        np.save(folder / BIAS, np.concatenate(biases))

    folder = storage.made_once(assets.cache_directory() / "vectors" / mine, version, make)
    device = next(ranker.parameters()).device
    vectors, bias = (torch.from_numpy(np.load(folder / name, mmap_mode="c")).to(device) for name in (VECTORS, BIAS))
    ranker.frozen = ItemVectors(vectors, bias)
    return version
