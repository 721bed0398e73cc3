"""The reasons table: for every published row, a sentence and the evidence that it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from llmrec.ranker.ragged import offsets_of
from llmrec.reasons.evidence import Evidence
from llmrec.reasons.templates import Template
from llmrec.reasons.traits import Trait
from llmrec.schema import HEAD, ITEM, RANK, RELATION, RUN_ID, TAIL, USER

REASON, HISTORY, FACTS, ATTRIBUTES, CONTEXT = "reason", "history", "facts", "attributes", "context"
LINKS = "links"
CONTEXT_INFLUENCE, TEMPLATE, TEMPLATE_VERSION, LANGUAGE = (
    "context_influence", "template", "template_version", "language",
)  # fmt: skip
SOURCE, VIOLATION = "source", "violation"
MODEL, BY_TEMPLATE = "model", "template"  # what a reason's words come from


@dataclass(frozen=True)
class Reason:
    """text: the sentence; violation: why the model's sentence was not taken, None if it was or none was made."""

    text: str
    source: str
    violation: str | None = None


def schema(user: pa.DataType, item: pa.DataType) -> pa.Schema:
    """One row for each row of the run that is explained.

    history: cited items, most influential first; facts, attributes: what each cited item shares with the recommended
    one; links: edges between a cited item and the recommended one; context: what of the request the sentence names.
    """

    def shared(name: str) -> pa.DataType:
        return pa.list_(pa.struct([(ITEM, item), (name, pa.string()), ("value", pa.string())]))

    return pa.schema([
        (USER, user), (RANK, pa.int32()), (ITEM, item), (RUN_ID, pa.string()), (REASON, pa.string()),
        (HISTORY, pa.list_(pa.struct([(ITEM, item), ("influence", pa.float32())]))),
        (FACTS, shared("relation")), (ATTRIBUTES, shared("column")),
        (LINKS, pa.list_(pa.struct([(HEAD, item), (RELATION, pa.string()), (TAIL, item)]))),
        (CONTEXT, pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))),
        (CONTEXT_INFLUENCE, pa.float32()), (SOURCE, pa.string()), (VIOLATION, pa.string()),
        (TEMPLATE, pa.string()), (TEMPLATE_VERSION, pa.string()), (LANGUAGE, pa.string()),
    ])  # fmt: skip


def table(
    rows: pa.Table, evidence: Sequence[Evidence], reasons: Sequence[Reason], template: Template, ids: pa.Array
) -> pa.Table:
    """rows: user_id, rank, item_id and run_id of what is explained, in order; ids: of the catalogue, by row."""
    wanted = schema(rows.schema.field(USER).type, ids.type)
    cited = [c for of in evidence for c in of.cited]
    rows_cited = ids.take(pa.array([c.row for c in cited], pa.int64()))
    influence = pa.array([c.influence for c in cited], pa.float32())
    links = [[link for c in of.cited for link in c.links] for of in evidence]
    flat = [link for of in links for link in of]
    heads, tails = (ids.take(pa.array([getattr(of, end) for of in flat], pa.int64())) for end in (HEAD, TAIL))
    columns = {name: rows[name] for name in (USER, RANK, ITEM, RUN_ID)} | {
        REASON: pa.array([r.text for r in reasons], pa.string()),
        HISTORY: _lists([len(of.cited) for of in evidence], wanted.field(HISTORY).type, [rows_cited, influence]),
        FACTS: _shared([[(c.row, c.facts) for c in of.cited] for of in evidence], wanted.field(FACTS).type, ids),
        ATTRIBUTES: _shared(
            [[(c.row, c.attributes) for c in of.cited] for of in evidence], wanted.field(ATTRIBUTES).type, ids
        ),
        LINKS: _lists(
            [len(of) for of in links], wanted.field(LINKS).type,
            [heads, pa.array([of.name for of in flat], pa.string()), tails],
        ),
        CONTEXT: _lists(
            [len(of.context) for of in evidence], wanted.field(CONTEXT).type,
            [pa.array([t[i] for of in evidence for t in of.context], pa.string()) for i in range(2)],
        ),
        CONTEXT_INFLUENCE: pa.array([of.context_influence for of in evidence], pa.float32()),
        SOURCE: pa.array([r.source for r in reasons], pa.string()),
        VIOLATION: pa.array([r.violation for r in reasons], pa.string()),
    }  # fmt: skip
    told = {TEMPLATE: template.name, TEMPLATE_VERSION: template.version, LANGUAGE: template.language}
    columns |= {name: pa.repeat(pa.scalar(value, pa.string()), len(evidence)) for name, value in told.items()}
    return pa.table([columns[field.name] for field in wanted], schema=wanted)


def _shared(told: Sequence[Sequence[tuple[int, tuple[Trait, ...]]]], kind: pa.DataType, ids: pa.Array) -> pa.Array:
    """told: of each reason, the cited rows with what each shares."""
    flat = [(row, trait) for of in told for row, traits in of for trait in traits]
    rows = ids.take(pa.array([row for row, _ in flat], pa.int64()))
    lengths = [sum(len(traits) for _, traits in of) for of in told]
    return _lists(lengths, kind, [rows, *(pa.array([t[i] for _, t in flat], pa.string()) for i in range(2))])


def _lists(lengths: list[int], kind: pa.DataType, columns: list[pa.Array]) -> pa.Array:
    offsets = pa.array(offsets_of(np.asarray(lengths, np.int64)).astype(np.int32))
    fields = [kind.value_type.field(i) for i in range(kind.value_type.num_fields)]
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, fields=fields), type=kind)
