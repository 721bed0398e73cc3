"""Whether a user would be ranked as before: a hash over all that his scores and his rows depend on, but the model."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute
import xxhash

from llmrec.ranker.ragged import Ragged
from llmrec.schema import USER
from llmrec.tables.requests import Work

FINGERPRINT = "fingerprint"


def of_items(ids: pa.Array, event: Ragged, candidate: Ragged, vectors: Sequence[np.ndarray] = ()) -> np.ndarray:
    """uint64[n]: of each item's id and of what the model sees of it, its tokens or its vector.

    ids: arrow[n]; event, candidate: n token sequences; vectors: arrays of n rows, with which the tokens, mere rows
    of the catalogue then, do not count.
    """
    found = np.empty(len(ids), np.uint64)
    for i, item in enumerate(ids.to_pylist()):
        hashed = xxhash.xxh3_64(str(item).encode())
        for part in [of[i] for of in vectors] or (event[i], candidate[i]):
            hashed.update(b"|" + np.ascontiguousarray(part).tobytes())
        found[i] = hashed.intdigest()
    return found


def of_users(work: Work, items: np.ndarray, max_history: int) -> np.ndarray:
    """uint64[users]: of what a user's trunk says of him, of the newest `max_history` items of his history, of what
    he is asked about in, and of his candidates. items: uint64[n] from `of_items`."""
    sources = work.sources if pa.types.is_dictionary(work.sources.type) else work.sources.dictionary_encode()
    names = [xxhash.xxh3_64_intdigest(str(s).encode()) for s in sources.dictionary.to_pylist()] + [0]
    source = np.asarray(names, np.uint64)[sources.indices.fill_null(len(names) - 1).to_numpy()]
    candidate = items[work.candidates.values]
    found = np.empty(len(work.users), np.uint64)
    openings = [None] * len(work.users) if work.openings is None else work.openings.to_pylist()
    contexts = None if work.contexts is None else work.contexts.to_pylist()
    for i, opening in enumerate(openings):
        pairs = slice(work.candidates.offsets[i], work.candidates.offsets[i + 1])
        hashed = xxhash.xxh3_64(b"none" if opening is None else f"text {opening}".encode())
        if contexts is not None:
            hashed.update(json.dumps(contexts[i], sort_keys=True).encode())
        for part in (
            items[work.histories[i][-max_history:]], candidate[pairs], work.recall_scores[pairs],
            source[pairs], *(values[pairs] for values in work.parts.values()),
        ):  # fmt: skip
            hashed.update(len(part).to_bytes(8, "little"))
            hashed.update(np.ascontiguousarray(part).tobytes())
        found[i] = hashed.intdigest()
    return found


def of_rules(
    n: int, bonus: np.ndarray | None, columns: Sequence[pa.Array], vectors: np.ndarray | None
) -> np.ndarray | None:
    """uint64[n]: of what rules know of each item, None where they know nothing; see `requests.Rules`.

    bonus: [n]; columns: lists of texts, n each; vectors: [n, d].
    """
    numbers = [part for part in (bonus, vectors) if part is not None]
    if not numbers and not columns:
        return None
    texts, found = [column.to_pylist() for column in columns], np.empty(n, np.uint64)
    for i in range(n):
        hashed = xxhash.xxh3_64(repr([of[i] for of in texts]).encode("utf-8", "surrogatepass"))
        for part in numbers:
            hashed.update(np.ascontiguousarray(part[i]).tobytes())
        found[i] = hashed.intdigest()
    return found


def with_rules(fingerprints: np.ndarray, work: Work, marks: np.ndarray | None) -> np.ndarray:
    """uint64[users]: of a user's fingerprint and of what `of_rules` made of his candidates."""
    if marks is None:
        return fingerprints
    of_pairs, offsets, found = marks[work.candidates.values], work.candidates.offsets, fingerprints.copy()
    for i, one in enumerate(fingerprints):
        hashed = xxhash.xxh3_64(int(one).to_bytes(8, "little"))
        hashed.update(of_pairs[offsets[i] : offsets[i + 1]].tobytes())
        found[i] = hashed.intdigest()
    return found


def table(users: pa.Array, fingerprints: np.ndarray) -> pa.Table:
    return pa.table({USER: users, FINGERPRINT: pa.array(fingerprints, pa.uint64())})


def unchanged(users: pa.Array, fingerprints: np.ndarray, before: pa.Table) -> np.ndarray:
    """bool[users]: who has the same fingerprint in an earlier run's `table`."""
    place = pa.compute.index_in(users, before[USER].combine_chunks()).fill_null(-1).to_numpy().astype(np.int64)
    if before.num_rows == 0:
        return np.zeros(len(users), bool)
    same = before[FINGERPRINT].to_numpy()[np.maximum(place, 0)] == fingerprints
    return (place >= 0) & same
