"""Which items require which others, from the graph that prepare wrote."""

from __future__ import annotations

import pyarrow.compute

from llmrec import storage
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.ranker.graph import required
from llmrec.ranker.ragged import Ragged
from llmrec.schema import RELATION
from llmrec.tables import buckets


def required_by(relation: str, layout: Layout, ids: pyarrow.Array) -> Ragged | None:
    """Rows of the items that each item requires, None if no relation is named.

    relation: `score.requires`; ids: the catalogue's, ascending.

    Raises:
        UserError: there is no graph, or it has no such relation between items.
    """
    uri = layout.edges
    if not relation:
        return None
    if not storage.exists(uri):
        raise UserError(f"score.requires: {uri} is not there; set data.edges and run jobs/prepare.py")
    edges = buckets.read_parquet(uri)
    there = sorted(pyarrow.compute.unique(edges[RELATION]).to_pylist())
    if relation not in there:
        raise UserError(f"score.requires = {relation}: no such relation in {uri} (it has: {', '.join(there)})")
    found = required(edges, relation, ids)
    if not len(found.values):
        raise UserError(
            f"score.requires = {relation}: no tail of these edges in {uri} is the id of another item; they must be, "
            "as head is"
        )
    return found
