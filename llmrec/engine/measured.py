"""What evaluate measures of a bucket's users: made in a task, sent as one cell, and put together."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy import sparse


@dataclass(frozen=True)
class OfItems:
    """Users as often as their true items are in groups of one grouping of items.

    user: int64[m], among the users; group: int64[m]; values: float64[rankings, metrics, m], by the true items in the
    group alone, or no columns where those are all of the user's, and the values those of the user.
    """

    user: np.ndarray
    group: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """Labelled pairs. user: int64[n], equal for a user's; scores: float32[n], NaN if not scored; label: bool[n]."""

    user: np.ndarray
    scores: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class Measured:
    """Of n users with held-out items.

    names: of the rankings. values: float64[rankings, metrics, n]; ranked: bool[rankings, n], who has a list; shares:
    float64[n, sources + 2, cut-offs, 2] of `sources.found`; brought: int64[sources + 2], users for whom a source has
    candidates; within_reach: float64[n], share of the true items that are among the candidates that the run scored.
    history: int64[n], events; attributes: a column each that users are grouped by; of_items: one a grouping of items.
    exposed, sums: of `beyond`, float64[subsets * cut-offs, n_items] and float64[rankings, subsets, cut-offs, 8], the
    first of ranking after ranking. shown: float64[n, groups], what our ranking shows of each group of items, one
    grouping after another; truth: float64[groups], held-out events of each. predicted, observed: float32[pairs] and
    bool[pairs], published probabilities and whether the item was held out. pairs: labelled ones.
    """

    names: tuple[str, ...]
    values: np.ndarray
    ranked: np.ndarray
    shares: np.ndarray
    brought: np.ndarray
    within_reach: np.ndarray
    history: np.ndarray
    attributes: pa.Table
    of_items: tuple[OfItems, ...]
    exposed: sparse.csr_matrix
    sums: np.ndarray
    shown: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    observed: np.ndarray
    pairs: Pairs

    @property
    def users(self) -> int:
        return self.values.shape[2]

    def values_of(self, grouping: int) -> np.ndarray:
        """float64[rankings, metrics, m] of one grouping of items."""
        of = self.of_items[grouping]
        return of.values if of.values.shape[2] == len(of.user) else self.values[:, :, of.user]


_ARRAYS = (
    "values", "ranked", "shares", "brought", "within_reach", "history", "sums", "shown", "truth", "predicted",
    "observed",
)  # fmt: skip


def to_bytes(measured: Measured) -> tuple[bytes, bytes]:
    """The arrays and the attributes, each as one cell."""
    arrays = {name: getattr(measured, name) for name in _ARRAYS}
    arrays["names"] = np.asarray(measured.names)
    exposed = measured.exposed
    arrays |= {"data": exposed.data, "indices": exposed.indices, "indptr": exposed.indptr, "shape": exposed.shape}
    for i, of in enumerate(measured.of_items):
        arrays |= {f"user{i}": of.user, f"group{i}": of.group, f"values{i}": of.values}
    pairs = measured.pairs
    arrays |= {"pair_user": pairs.user, "pair_scores": pairs.scores, "pair_label": pairs.label}
    file, sink = io.BytesIO(), pa.BufferOutputStream()
    np.savez(file, **arrays)
    with pa.ipc.new_stream(sink, measured.attributes.schema) as stream:
        stream.write_table(measured.attributes)
    return file.getvalue(), sink.getvalue().to_pybytes()


def from_bytes(arrays: bytes, attributes: bytes) -> Measured:
    """The inverse of `to_bytes`."""
    with np.load(io.BytesIO(arrays)) as file:
        of = {name: file[name] for name in file.files}
    groupings = sum(name.startswith("group") for name in of)
    return Measured(
        names=tuple(str(name) for name in of["names"]),
        attributes=pa.ipc.open_stream(attributes).read_all(),
        of_items=tuple(OfItems(of[f"user{i}"], of[f"group{i}"], of[f"values{i}"]) for i in range(groupings)),
        exposed=sparse.csr_matrix((of["data"], of["indices"], of["indptr"]), shape=tuple(of["shape"])),
        pairs=Pairs(of["pair_user"], of["pair_scores"], of["pair_label"]),
        **{name: of[name] for name in _ARRAYS},
    )


def together(parts: Sequence[Measured]) -> Measured:
    """Of the users of all parts, in their order; no user is in two."""
    first = np.cumsum([0, *(part.users for part in parts)])
    pairs = np.cumsum([0, *(int(part.pairs.user.max(initial=-1)) + 1 for part in parts)])
    exposed = parts[0].exposed
    for part in parts[1:]:
        exposed = exposed + part.exposed

    def joined(name: str, axis: int = 0) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts], axis=axis)

    def of_items(i: int) -> OfItems:
        some = [part.of_items[i] for part in parts]
        whole = not any(of.values.shape[2] for of in some)
        return OfItems(
            np.concatenate([of.user + start for of, start in zip(some, first, strict=False)]),
            np.concatenate([of.group for of in some]),
            some[0].values if whole else np.concatenate([part.values_of(i) for part in parts], axis=2),
        )

    return Measured(
        names=parts[0].names,
        values=joined("values", 2),
        ranked=joined("ranked", 1),
        shares=joined("shares"),
        brought=np.sum([part.brought for part in parts], axis=0),
        within_reach=joined("within_reach"),
        history=joined("history"),
        attributes=pa.concat_tables([part.attributes for part in parts], promote_options="permissive"),
        of_items=tuple(of_items(i) for i in range(len(parts[0].of_items))),
        exposed=exposed.tocsr(),
        sums=np.sum([part.sums for part in parts], axis=0),
        shown=joined("shown"),
        truth=np.sum([part.truth for part in parts], axis=0),
        predicted=joined("predicted"),
        observed=joined("observed"),
        pairs=Pairs(
            np.concatenate([part.pairs.user + start for part, start in zip(parts, pairs, strict=False)]),
            np.concatenate([part.pairs.scores for part in parts]),
            np.concatenate([part.pairs.label for part in parts]),
        ),
    )
