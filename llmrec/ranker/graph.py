"""Items as vectors from a knowledge graph: those that share neighbours by the same relations lie close together."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute
from scipy import sparse
from scipy.sparse.linalg import svds

from llmrec.ranker.ragged import Ragged, offsets_of
from llmrec.schema import HEAD, RELATION, TAIL, WEIGHT


def spectral_embedding(edges: pa.Table, ids: pa.Array, dimensions: int) -> np.ndarray:
    """float32[n, d], d at most `dimensions`: unit vectors of items by their edges, zeros for those without any.

    The truncated singular value decomposition of the matrix of items by (relation, tail), each edge's weight divided by
    the roots of its item's and of its tail's total. Tails of one item alone say nothing of likeness and are dropped.
    The same edges in the same order give the same bytes on a machine. d is less where the matrix has fewer rows or
    columns, and 0 if no two items share a tail.

    edges: head (an item id), relation, tail, weight (above 0; the same edge again adds up); ids: arrow[n].
    """
    found = np.zeros((len(ids), 0), np.float32)
    matrix = incidence(edges, ids)
    # What one item alone has goes; that may leave items without an edge, but no tail with fewer items.
    matrix = matrix[:, np.diff(matrix.tocsc().indptr) > 1]
    linked = np.flatnonzero(np.diff(matrix.indptr))
    matrix = matrix[linked]
    d = min(dimensions, min(matrix.shape) - 1)  # as many as the solver gives
    if d < 1:
        return found
    by_item, by_tail = (np.asarray(matrix.sum(axis)).ravel() for axis in (1, 0))
    scaled = (sparse.diags(by_item**-0.5) @ matrix @ sparse.diags(by_tail**-0.5)).tocsr()
    start = np.random.default_rng(0).standard_normal(min(scaled.shape))
    left, values, _ = svds(scaled, k=d, v0=start)
    order = np.argsort(-values, kind="stable")
    left = left[:, order] * values[order]
    left *= np.sign(left[np.abs(left).argmax(axis=0), np.arange(d)])
    norm = np.linalg.norm(left, axis=1, keepdims=True)
    found = np.zeros((len(ids), d), np.float32)
    found[linked] = np.divide(left, norm, out=np.zeros_like(left), where=norm > 0)
    return found


def required(edges: pa.Table, relation: str, ids: pa.Array) -> Ragged:
    """int32: of each item (ids: arrow[n], ascending) the rows of those that it requires, none twice and not itself.

    edges: head (an item id), relation, tail, of which those that are no item's id, as text, do not count.
    """
    edges = edges.filter(pa.compute.equal(edges[RELATION], relation))
    head = pa.compute.index_in(edges[HEAD], ids).combine_chunks()
    tail = pa.compute.index_in(edges[TAIL].cast(pa.string()), ids.cast(pa.string())).combine_chunks()
    known = pa.compute.and_(head.is_valid(), tail.is_valid())
    item, needed = (side.filter(known).to_numpy().astype(np.int64) for side in (head, tail))
    pairs = np.unique((item * len(ids) + needed)[item != needed])
    item, needed = np.divmod(pairs, max(len(ids), 1))
    return Ragged(needed.astype(np.int32), offsets_of(np.bincount(item, minlength=len(ids))))


def items_of_tails(edges: pa.Table, ids: pa.Array) -> np.ndarray:
    """int64[m]: of each edge the row of the item (ids: arrow[n], ascending) whose id, as text, its tail is, else -1.

    A number may be an id or a year, a count, a page: where ids are whole numbers, tails are items only in a relation of
    whose different tails at least half are ids.
    """
    tail = edges[TAIL].combine_chunks().cast(pa.string())
    row = pa.compute.index_in(tail, ids.cast(pa.string())).fill_null(-1).to_numpy().astype(np.int64)
    if not pa.types.is_integer(ids.type) or not len(row):
        return row
    relation = edges[RELATION].combine_chunks().dictionary_encode()
    of, different = relation.indices.to_numpy(), tail.dictionary_encode().indices.to_numpy()
    _, first = np.unique(np.stack([of, different]), axis=1, return_index=True)
    share = np.bincount(of[first], row[first] >= 0, len(relation.dictionary)) / np.bincount(of[first])
    return np.where(share[of] >= 0.5, row, -1)


def incidence(edges: pa.Table, ids: pa.Array) -> sparse.csr_matrix:
    """float64[n, distinct (relation, tail)]: weights; edges whose head is none of the ids do not count."""
    rows = pa.compute.index_in(edges[HEAD], ids)
    known = rows.is_valid()
    edges, rows = edges.filter(known), rows.drop_null().to_numpy()
    relation, tail = (edges[name].combine_chunks().dictionary_encode() for name in (RELATION, TAIL))
    pair = relation.indices.to_numpy().astype(np.int64) * len(tail.dictionary) + tail.indices.to_numpy()
    distinct, columns = np.unique(pair, return_inverse=True)
    weights = edges[WEIGHT].to_numpy().astype(np.float64)
    return sparse.csr_matrix((weights, (rows, columns)), shape=(len(ids), len(distinct)))
