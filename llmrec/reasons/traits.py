"""What items have in common: named values, such as attributes or the edges of a knowledge graph."""

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
