"""The clusters of items' vectors, made once a machine and mapped into the memory of all its processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import numpy as np

from llmrec import assets, config, storage
from llmrec.layout import Layout
from llmrec.recall import clusters
from llmrec.recall.clusters import Clusters

FILE = "index.faiss"


def clustered(
    source: str, n_items: int, vectors: Callable[[], np.ndarray], version: str, settings: config.Search, layout: Layout
) -> Clusters:
    """Clusters of a source's vectors, float32[n_items, d]; whoever comes first makes them, while others wait.

    vectors: asked for by who makes them; version: the same for the same vectors.

    Raises:
        UserError: faiss is not installed, or the cache cannot be written.
    """
    what = hashlib.sha256(json.dumps([version, settings.clusters]).encode()).hexdigest()[:16]
    mine = hashlib.sha256(layout.root.encode()).hexdigest()[:16]
    folder = storage.made_once(
        assets.cache_directory() / "clusters" / mine / source, what,
        lambda work: clusters.build(vectors(), settings, work / FILE),
    )  # fmt: skip
    return clusters.opened(folder / FILE, n_items, settings)
