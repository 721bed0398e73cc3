"""What items have in common: named values, such as attributes or edges of a graph; and edges between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

from llmrec.ranker.ragged import Ragged, offsets_of


class Trait(NamedTuple):
    """name: a relation or a column."""

    name: str
    value: str


class Link(NamedTuple):
    """An edge between two items. head, tail: their rows; name: its relation."""

    head: int
    name: str
    tail: int


@dataclass(frozen=True)
class Links:
    """Edges between n items. of: of each head the ascending rows of its tails; relation: int32[m], which of the
    ascending `names` each of these edges is."""

    of: Ragged
    relation: np.ndarray
    names: list[str]

    @staticmethod
    def build(head: np.ndarray, name: Sequence[str], tail: np.ndarray, items: int) -> Links:
        """head, tail: int64[m], rows below `items`; an edge again counts once, one to its own head not at all."""
        frame = pl.DataFrame({"head": head, "name": name, "tail": tail}, schema_overrides={"name": pl.String}).unique()
        frame = frame.filter(pl.col("head") != pl.col("tail")).sort("head", "tail", "name")
        names = sorted(frame["name"].unique().to_list())
        relation = np.searchsorted(np.asarray(names, object), frame["name"].to_numpy()).astype(np.int32)
        offsets = offsets_of(np.bincount(frame["head"].to_numpy(), minlength=items))
        return Links(Ragged(frame["tail"].to_numpy().astype(np.int32), offsets), relation, names)

    def between(self, one: int, other: int, most: int) -> tuple[Link, ...]:
        """At most so many edges from one item to the other, and then back, by relation."""
        found = [link for head, tail in ((one, other), (other, one)) for link in self._from(head, tail)]
        return tuple(found[:most])

    def _from(self, head: int, tail: int) -> list[Link]:
        start, end = self.of.offsets[head : head + 2].tolist()
        first, after = (start + np.searchsorted(self.of.values[start:end], tail, side) for side in ("left", "right"))
        return [Link(head, self.names[code], tail) for code in self.relation[first:after].tolist()]


@dataclass(frozen=True)
class Traits:
    """Those of n items that at least two of them have. of: the traits of each item, ascending rows of `known`, ordered
    by how few items have one, then by name and value."""

    of: Ragged
    known: list[Trait]

    @staticmethod
    def build(row: np.ndarray, name: Sequence[str], value: Sequence[str], items: int) -> Traits:
        """row: int64[m], each one's item, below `items`; the same trait of an item again counts once."""
        frame = pl.DataFrame({"row": row, "name": name, "value": value}, schema_overrides={"row": pl.Int64}).unique()
        count = frame.group_by("name", "value").len().filter(pl.col("len") > 1)
        known = count.sort("len", "name", "value").with_row_index("code")
        codes = frame.join(known, on=["name", "value"]).sort("row", "code")
        lengths = np.bincount(codes["row"].to_numpy(), minlength=items)
        of = Ragged(codes["code"].to_numpy().astype(np.int32), offsets_of(lengths))
        return Traits(of, [Trait(*pair) for pair in known.select("name", "value").iter_rows()])

    def shared(self, one: int, other: int, most: int) -> tuple[Trait, ...]:
        """The traits that two items share, at most so many, those of fewest items first."""
        both = np.intersect1d(self.of[one], self.of[other], assume_unique=True)
        return tuple(self.known[code] for code in both[:most].tolist())
