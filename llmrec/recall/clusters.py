"""Approximate search of the nearest items: those of some clusters only, by faiss's inverted file.

Jégou, Douze and Schmid, "Product quantization for nearest neighbor search" (TPAMI 2011), section IV, without the
quantization: vectors are kept as they are, so that who is found has the score of exact search.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from llmrec.config import Search
from llmrec.errors import UserError
from llmrec.ranker.ragged import Ragged, offsets_of
from llmrec.recall.candidates import Candidates, best_unseen, pair_keys

# What k-means looks at of each cluster, and how often: more costs more than it finds.
POINTS_OF_A_CLUSTER, ROUNDS = 64, 10
ITEMS_AT_ONCE, USERS_AT_ONCE = 1 << 16, 1024


@dataclass(frozen=True)
class Clusters:
    """index: of faiss, of n_items rows, those of zeros left out."""

    index: Any
    n_items: int

    def nearest(self, users: np.ndarray, seen: Ragged | None, count: int, least: float = -np.inf) -> Candidates:
        """As `search.nearest`, of the items of each user's nearest clusters alone: fewer than `count` if these hold no
        more. users: float32[m, d]."""
        known = np.flatnonzero(users.any(axis=1))
        past = np.zeros(len(users), np.int64) if seen is None else seen.lengths
        known = known[np.argsort(past[known], kind="stable")]  # who has seen much asks for more, beside his like
        rows, scores = [np.empty(0, np.int64)] * len(users), [np.empty(0, np.float32)] * len(users)
        with threadpool_limits(1):
            for first in range(0, len(known), USERS_AT_ONCE):
                some = known[first : first + USERS_AT_ONCE]
                wanted = min(count + int(past[some[-1]]), self.n_items)
                score, row = self.index.search(np.ascontiguousarray(users[some], np.float32), wanted)
                there = (row >= 0) & (score > least)
                for user, mask, found_rows, found_scores in zip(some, there, row, score, strict=True):
                    rows[user], scores[user] = found_rows[mask], found_scores[mask]
        lists = Ragged(
            np.concatenate([np.empty(0, np.int32), *rows]).astype(np.int32), offsets_of(np.asarray([*map(len, rows)]))
        )
        values = np.concatenate([np.empty(0, np.float32), *scores]).astype(np.float32)
        return best_unseen(lists, values, seen, count, self.n_items)


def build(vectors: np.ndarray, settings: Search, file: Path) -> None:
    """Write the index of items' vectors, float32[n_items, d], which may be mapped from a file.

    The same each time on the same machine: k-means starts from the same points.

    Raises:
        UserError: faiss is not installed.
    """
    library = faiss()
    known = np.flatnonzero(_not_zero(vectors))
    n, dimensions = vectors.shape
    clusters = min(settings.clusters or max(1, round(4 * np.sqrt(n))), max(len(known), 1))
    index = library.IndexIVFFlat(library.IndexFlatIP(dimensions), dimensions, clusters, library.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = ROUNDS, POINTS_OF_A_CLUSTER, 1
    some = known if len(known) else np.zeros(1, np.int64)  # an index must be trained, if on nothing
    rng = np.random.default_rng(0)
    sample = np.sort(rng.choice(some, min(len(some), clusters * POINTS_OF_A_CLUSTER), replace=False))
    with threadpool_limits(1):
        index.train(np.ascontiguousarray(vectors[sample], np.float32))
        for first in range(0, len(known), ITEMS_AT_ONCE):
            rows = known[first : first + ITEMS_AT_ONCE]
            index.add_with_ids(np.ascontiguousarray(vectors[rows], np.float32), rows.astype(np.int64))
    library.write_index(index, str(file))


def opened(file: Path, n_items: int, settings: Search) -> Clusters:
    """What `build` wrote, mapped from its file: processes of one machine share its memory."""
    library = faiss()
    index = library.read_index(str(file), library.IO_FLAG_MMAP | library.IO_FLAG_READ_ONLY)
    index.nprobe = min(settings.probes, index.nlist)
    return Clusters(index, n_items)


def shared(exact: Candidates, found: Candidates, n_items: int) -> int:
    """How many of the exact best were found."""
    return int(np.isin(pair_keys(exact.items, n_items), pair_keys(found.items, n_items)).sum())


def _not_zero(vectors: np.ndarray) -> np.ndarray:
    """bool[n]."""
    blocks = [vectors[a : a + ITEMS_AT_ONCE].any(axis=1) for a in range(0, len(vectors), ITEMS_AT_ONCE)]
    return np.concatenate([np.empty(0, bool), *blocks])


def faiss() -> Any:
    """The library, which is an extra of its own.

    Raises:
        UserError: it is not installed.
    """
    try:
        import faiss as library
    except ImportError:
        raise UserError(
            "recall.search.method = clusters needs faiss; install llmrec[faiss], or set it to exact"
        ) from None
    return library
