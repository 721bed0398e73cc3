"""What the users of a bucket typed, as vectors: a row for each user of its histories, in their order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from llmrec.schema import USER
from llmrec.tables import buckets, embeddings

VECTOR = "vector"


def write(users: pa.ChunkedArray, vectors: np.ndarray, uri: str) -> None:
    """vectors: float32[n, d], of length 1, or 0 for a user who typed nothing."""
    buckets.write_parquet(pa.table({USER: users, VECTOR: embeddings.as_column(vectors)}), uri)


def read(uri: str) -> np.ndarray:
    """The vectors that `write` was given."""
    return embeddings.as_matrix(buckets.read_parquet(uri, [VECTOR])[VECTOR])
