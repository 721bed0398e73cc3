"""Each user's nearest items by one engine: a child process.

The items' vectors come from a file. llmrec's engines map it; faiss copies it into its index before the clock starts.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.scale.usage import Usage
from benchmarks.speed.child import tell

Found = tuple[np.ndarray, np.ndarray]  # rows int64[users, top] and scores float32[users, top]
Search = Callable[[np.ndarray, int], Found]


def retrieve_head(items: np.ndarray, threads: int) -> Search:
    """As the ranker's retrieve head looks for candidates."""
    import torch

    from llmrec.ranker.item_encoder import ItemVectors
    from llmrec.ranker.retrieval import nearest

    torch.set_num_threads(threads)
    known = ItemVectors(torch.from_numpy(items)[:, None], torch.zeros(len(items)))
    return lambda users, top: nearest(torch.from_numpy(users), known, None, top)


def recall_sources(items: np.ndarray, threads: int) -> Search:
    """As the sources als and text do."""
    from threadpoolctl import threadpool_limits

    from llmrec.recall.search import nearest

    def search(users: np.ndarray, top: int) -> Found:
        with threadpool_limits(threads):
            found = nearest(users, items, None, top)
        return found.items.values.reshape(len(users), top).astype(np.int64), found.scores.reshape(len(users), top)

    return search


def in_clusters(items: np.ndarray, threads: int) -> Search:
    """As these do with `recall.search.method = clusters`, by its other defaults; on one thread, as a task has."""
    from llmrec.config import Search
    from llmrec.recall import clusters

    wanted = Search(method="clusters")
    with tempfile.TemporaryDirectory() as folder:
        clusters.build(items, wanted, Path(folder) / "index")
        made = clusters.opened(Path(folder) / "index", len(items), wanted)  # stays open when its name is gone

    def search(users: np.ndarray, top: int) -> Found:
        found = made.nearest(users, None, top)
        rows, scores = np.full((len(users), top), -1, np.int64), np.full((len(users), top), -np.inf, np.float32)
        there = np.arange(top) < found.items.lengths[:, None]
        rows[there], scores[there] = found.items.values, found.scores
        return rows, scores

    return search


def faiss_flat(items: np.ndarray, threads: int) -> Search:
    """faiss's exact search."""
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(np.ascontiguousarray(items))

    def search(users: np.ndarray, top: int) -> Found:
        scores, rows = index.search(users, top)
        return rows, scores

    return search


ENGINES: dict[str, Callable[[np.ndarray, int], Search]] = {
    "llmrec, retrieve": retrieve_head, "llmrec, als and text": recall_sources, "llmrec, clusters": in_clusters,
    "faiss IndexFlatIP": faiss_flat,
}  # fmt: skip
APPROXIMATE = "llmrec, clusters"
PEER = "faiss IndexFlatIP"
PACKAGES = {PEER: "faiss-cpu"}


def agreement(one: Found, other: Found, tolerance: float = 1e-5) -> dict[str, float | bool]:
    """equal: at every place scores are the same to within rounding, and so is who is there, but for ties to within
    rounding; same_rows: share of places with the same item."""
    same = one[0] == other[0]
    close = np.abs(one[1] - other[1]) <= tolerance
    # Who stands elsewhere, or in one list alone, must be tied: with a neighbour in the list, or with its last place.
    tied = np.zeros_like(same)
    gap = np.abs(np.diff(one[1], axis=1)) <= tolerance
    tied[:, 1:] |= gap
    tied[:, :-1] |= gap
    tied[:, -1] = True
    return {"equal": bool((close & (same | tied)).all()), "same_rows": float(same.mean())}


def found_of(exact: Found, approximate: Found) -> dict[str, float | None]:
    """equal: not asked; same_rows: share of the exact best that were found, wherever they stand."""
    hits = [len(np.intersect1d(one, other)) for one, other in zip(exact[0], approximate[0], strict=True)]
    return {"equal": None, "same_rows": float(np.sum(hits) / exact[0].size)}


def main() -> None:
    task = json.loads(sys.argv[1])
    items, users = np.load(task["items"], mmap_mode="r"), np.load(task["users"])
    search = ENGINES[task["engine"]](items, task["threads"])
    search(users[:1], task["top"])
    with Usage() as usage:
        rows, scores = search(users, task["top"])
    np.savez(task["found"], rows=rows, scores=scores)
    package = PACKAGES.get(task["engine"])
    tell(usage.figures() | {"version": importlib.metadata.version(package) if package else None})


if __name__ == "__main__":
    main()
