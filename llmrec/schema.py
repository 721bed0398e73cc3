"""Column names and arrow schemas of the tables, and the check that names what is wrong with one.

The tables are the contract between stages and with the reader downstream. Ids are int64 or string and stay what they
were: `id_type` carries the choice through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from llmrec.errors import UserError

USER, ITEM, TIMESTAMP, TITLE = "user_id", "item_id", "timestamp", "title"
ITEMS, TIMESTAMPS, RECALL_SCORES, SOURCES = "item_ids", "timestamps", "recall_scores", "sources"
WEIGHTS = "weights"  # in histories: what each event counts
SCORES = "scores"  # in score parts: what ranks each candidate
TRAIN_LENGTH, USERS = "train_length", "users"
CONTEXT, NOW = "context_", "now_"  # and the context's name: of each event, of what is asked for
PART_OF_RECALL = "recall_score_"  # and the source: a column of what it says of a candidate
TEACHER_ITEMS, TEACHER_SCORES = "teacher_items", "teacher_scores"
RANK, SCORE, RANKER_SCORE, PROBABILITY, RECALL_SCORE, SOURCE, MODEL_VERSION, RUN_ID = (
    "rank", "score", "ranker_score", "probability", "recall_score", "source", "model_version", "run_id",
)  # fmt: skip
BUCKET = "bucket"
TEXT, CONTENT_HASH = "text", "content_hash"
HEAD, RELATION, TAIL, WEIGHT = "head", "relation", "tail", "weight"
IDS = {"int64": pa.int64(), "string": pa.string()}  # types of ids, by their names
KEY, REASON, DETAIL, ORIGIN = "key", "reason_code", "detail", "source_file"


def edges(item: pa.DataType) -> pa.Schema:
    """A knowledge graph: one row an edge from an item, its weight above 0."""
    return pa.schema([(HEAD, item), (RELATION, pa.string()), (TAIL, pa.string()), (WEIGHT, pa.float32())])


def histories(user: pa.DataType, item: pa.DataType, context: Sequence[str] = (), weighted: bool = False) -> pa.Schema:
    """One row a user: what the models may see, oldest first.

    The first `train_length` events are for training, the rest for validation; scoring sees them all.
    context: names of what is known of each event, and of the one that is asked for; weighted: with what each event
    counts, above 0.
    """
    return pa.schema([
        (USER, user), (ITEMS, pa.list_(item)), (TIMESTAMPS, pa.list_(pa.int64())), (TRAIN_LENGTH, pa.int32()),
        *([(WEIGHTS, pa.list_(pa.float32()))] if weighted else []),
        *_contexts(context), *((NOW + name, pa.string()) for name in context),
    ])  # fmt: skip


def targets(user: pa.DataType, item: pa.DataType, context: Sequence[str] = ()) -> pa.Schema:
    """One row a user who has held-out events: the truth that only evaluate reads."""
    return pa.schema([(USER, user), (ITEMS, pa.list_(item)), *_contexts(context)])


def _contexts(names: Sequence[str]) -> list[tuple[str, pa.DataType]]:
    return [(CONTEXT + name, pa.list_(pa.string())) for name in names]


def candidates(user: pa.DataType, item: pa.DataType) -> pa.Schema:
    """List form: one row a user, best candidate first."""
    return pa.schema([
        (USER, user), (ITEMS, pa.list_(item)), (RECALL_SCORES, pa.list_(pa.float32())),
        (SOURCES, pa.list_(pa.string())),
    ])  # fmt: skip


def rankings(user: pa.DataType, item: pa.DataType) -> pa.Schema:
    """The product: one row a user and rank, ranks from 1 without gaps.

    score: what ranks, the ranker's own or the fused, not increasing with the rank unless lists were chosen by more than
    it (config.Rerank); probability: with a fusion, that the user's next item is this.
    """
    return pa.schema([
        (USER, user), (RANK, pa.int32()), (ITEM, item), (SCORE, pa.float32()), (RANKER_SCORE, pa.float32()),
        (PROBABILITY, pa.float32()), (RECALL_SCORE, pa.float32()),
        (SOURCE, pa.string()), (MODEL_VERSION, pa.string()), (RUN_ID, pa.string()),
    ])  # fmt: skip


def augmentations(key: str, ids: pa.DataType) -> pa.Schema:
    """Texts that a model wrote, one row an item or user (`key`), and whence they come; template_digest: of all that the
    template says, whatever its name; seed: null if none was used."""
    return pa.schema([
        (key, ids), (TEXT, pa.string()), ("model", pa.string()), ("revision", pa.string()), ("template", pa.string()),
        ("template_version", pa.int32()), ("template_digest", pa.string()), ("seed", pa.int64()),
        (CONTENT_HASH, pa.string()),
    ])  # fmt: skip


QUARANTINE = pa.schema([(KEY, pa.string()), (REASON, pa.string()), (DETAIL, pa.string()), (ORIGIN, pa.string())])


def id_type(schema: pa.Schema, column: str, table: str) -> pa.DataType:
    """The type that ids of this column have in our tables: int64 for integers, string for text.

    Raises:
        UserError: the column is missing or is neither.
    """
    if column not in schema.names:
        raise UserError(
            f"{table}: column '{column}' is missing (it has: {', '.join(schema.names)}); rename it, or in what prepare "
            "reads map it in data.columns"
        )
    found = schema.field(column).type
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_integer(found):
        return pa.int64()
    if pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found):
        return pa.string()
    raise UserError(f"{table}: column '{column}' has type {found}; ids must be integers or strings")


def as_ids(rows: pa.Table, column: str, table: str) -> pa.ChunkedArray:
    """A column of ids as our tables have them.

    Raises:
        UserError: as `id_type`, or an id is beyond int64.
    """
    kind = id_type(rows.schema, column, table)  # which says that the column is missing
    return cast_ids(rows[column], kind, column, table)


def cast_ids(values: Any, kind: pa.DataType, column: str, table: str) -> Any:
    """Ids of an array or a chunked array as `kind` of `id_type`.

    Raises:
        UserError: one is beyond int64.
    """
    try:
        return values.cast(kind)
    except pa.ArrowInvalid:
        raise UserError(f"{table}: column '{column}' holds ids beyond int64; give them as texts") from None


def require(schema: pa.Schema, wanted: Mapping[str, str], table: str) -> None:
    """Check that columns exist and are of a kind ('number', 'text', 'time', 'list', 'anything').

    Raises:
        UserError: naming the first column that is missing or of another kind.
    """
    kinds = {
        "number": lambda t: pa.types.is_integer(t) or pa.types.is_floating(t) or pa.types.is_null(t),
        "text": lambda t: pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t),
        "time": lambda t: pa.types.is_integer(t) or pa.types.is_floating(t) or pa.types.is_timestamp(t),
        "list": lambda t: pa.types.is_list(t) or pa.types.is_large_list(t),
        "anything": lambda t: True,
    }
    for column, kind in wanted.items():
        if column not in schema.names:
            raise UserError(f"{table}: column '{column}' is missing (it has: {', '.join(schema.names)})")
        found = schema.field(column).type
        if not kinds[kind](found):
            hint = "; give unix seconds as numbers, or timestamps" if kind == "time" else ""
            raise UserError(f"{table}: column '{column}' has type {found}, which is no {kind}{hint}")
