"""One bucket's scoring work: candidates joined to histories, judged row by row, and ranked. Plain arrow and numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec import schema
from llmrec.errors import UserError
from llmrec.ranker.ragged import Ragged, offsets_of, within
from llmrec.schema import (
    DETAIL,
    ITEM,
    ITEMS,
    KEY,
    MODEL_VERSION,
    ORIGIN,
    QUARANTINE,
    RANK,
    REASON,
    RECALL_SCORE,
    RECALL_SCORES,
    RUN_ID,
    SCORE,
    SOURCE,
    SOURCES,
    USER,
)  # fmt: skip
from llmrec.tables.histories import flatten, item_rows, keep


@dataclass(frozen=True)
class Rules:
    """ids: the catalogue's item ids, ascending; blocked: bool[n_items]; limit: candidates kept per user."""

    ids: pa.Array
    blocked: np.ndarray
    exclude_seen: bool
    limit: int


@dataclass(frozen=True)
class Work:
    """Users with at least one candidate to score, by ascending id.

    users: arrow[n]; histories, candidates: catalogue rows per user; recall_scores: float32[total];
    sources: arrow[total].
    counts: pairs in = to score + seen + blocked + over_limit + quarantined; users in.
    quarantine: the rows set aside.
    """

    users: pa.Array
    histories: Ragged
    candidates: Ragged
    recall_scores: np.ndarray
    sources: pa.Array
    counts: dict[str, int]
    quarantine: pa.Table


def candidates_in_long_form(table: pa.Table, source: str) -> pa.Table:
    """user_id, item_id, recall_score, source from either form; missing scores are null, missing sources empty.

    Raises:
        UserError: neither form's columns are there, or a list column's lengths differ from item_ids'.
    """
    user = schema.id_type(table.schema, USER, source)
    if ITEMS in table.column_names:
        schema.require(table.schema, {ITEMS: "list"}, source)
        lists = {ITEMS: table[ITEMS]}
        for name in (RECALL_SCORES, SOURCES):
            if name in table.column_names:
                schema.require(table.schema, {name: "list"}, source)
                lists[name] = table[name]
        _, offsets = flatten(table[ITEMS])
        values = {name: flatten(column) for name, column in lists.items()}
        for name, (_, found) in values.items():
            if not np.array_equal(found, offsets):
                raise UserError(f"{source}: lists in '{name}' differ in length from those in '{ITEMS}'")
        users = table[USER].take(pa.array(np.repeat(np.arange(table.num_rows), np.diff(offsets))))
        columns = {USER: users, ITEM: values[ITEMS][0]}
        if RECALL_SCORES in values:
            columns[RECALL_SCORE] = values[RECALL_SCORES][0]
        if SOURCES in values:
            columns[SOURCE] = values[SOURCES][0]
        table = pa.table(columns)
    item = schema.id_type(table.schema, ITEM, source)
    optional = {RECALL_SCORE: "number", SOURCE: "text"}
    schema.require(table.schema, {c: kind for c, kind in optional.items() if c in table.column_names}, source)
    n, here = table.num_rows, table.column_names
    scores = table[RECALL_SCORE].cast(pa.float32(), safe=False) if RECALL_SCORE in here else pa.nulls(n, pa.float32())
    sources = table[SOURCE].cast(pa.string()) if SOURCE in here else pa.array([""] * n, pa.string())
    columns = {USER: table[USER].cast(user), ITEM: table[ITEM].cast(item), RECALL_SCORE: scores, SOURCE: sources}
    return pa.table(columns)


