"""What rankings are beside right: how much of the catalogue they show, how new, how diverse and how popular it is.

A part of the users at a time: counts of places by item (`exposure`) and sums over users (`sums`) of parts add up, and
`figures` of the sums are those of all users.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from scipy import sparse
from scipy.stats import rankdata

from llmrec.ranker.ragged import Ragged, offsets_of, within

FIGURES = ("coverage", "gini", "novelty", "diversity", "popularity_percentile", "popularity_lift")
# Columns of `sums`: users with a list, its self-information and popularity percentile; users with a list and a history,
# the popularity of either; users with two comparable items, how far their items are apart.
LISTED, INFORMATION, PERCENTILE, COMPARED, OF_LIST, OF_HISTORY, PAIRED, APART = range(8)
Vectors: TypeAlias = np.ndarray | sparse.csr_matrix


def item_facts(had: np.ndarray, users: int) -> np.ndarray:
    """float64[n_items, 3]: self-information in bits, popularity percentile and popularity of each item.

    Self-information is -log2 of the share of users who had the item (Zhou et al., "Solving the apparent
    diversity-accuracy dilemma of recommender systems", PNAS 107, 2010), of an item that nobody had as if one had;
    popularity is that share; its percentile, above 0 and at most 1, the share of items that are not more popular, ties
    in the middle.

    had: int[n_items], users who had each; users: of how many.
    """
    share = had / max(users, 1)
    return np.stack([-np.log2(np.maximum(had, 1) / max(users, 1)), rankdata(had) / max(len(had), 1), share], axis=1)


def as_matrix(lists: Ragged, n_items: int, weights: np.ndarray | None = None) -> sparse.csr_matrix:
    """float32[users, n_items]: 1 for each item of a list, or its weight (float[total]); nothing for rows below 0."""
    known = lists.values >= 0
    user = np.repeat(np.arange(len(lists)), lists.lengths)[known]
    data = np.ones(len(user), np.float32) if weights is None else weights[known].astype(np.float32)
    return sparse.csr_matrix((data, (user, lists.values[known])), shape=(len(lists), n_items))


def first(lists: Ragged, count: int) -> Ragged:
    """The first `count` of each list."""
    kept = within(lists.lengths) < count
    return Ragged(lists.values[kept], offsets_of(np.minimum(lists.lengths, count)))


def unit_categories(columns: Sequence[pa.Array]) -> sparse.csr_matrix:
    """float32[n_items, values]: a vector of length 1 an item, the same in each value that it has in any column.

    columns: list<string>[n_items] each; null values and empty texts count as none. The cosine of two items is then how
    many values they share over the geometric mean of how many they have; an item without values has 0.
    """
    rows, codes, width = [], [], 0
    for lists in columns:
        values = lists.flatten().dictionary_encode()
        lengths = np.diff(lists.offsets.to_numpy())
        code = values.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        known = (code >= 0) & (code != pa.compute.index(values.dictionary, "").as_py())  # -1 if there is no such text
        rows.append(np.repeat(np.arange(len(lists)), lengths)[known])
        codes.append(code[known] + width)
        width += len(values.dictionary)
    at = np.concatenate(rows), np.concatenate(codes)
    found = sparse.csr_matrix((np.ones(len(at[0]), np.float32), at), shape=(len(columns[0]), width))
    found.data[:] = 1  # a value that is there twice
    length = np.sqrt(np.diff(found.indptr))
    return sparse.csr_matrix(found.multiply((1 / np.maximum(length, 1))[:, None]), dtype=np.float32)


def diversity(lists: Ragged, vectors: Vectors, present: np.ndarray) -> np.ndarray:
    """float64[users]: the mean of 1 - cosine over the pairs of each list's items (Ziegler et al., "Improving
    recommendation lists through topic diversification", WWW 2005, of distances); NaN of fewer than two items.

    lists: rows of vectors, those below 0 left out; vectors: float32[any, d] of length 1; present: bool[any], which
    there are. The sum over pairs is that of all vectors squared less each one's square, so no pair is looked at.
    """
    chosen = as_matrix(lists, len(present))
    count = np.asarray(chosen @ present.astype(np.float32), np.float64)
    total = chosen @ (vectors if sparse.issparse(vectors) else np.asarray(vectors))
    square = total.multiply(total).sum(axis=1) if sparse.issparse(total) else np.einsum("ij,ij->i", total, total)
    pairs = count * (count - 1)
    alike = np.asarray(square, np.float64).ravel() - count
    return 1 - np.divide(alike, pairs, out=np.full(len(lists), np.nan), where=pairs > 0)


def exposure(lists: Ragged, cutoffs: Sequence[int], n_items: int, subsets: np.ndarray) -> sparse.csr_matrix:
    """int64[subsets * cutoffs, n_items]: in how many of some users' first k places each item is.

    subsets: bool[subsets, users].
    """
    some = sparse.csr_matrix(subsets.astype(np.int64))
    counts = [some @ as_matrix(first(lists, k), n_items).astype(np.int64) for k in cutoffs]
    by_subset = np.arange(len(cutoffs) * len(subsets)).reshape(len(cutoffs), -1).T.ravel()
    return sparse.csr_matrix(sparse.vstack(counts, format="csr")[by_subset])


def sums(
    lists: Ragged, cutoffs: Sequence[int], facts: np.ndarray, history: np.ndarray, apart: np.ndarray,
    subsets: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """float64[subsets, cutoffs, 8]: sums over some users of what their first k items are on average.

    facts: of `item_facts`; history: float64[users], mean popularity of a user's history, NaN without one; apart:
    float64[cutoffs, users], `diversity` of the first k, NaN where there is none; subsets: bool[subsets, users].
    """
    found = np.zeros((len(subsets), len(cutoffs), 8))
    for c, k in enumerate(cutoffs):
        chosen = as_matrix(first(lists, k), len(facts))
        count = np.diff(chosen.indptr)
        mean = (chosen @ facts) / np.maximum(count, 1)[:, None]
        listed, paired = count > 0, np.isfinite(apart[c])
        compared = listed & np.isfinite(history)
        columns = [
            listed, mean[:, 0] * listed, mean[:, 1] * listed,
            compared, mean[:, 2] * compared, np.where(compared, history, 0),
            paired, np.where(paired, apart[c], 0),
        ]  # fmt: skip
        found[:, c] = subsets.astype(np.float64) @ np.stack(columns, axis=1).astype(np.float64)
    return found


def figures(exposed: sparse.csr_matrix, summed: np.ndarray, cutoffs: Sequence[int]) -> dict[str, float | None]:
    """Each of FIGURES at each cut-off, None where nothing can be said.

    coverage: share of the catalogue that anyone is shown; gini: of the items' places, 0 if all have as many, near 1 if
    few have all; novelty, diversity, popularity_percentile: means over users with a list; popularity_lift: how much
    more popular users' lists are on average than their histories, as a share of the latter (Abdollahpouri et al.,
    "The connection between popularity bias, calibration, and fairness in recommendation", RecSys 2020).

    exposed: int64[cutoffs, n_items], of `exposure`; summed: float64[cutoffs, 8], of `sums`.
    """
    found: dict[str, float | None] = {}
    for c, k in enumerate(cutoffs):
        places, of = exposed[[c]].data, summed[c]
        values = {
            "coverage": np.count_nonzero(places) / max(exposed.shape[1], 1),
            "gini": gini(places, exposed.shape[1]),
            "novelty": ratio(of[INFORMATION], of[LISTED]),
            "diversity": ratio(of[APART], of[PAIRED]),
            "popularity_percentile": ratio(of[PERCENTILE], of[LISTED]),
            "popularity_lift": ratio(of[OF_LIST] - of[OF_HISTORY], of[OF_HISTORY]),
        }
        found |= {f"{name}@{k}": value for name, value in values.items()}
    return found


def gini(counts: np.ndarray, n: int) -> float | None:
    """The Gini index of n numbers of which all but `counts` are 0: half their mean distance over their mean."""
    total = counts.sum()
    if not total:
        return None
    place = np.arange(n - len(counts), n) + 1
    return float(((2 * place - n - 1) * np.sort(counts)).sum() / (n * total))


def ratio(value: float, of: float) -> float | None:
    """None where nothing can be said: of nothing."""
    return float(value / of) if of else None
