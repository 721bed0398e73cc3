"""Each item's nearest others by a sparse product, some items at a time, so that memory goes by these and not by all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from scipy import sparse

from llmrec.ranker.ragged import like_lengths, offsets_of, padded, within

LAST = np.iinfo(np.uint64).max


def best_of_rows(matrix: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
    """float32 like the matrix: of each row the `count` largest of what is stored, which is above 0; ties go to the
    smaller column. Columns of the result are in any order."""
    lengths = np.diff(matrix.indptr)
    columns, data = matrix.indices, matrix.data
    if lengths.max(initial=0) <= count:
        return matrix
    # A float above 0 is ordered as its bits are, so that one number stands for both, the best of a row the least.
    keys = (~data.view(np.uint32)).astype(np.uint64) << np.uint64(32) | columns.astype(np.uint64)
    offsets = matrix.indptr.astype(np.int64)
    kept = within(lengths) < count
    for rows in like_lengths(np.where(lengths > count, lengths, 0)):
        some = padded(keys, offsets, rows, LAST)
        best = np.partition(some, count - 1, axis=1)[:, :count] if count else some[:, :0]
        keys[offsets[rows][:, None] + np.arange(count)] = best
    keys = keys[kept]
    return sparse.csr_matrix(
        (
            (~(keys >> np.uint64(32)).astype(np.uint32)).view(np.float32),
            (keys & np.uint64(0xFFFFFFFF)).astype(columns.dtype),
            offsets_of(np.minimum(lengths, count)),
        ),
        shape=matrix.shape,
    )


def in_blocks(work: np.ndarray, at_once: int) -> Iterator[slice]:
    """Rows one after another that take about so much work together: float or int[n], of each row; one at least."""
    block = np.cumsum(work) // at_once
    starts = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(work)]
    yield from (slice(a, b) for a, b in pairwise(starts) if b > a)


def work_of(left: sparse.csr_matrix, right: sparse.csr_matrix) -> np.ndarray:
    """int64[n]: multiplications that each row of left @ right takes."""
    lengths = np.append(0, np.cumsum(np.diff(right.indptr)[left.indices], dtype=np.int64))
    return np.asarray(np.diff(lengths[left.indptr]))


def by_users(
    items: sparse.csr_matrix, users: sparse.csr_matrix, rows: slice, count: int, shrinkage: float,
    squares: np.ndarray | None = None,
) -> sparse.csr_matrix:  # fmt: skip
    """float32[rows, n_items]: of each of these items the `count` most similar others, as `item_item.neighbours` says.

    items: float32[n_items, users], 1 where a user had it; users: the same transposed. If users' items count something
    else than 1: squares, float[n_items], the sum of an item's squares; co(i, j) is then the sum of products and n_i
    that of squares, so that without shrinkage it is the cosine of the weighted columns.
    """
    co = (items[rows] @ users).tocsr()
    had = np.diff(items.indptr) if squares is None else squares
    return best_of_rows(similarities(co, had, rows.start, shrinkage), count)


def similarities(co: sparse.csr_matrix, users: np.ndarray, first: int, shrinkage: float) -> sparse.csr_matrix:
    """Of items first .. with all items, but themselves: co / (sqrt(n_i * n_j) + shrinkage).

    co: float32[rows, n_items], users who had both; users: [n_items], who had each.
    """
    root = np.sqrt(users.astype(np.float32))
    target = first + np.repeat(np.arange(co.shape[0]), np.diff(co.indptr))
    similarity = (co.data / (root[target] * root[co.indices] + shrinkage)).astype(np.float32)
    return _stored(similarity, co, similarity * (target != co.indices) > 0)


def by_vectors(vectors: sparse.csr_matrix, transposed: sparse.csr_matrix, rows: slice, count: int) -> sparse.csr_matrix:
    """float32[rows, n_items]: of each of these items the `count` others with the largest products above 0.

    vectors: float32[n_items, any], rows of length 1 or 0.
    """
    product = (vectors[rows] @ transposed).tocsr()
    target = rows.start + np.repeat(np.arange(product.shape[0]), np.diff(product.indptr))
    return best_of_rows(_stored(product.data, product, (product.data > 0) & (target != product.indices)), count)


def by_column(blocks: Sequence[sparse.csr_matrix], reach: int) -> sparse.csr_matrix:
    """float32[n_items, n_items]: column j holds the neighbours of item j, the rest is zero.

    blocks: neighbours of some items after others, a row each; reach: of how many columns a row keeps its part at most,
    the largest; ties go to the smaller one.
    """
    rows = sparse.vstack(blocks, format="csr")
    found = best_of_rows(rows.T.tocsr(), reach)
    found.sort_indices()
    return found


def _stored(data: np.ndarray, like: sparse.csr_matrix, kept: np.ndarray) -> sparse.csr_matrix:
    """With these data, of which only some are kept: bool[nnz]."""
    ends = np.append(0, np.cumsum(kept))[like.indptr]
    return sparse.csr_matrix((data[kept], like.indices[kept], ends), shape=like.shape)