def build(histories: pa.Table, candidates: pa.Table, rules: Rules, source: str) -> Work:
    """Join one bucket's candidates (from `candidates_in_long_form`) to its histories and judge every pair.

    Set aside: `null_id`, `unknown_item` (not in the catalogue), `duplicate_candidate` (the first stays). Filtered: seen
    and blocked items. A user without a history row is scored on the prompt alone. The order of a user's candidates
    is theirs in the input.

    Raises:
        UserError: ids have another type than the histories' or the catalogue's.
    """
    for column, wanted in ((USER, histories.schema.field(USER).type), (ITEM, rules.ids.type)):
        if candidates.schema.field(column).type != wanted:
            found = candidates.schema.field(column).type
            raise UserError(f"{source}: column '{column}' holds {found} ids, the prepared tables hold {wanted}")
    users = pa.compute.unique(candidates[USER].drop_null())
    users = users.take(pa.compute.sort_indices(users))
    user = pa.compute.index_in(candidates[USER], users).fill_null(-1).to_numpy().astype(np.int64)
    row = pa.compute.index_in(candidates[ITEM], rules.ids).fill_null(-1).to_numpy().astype(np.int64)

    place = pa.compute.index_in(users, histories[USER].combine_chunks())
    lists = histories[ITEMS].combine_chunks().take(place)
    trunk = item_rows(lists, rules.ids)
    trunk = keep(trunk, trunk.values >= 0)

    null = (user < 0) | candidates[ITEM].is_null().to_numpy()
    unknown = ~null & (row < 0)
    good = np.flatnonzero(~null & ~unknown)
    n_items = len(rules.ids)
    pair = user[good] * n_items + row[good]
    _, first = np.unique(pair, return_index=True)
    duplicate = np.setdiff1d(np.arange(len(good)), first)
    seen_pairs = np.repeat(np.arange(len(users)), trunk.lengths) * n_items + trunk.values
    unique = np.sort(first)
    seen = np.isin(pair[unique], seen_pairs) if rules.exclude_seen else np.zeros(len(unique), bool)
    blocked = ~seen & rules.blocked[row[good[unique]]]
    left = good[unique[~seen & ~blocked]]
    left = left[np.argsort(user[left], kind="stable")]
    lengths = np.bincount(user[left], minlength=len(users))
    kept = left[within(lengths) < rules.limit]
    lengths = np.minimum(lengths, rules.limit)

    set_aside = [
        _set_aside(candidates, np.flatnonzero(null), "null_id", source),
        _set_aside(candidates, np.flatnonzero(unknown), "unknown_item", source),
        _set_aside(candidates, good[duplicate], "duplicate_candidate", source),
    ]
    quarantine = pa.concat_tables(set_aside)
    counts = {
        "pairs_in": candidates.num_rows, "to_score": len(kept), "seen": int(seen.sum()), "blocked": int(blocked.sum()),
        "over_limit": len(left) - len(kept), "quarantined": quarantine.num_rows, "users_in": len(users),
    }  # fmt: skip
    assert counts["pairs_in"] == sum(counts[c] for c in ("to_score", "seen", "blocked", "over_limit", "quarantined"))
    some = np.flatnonzero(lengths)
    scores = candidates[RECALL_SCORE].take(pa.array(kept)).fill_null(float("nan")).to_numpy().astype(np.float32)
    return Work(
        users=users.take(pa.array(some)),
        histories=trunk.take(some),
        candidates=Ragged(row[kept].astype(np.int32), offsets_of(lengths[some])),
        recall_scores=scores,
        sources=candidates[SOURCE].take(pa.array(kept)).combine_chunks(),
        counts=counts,
        quarantine=quarantine,
    )


def rank(work: Work, scores: np.ndarray, top_k: int, ids: pa.Array, model_version: str, run_id: str) -> pa.Table:
    """The rankings of a bucket: each user's `top_k` best candidates, ties by item id.

    scores: float32[total], one per candidate, in their order.

    Raises:
        UserError: a score is not a finite number.
    """
    if not np.isfinite(scores).all():
        raise UserError(
            f"the model gave {int((~np.isfinite(scores)).sum())} scores that are no numbers; nothing is published"
        )
    lengths = work.candidates.lengths
    user = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((work.candidates.values, -scores, user))
    place = within(lengths)
    best = order[place < top_k]
    table = {
        USER: work.users.take(pa.array(user[best])),
        RANK: pa.array((place[place < top_k] + 1).astype(np.int32)),
        ITEM: ids.take(pa.array(work.candidates.values[best])),
        SCORE: pa.array(scores[best].astype(np.float32)),
        RECALL_SCORE: pa.array(work.recall_scores[best], from_pandas=True),
        SOURCE: work.sources.take(pa.array(best)),
        MODEL_VERSION: pa.array([model_version] * len(best), pa.string()),
        RUN_ID: pa.array([run_id] * len(best), pa.string()),
    }
    return pa.table(table, schema=schema.rankings(work.users.type, ids.type))


def _set_aside(candidates: pa.Table, rows: np.ndarray, reason: str, source: str) -> pa.Table:
    part = candidates.take(pa.array(rows))
    detail = pa.compute.binary_join_element_wise(
        pa.scalar("item="), pa.compute.fill_null(part[ITEM].cast(pa.string()), "null"), ""
    )
    n = len(rows)
    columns = {
        KEY: part[USER].cast(pa.string()), REASON: pa.array([reason] * n, pa.string()), DETAIL: detail,
        ORIGIN: pa.array([source] * n, pa.string()),
    }  # fmt: skip
    return pa.table(columns, schema=QUARANTINE)
