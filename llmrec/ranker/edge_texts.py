"""Items' edges of a knowledge graph as text, for the placeholders {edges} and {edges:relation} of prompt.item."""

from __future__ import annotations

import polars as pl
import pyarrow as pa

from llmrec.errors import UserError
from llmrec.ranker.templates import placeholders
from llmrec.schema import HEAD, ITEM, RELATION, TAIL, WEIGHT

EDGES = "edges"
OF_RELATION = f"{EDGES}:"


def wanted(template: str) -> list[str]:
    """The placeholders for edges in a template."""
    return [name for name in dict.fromkeys(placeholders(template)) if name == EDGES or name.startswith(OF_RELATION)]


def with_edges(items: pa.Table, template: str, edges: pa.Table, most: int) -> pa.Table:
    """The items with a column of text for each placeholder of edges: `edges`, as in "concept: statistics, biology;
    level: beginner", and `edges:<relation>`, the tails alone.

    Of an item's different edges (of a relation, for one alone) the `most` heaviest are told, the same edge again adding
    to its weight, ties by relation and tail; relations by name, their tails in that order. An item without such an edge
    has an empty text. edges: head, relation, tail, weight.

    Raises:
        UserError: no edge has the relation that a placeholder names.
    """
    frame = pl.from_arrow(edges)
    assert isinstance(frame, pl.DataFrame)
    frame = frame.group_by(HEAD, RELATION, TAIL).agg(pl.col(WEIGHT).cast(pl.Float64).sort().sum())
    frame = frame.sort([HEAD, WEIGHT, RELATION, TAIL], descending=[False, True, False, False])
    for name in wanted(template):
        told = frame
        if name != EDGES:
            told = frame.filter(pl.col(RELATION) == name.removeprefix(OF_RELATION))
            if told.is_empty():
                there = ", ".join(frame[RELATION].unique().sort().to_list()) or "none"
                raise UserError(f"prompt.item uses '{{{name}}}', but no edge has that relation (there are: {there})")
        told = told.group_by(HEAD, maintain_order=True).head(most)
        texts = told.group_by(HEAD, RELATION, maintain_order=True).agg(pl.col(TAIL).str.join(", ").alias(name))
        if name == EDGES:
            texts = texts.sort(HEAD, RELATION).with_columns(pl.format("{}: {}", RELATION, name).alias(name))
        texts = texts.group_by(HEAD, maintain_order=True).agg(pl.col(name).str.join("; "))
        ids = pl.DataFrame({HEAD: pl.Series(values=items[ITEM])})
        column = ids.join(texts, on=HEAD, how="left", maintain_order="left")[name].fill_null("")
        items = items.append_column(name, column.to_arrow().cast(pa.string()))
    return items
