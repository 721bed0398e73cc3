"""What is closed to a user: items that he has had, and those that require others which he has not had."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from llmrec.ranker.ragged import Ragged, offsets_of
from llmrec.recall.item_item import interaction_matrix


def closed(histories: Ragged, exclude_seen: bool, requires: Ragged | None) -> Ragged | None:
    """int32: of each user the rows that are no candidates of his, in any order; None if nothing is closed to anybody.

    histories: users' item rows; requires: of each item the rows of those that it requires, None if none does.
    """
    if requires is None:
        return histories if exclude_seen else None
    missing = locked(histories, requires)
    return histories.joined(missing) if exclude_seen else missing


def locked(histories: Ragged, requires: Ragged, among: np.ndarray | None = None) -> Ragged:
    """int32: of each user the rows, ascending, of items of whose requirements he lacks one, as `closed` takes them.

    among: int64[m], ascending, rows that are asked about; None for all.
    """
    n, needed = len(requires), requires.lengths
    asking = np.flatnonzero(needed) if among is None else among[needed[among] > 0]
    of = requires.take(asking)
    wanted = sparse.csr_matrix((np.ones(len(of.values), np.float32), of.values, of.offsets), shape=(len(asking), n))
    met = (interaction_matrix(histories, n) @ wanted.T).toarray()  # how many of an item's requirements a user has had
    user, place = np.nonzero(met < needed[asking])
    return Ragged(asking[place].astype(np.int32), offsets_of(np.bincount(user, minlength=len(histories))))
