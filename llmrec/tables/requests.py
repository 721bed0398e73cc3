"""One bucket's scoring work: candidates joined to histories, judged pair by pair, and ranked. Plain arrow and numpy.

A bucket holds about a million pairs. Lists stay lists and texts stay dictionaries, ids become int32 rows at once, sorts
see one integer a pair, and what is as it should be is neither copied nor looked at twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec import schema
from llmrec.errors import UserError
from llmrec.fusion.rerank import Rerank, choose
from llmrec.ranker.ragged import Ragged, like_lengths, offsets_of, padded, within
from llmrec.recall.candidates import pair_keys
from llmrec.schema import (
    DETAIL,
    ITEM,
    ITEMS,
    KEY,
    MODEL_VERSION,
    ORIGIN,
    PART_OF_RECALL,
    PROBABILITY,
    QUARANTINE,
    RANK,
    RANKER_SCORE,
    REASON,
    RECALL_SCORE,
    RECALL_SCORES,
    RUN_ID,
    SCORE,
    SOURCE,
    SOURCES,
    USER,
)  # fmt: skip
from llmrec.tables import buckets
from llmrec.tables.catalogue import rows_of
from llmrec.tables.histories import flatten, item_rows, keep

LONG_NAMES = {ITEMS: ITEM, RECALL_SCORES: RECALL_SCORE, SOURCES: SOURCE}


@dataclass(frozen=True)
class Rules:
    """ids: the catalogue's item ids, ascending; blocked: bool[n_items]; limit: candidates kept per user.

    bonus: float32[n_items], added to scores, None for none; rerank: how lists are chosen of the best, None for the best
    themselves; marks: uint64[n_items], of all that these two know of an item, None for nothing; requires: rows of the
    items that each item requires, None where nothing is required.
    """

    ids: pa.Array
    blocked: np.ndarray
    exclude_seen: bool
    limit: int
    bonus: np.ndarray | None = None
    rerank: Rerank | None = None
    marks: np.ndarray | None = None
    requires: Ragged | None = None


@dataclass(frozen=True)
class Work:
    """Users with at least one candidate to score, by ascending id.

    users: arrow[n]; histories, candidates: catalogue rows per user; recall_scores: float32[total], NaN where missing;
    sources: arrow[total], strings or a dictionary of them, empty where the candidates name none; parts: float32[total]
    of each column `recall_score_<source>` that was read, by the source, NaN where it says nothing.
    counts: pairs in = to score + seen + blocked + locked + over_limit + quarantined; users in.
    quarantine: the rows set aside. openings: string[n], what a user's trunk says of himself, null where nothing is
    known of him; None if nobody's does. contexts: a column string[n] of each context that users are asked about in and
    the ranker reads; None if it reads none.
    """

    users: pa.Array
    histories: Ragged
    candidates: Ragged
    recall_scores: np.ndarray
    sources: pa.Array
    counts: dict[str, int]
    quarantine: pa.Table
    openings: pa.Array | None = None
    contexts: pa.Table | None = None
    parts: dict[str, np.ndarray] = field(default_factory=dict)


def read_candidates(uri: str, parts: bool = False) -> pa.Table:
    """A bucket's candidates from a Parquet file of either form; see `candidates_in_list_form`.

    parts: with what each source says of them.

    Raises:
        UserError: no Parquet file is there, or its columns are neither form's.
    """
    texts, without = (ITEM, ITEMS, SOURCE, SOURCES), "" if parts else PART_OF_RECALL
    return candidates_in_list_form(buckets.read_parquet(uri, dictionaries=texts, without=without), uri)


def candidates_in_list_form(table: pa.Table, source: str) -> pa.Table:
    """user_id and item_ids, recall_scores (float32), sources and recall_score_<source> (float32) where the input has
    them, from either form.

    A row is a row of the list form, or a run of the long form's rows with one user; either way a user may have several.
    A null list is an empty one. Texts that come as a dictionary stay one.

    Raises:
        UserError: neither form's columns are there, or a list column's lengths differ from item_ids'.
    """
    users = schema.as_ids(table, USER, source).combine_chunks()
    parts = [name for name in table.column_names if name.startswith(PART_OF_RECALL)]
    if ITEMS in table.column_names:
        names = {name: name for name in [*LONG_NAMES, *parts] if name in table.column_names}
        schema.require(table.schema, dict.fromkeys(names, "list"), source)
        lists = {name: flatten(table[name]) for name in names}
        offsets = lists[ITEMS][1]
        for name, (_, found) in lists.items():
            if not np.array_equal(found, offsets):
                raise UserError(f"{source}: lists in '{name}' differ in length from those in '{ITEMS}'")
        values = {name: flat for name, (flat, _) in lists.items()}
    else:
        schema.id_type(table.schema, ITEM, source)
        names = {name: long for name, long in LONG_NAMES.items() if long in table.column_names}
        names |= {name: name for name in parts}
        runs = pa.compute.run_end_encode(users, run_end_type=pa.int64())
        users, offsets = runs.values, np.append(0, runs.run_ends)
        values = {name: table[long].combine_chunks() for name, long in names.items()}
    found = pa.schema([(names[name], _plain(flat.type)) for name, flat in values.items()])
    kinds = {RECALL_SCORES: "number", SOURCES: "text"} | dict.fromkeys(parts, "number")
    schema.require(found, {names[name]: kind for name, kind in kinds.items() if name in names}, source)
    types = {ITEMS: schema.id_type(found, names[ITEMS], source), RECALL_SCORES: pa.float32(), SOURCES: pa.string()}
    types |= dict.fromkeys(parts, pa.float32())
    columns = {USER: users}
    for name, flat in values.items():
        if _plain(flat.type) != types[name]:
            of_ids = name == ITEMS
            flat = (
                schema.cast_ids(flat, types[name], names[name], source)
                if of_ids
                else flat.cast(types[name], safe=False)
            )
        columns[name] = pa.LargeListArray.from_arrays(pa.array(offsets), flat)
    return pa.table(columns)


def build(histories: pa.Table, candidates: pa.Table, rules: Rules, source: str) -> Work:
    """Join one bucket's candidates (from `candidates_in_list_form`) to its histories and judge every pair.

    Set aside: `null_id`, `unknown_item` (not in the catalogue), `duplicate_candidate` (the first stays). Filtered: seen
    and blocked items, and locked ones, which require what the user has not had. A user without a history row is scored
    on the prompt alone. The order of a user's candidates is theirs in the input.

    Raises:
        UserError: ids have another type than the histories' or the catalogue's.
    """
    _check_types(histories, candidates, rules, source)
    users, owner, order = _owners(candidates[USER].combine_chunks())
    candidates = candidates if order is None else candidates.take(pa.array(order))
    items, lists = flatten(candidates[ITEMS])
    offsets = lists[np.searchsorted(owner, np.arange(len(users) + 1))]
    total = int(offsets[-1])  # pairs with a user; those without come last
    rows = rows_of(items[:total], rules.ids)
    trunk = _trunks(histories, users, rules.ids)

    missing = np.flatnonzero(rows < 0)
    no_item = items.take(pa.array(missing)).is_null().to_numpy(zero_copy_only=False)
    nothing = Ragged(trunk.values[:0], np.zeros_like(offsets))
    duplicate, seen = _repeats(Ragged(rows, offsets), trunk if rules.exclude_seen else nothing)
    left = np.ones(total, bool)
    for wrong in (missing, duplicate, seen):
        left[wrong] = False
    blocked = np.flatnonzero(left & rules.blocked[rows]) if rules.blocked.any() else np.empty(0, np.int64)
    left[blocked] = False
    locked = _locked(Ragged(rows, offsets), left, trunk, rules.requires)
    left[locked] = False
    kept = np.flatnonzero(left)
    lengths = np.diff(np.searchsorted(kept, offsets))
    if over_limit := int(np.maximum(lengths - rules.limit, 0).sum()):
        kept = kept[within(lengths) < rules.limit]
        lengths = np.minimum(lengths, rules.limit)

    places = {
        "null_id": np.append(missing[no_item], np.arange(total, lists[-1])),
        "unknown_item": missing[~no_item],
        "duplicate_candidate": duplicate,
    }
    quarantine = pa.concat_tables(_set_aside(candidates, order, at, why, source) for why, at in places.items())
    counts = {
        "pairs_in": len(items), "to_score": len(kept), "seen": len(seen), "blocked": len(blocked),
        "locked": len(locked), "over_limit": over_limit, "quarantined": quarantine.num_rows,
        "users_in": int(np.count_nonzero(np.diff(offsets))),
    }  # fmt: skip
    ends = ("to_score", "seen", "blocked", "locked", "over_limit", "quarantined")
    assert counts["pairs_in"] == sum(counts[end] for end in ends)
    some = np.flatnonzero(lengths)
    return Work(
        users=users.take(pa.array(some)),
        histories=trunk if len(some) == len(users) else trunk.take(some),
        candidates=Ragged(_at(rows, kept), offsets_of(lengths[some])),
        recall_scores=_at(_numbers(candidates, RECALL_SCORES, total), kept),
        sources=_sources(candidates, total, kept),
        counts=counts,
        quarantine=quarantine,
        parts={
            name.removeprefix(PART_OF_RECALL): _at(_numbers(candidates, name, total), kept)
            for name in candidates.column_names
            if name.startswith(PART_OF_RECALL)
        },
    )


@dataclass(frozen=True)
class Scores:
    """Of the candidates of a bucket, in their order.

    of: float32[total], by which they are ranked; ranker: float32[total], the ranker's own; probability: float32[total],
    None where nothing tells it.
    """

    of: np.ndarray
    ranker: np.ndarray
    probability: np.ndarray | None = None

    @staticmethod
    def unfused(ranker: np.ndarray) -> Scores:
        return Scores(ranker, ranker)


def rank(
    work: Work, told: Scores, top_k: int, ids: pa.Array, model_version: str, run_id: str, rerank: Rerank | None = None,
    reserve: Mapping[str, int] | None = None,
) -> pa.Table:  # fmt: skip
    """The rankings of a bucket: each user's `top_k` best candidates, ties by item id, or what is chosen of his best.

    reserve: places of a list for candidates that a source brought.

    Raises:
        UserError: a score is not a finite number.
    """
    scores, lists = told.of, work.candidates
    if not np.isfinite(scores).all():
        raise UserError(
            f"the model gave {int((~np.isfinite(scores)).sum())} scores that are no numbers; nothing is published"
        )
    best, taken = listed(scores, lists, top_k, rerank)
    if reserve:
        groups = [(_brought_by(source, work.sources), places) for source, places in sorted(reserve.items())]
        best, taken = reserved(best, taken, scores, lists, groups, top_k)
    n = len(best)
    table = {
        USER: work.users.take(pa.array(np.repeat(np.arange(len(taken)), taken))),
        RANK: pa.array((within(taken) + 1).astype(np.int32)),
        ITEM: ids.take(pa.array(lists.values[best])),
        SCORE: pa.array(scores[best].astype(np.float32)),
        RANKER_SCORE: pa.array(told.ranker[best].astype(np.float32)),
        PROBABILITY: pa.nulls(n) if told.probability is None else pa.array(told.probability[best].astype(np.float32)),
        RECALL_SCORE: pa.array(work.recall_scores[best], from_pandas=True),
        SOURCE: work.sources.take(pa.array(best)),
        MODEL_VERSION: pa.repeat(model_version, n),
        RUN_ID: pa.repeat(run_id, n),
    }
    wanted = schema.rankings(work.users.type, ids.type)
    return pa.table([table[f.name].cast(f.type) for f in wanted], schema=wanted)


def _brought_by(source: str, sources: pa.Array) -> np.ndarray:
    found: np.ndarray = pa.compute.equal(sources, source).fill_null(False).to_numpy(zero_copy_only=False)
    return found


def listed(scores: np.ndarray, lists: Ragged, top_k: int, rerank: Rerank | None) -> tuple[np.ndarray, np.ndarray]:
    """int64[m]: where each user's list is among his candidates, in its order; int64[n]: how long it is.

    scores: float32[total], finite; lists: each user's candidates as rows of the catalogue.
    """
    if rerank is None:
        return best_of(scores, lists, top_k)
    best, taken = best_of(scores, lists, rerank.window)
    chosen, taken = choose(scores[best], Ragged(lists.values[best], offsets_of(taken)), rerank, top_k)
    return best[chosen], taken


def reserved(
    best: np.ndarray, taken: np.ndarray, scores: np.ndarray, lists: Ragged, groups: Sequence[tuple[np.ndarray, int]],
    top_k: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Lists (as of `listed`) in which each group has its places, if a user has as many candidates of it: the best of
    these that are not in his list yet come last in it, and in a full one the last others go for them.

    groups: candidates, bool[total], no two groups with one in common, and places, together at most top_k.
    """
    owner, users = np.repeat(np.arange(len(lists)), lists.lengths), len(lists)
    for theirs, places in groups:
        in_list = np.zeros(len(scores), bool)
        in_list[best] = True
        there, had = (np.bincount(owner[of], minlength=users) for of in (theirs, theirs & in_list))
        wanting = np.maximum(np.minimum(places, there) - had, 0)
        open_ = np.flatnonzero(theirs & ~in_list & (wanting > 0)[owner])
        open_ = open_[np.lexsort((lists.values[open_], -scores[open_], owner[open_]))]
        of = owner[open_]
        added = open_[within(np.bincount(of, minlength=users)) < wanting[of]]
        stays = ~_last_free(best, owner, np.maximum(taken + wanting - top_k, 0), theirs, groups)
        best = np.concatenate([best[stays], added])
        best = best[np.argsort(owner[best], kind="stable")]
        taken = np.bincount(owner[best], minlength=users)
    return best, taken


def _last_free(
    best: np.ndarray,
    owner: np.ndarray,
    counts: np.ndarray,
    theirs: np.ndarray,
    groups: Sequence[tuple[np.ndarray, int]],
) -> np.ndarray:
    """bool[len(best)]: the last of each user's list, so many (counts: int64[users]), that are neither of one group nor
    in the places of another. owner: int64[total], of each candidate."""
    user, held = owner[best], theirs[best]
    for others, places in groups:
        of = np.flatnonzero(others[best])
        held[of[within(np.bincount(user[of], minlength=len(counts))) < places]] = True
    free = np.flatnonzero(~held)
    there = np.bincount(user[free], minlength=len(counts))
    last = np.zeros(len(best), bool)
    last[free] = within(there) >= (there - counts)[user[free]]
    return last


def best_of(scores: np.ndarray, lists: Ragged, count: int) -> tuple[np.ndarray, np.ndarray]:
    """As `listed`: each user's `count` best candidates, ties by item id."""
    taken = np.minimum(lists.lengths, count)
    offsets = offsets_of(taken)
    best = np.empty(offsets[-1], np.int64)
    for users in like_lengths(lists.lengths):
        # The score, best first, and the place in the list as one integer, which sorts many times faster than two.
        score = _best_first(padded(scores, lists.offsets, users, -np.inf))
        width = min(count, score.shape[1])
        key = score.astype(np.int64) << 32 | np.arange(score.shape[1])
        key.sort(axis=1)
        place = key[:, :width] & 0xFFFFFFFF
        inside = np.arange(width) < taken[users, None]
        ahead = key[:, : width + 1] >> 32
        equal = ahead[:, 1:] == ahead[:, :-1]
        tied = (equal & inside[:, : equal.shape[1]]).any(axis=1)
        if tied.any():
            row = padded(lists.values, lists.offsets, users, 0)[tied]
            place[tied] = np.argsort(score[tied].astype(np.int64) << 32 | row, axis=1)[:, :width]
        best[(offsets[users, None] + np.arange(width))[inside]] = (lists.offsets[users, None] + place)[inside]
    return best, taken


def _plain(found: pa.DataType) -> pa.DataType:
    return found.value_type if pa.types.is_dictionary(found) else found


def _best_first(scores: np.ndarray) -> np.ndarray:
    """int32: smaller where the float32 score is larger, equal where it is equal."""
    bits = (scores + np.float32(0)).view(np.int32)  # + 0, since -0.0 equals 0.0
    return ~(bits ^ (bits >> 31 & 0x7FFFFFFF))


def _check_types(histories: pa.Table, candidates: pa.Table, rules: Rules, source: str) -> None:
    item = _plain(candidates.schema.field(ITEMS).type.value_type)
    user = candidates.schema.field(USER).type
    for column, found, wanted in ((USER, user, histories.schema.field(USER).type), (ITEM, item, rules.ids.type)):
        if found != wanted:
            raise UserError(f"{source}: column '{column}' holds {found} ids, the prepared tables hold {wanted}")


def _owners(ids: pa.Array) -> tuple[pa.Array, np.ndarray, np.ndarray | None]:
    """The users of some lists, ascending; each list's place among them, ascending, the number of users for none; and
    the order of the lists that this takes, None where they have it."""
    users = pa.compute.unique(ids.drop_null())
    users = users.take(pa.compute.sort_indices(users))
    owner = pa.compute.index_in(ids, users).fill_null(len(users)).to_numpy()
    if (owner[1:] >= owner[:-1]).all():
        return users, owner, None
    order = np.argsort(owner, kind="stable")
    return users, owner[order], order


def _trunks(histories: pa.Table, users: pa.Array, ids: pa.Array) -> Ragged:
    """Each user's history as catalogue rows, without items that left the catalogue."""
    place = pa.compute.index_in(users, histories[USER].combine_chunks())
    lists = histories[ITEMS].combine_chunks()
    if not place.equals(pa.array(np.arange(len(lists), dtype=np.int32))):
        lists = lists.take(place)
    trunk = item_rows(lists, ids)
    known = trunk.values >= 0
    return trunk if known.all() else keep(trunk, known)


def _repeats(candidates: Ragged, seen: Ragged) -> tuple[np.ndarray, np.ndarray]:
    """Places of candidates that an earlier one of the same user equals, and of first ones that the user has seen.

    Rows of -1 are not looked at.
    """
    repeated, known = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for users in like_lengths(candidates.lengths + seen.lengths):
        past = padded(seen.values, seen.offsets, users, -1)
        rows = padded(candidates.values, candidates.offsets, users, -1)
        # Row and place (from 1, and 0 for an item seen) as one integer: sorted, what is equal lies side by side.
        bits = rows.shape[1].bit_length()
        key = np.concatenate([past, rows], axis=1).astype(np.int64) << bits
        key[:, past.shape[1] :] |= np.arange(1, rows.shape[1] + 1)
        key.sort(axis=1)
        row = key >> bits
        equal = (row[:, 1:] == row[:, :-1]) & (row[:, 1:] >= 0)
        user, at = np.divmod(np.flatnonzero(equal), equal.shape[1])
        before, place = (key[user, at + i] & (1 << bits) - 1 for i in (0, 1))
        flat = candidates.offsets[users[user]] + place - 1
        repeated.append(flat[(before > 0) & (place > 0)])
        known.append(flat[(before == 0) & (place > 0)])
    return np.concatenate(repeated), np.concatenate(known)


def _at(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return values if len(kept) == len(values) else values[kept]


def _locked(candidates: Ragged, open_: np.ndarray, had: Ragged, requires: Ragged | None) -> np.ndarray:
    """int64: places of candidates, of those that are open (bool[total]), that require what their user has not had."""
    none = np.empty(0, np.int64)
    if requires is None:
        return none
    pairs = np.flatnonzero(open_)
    wanted = requires.take(candidates.values[pairs])
    if not len(wanted.values):
        return none
    n = len(requires)
    user = np.repeat(np.arange(len(candidates)), candidates.lengths)[pairs]
    asked = np.repeat(user, wanted.lengths) * n + wanted.values
    missing = ~np.isin(asked, pair_keys(had, n))
    return pairs[np.unique(np.repeat(np.arange(len(pairs)), wanted.lengths)[missing])]


def _numbers(candidates: pa.Table, column: str, total: int) -> np.ndarray:
    """float32[total], NaN where there is none."""
    if column not in candidates.column_names:
        return np.full(total, np.nan, np.float32)
    return flatten(candidates[column])[0][:total].to_numpy(zero_copy_only=False)


def _sources(candidates: pa.Table, total: int, kept: np.ndarray) -> pa.Array:
    if SOURCES not in candidates.column_names:
        return pa.DictionaryArray.from_arrays(np.zeros(len(kept), np.int8), [""])
    sources = flatten(candidates[SOURCES])[0][:total]
    return sources if len(kept) == total else sources.take(pa.array(kept))


def _set_aside(candidates: pa.Table, order: np.ndarray | None, at: np.ndarray, reason: str, source: str) -> pa.Table:
    """The pairs at these places of the flat lists as quarantine rows, in the input's order."""
    items, offsets = flatten(candidates[ITEMS])
    lists = np.searchsorted(offsets, at, side="right") - 1
    by_input = np.lexsort((at, lists if order is None else order[lists]))
    at, lists = pa.array(at[by_input]), pa.array(lists[by_input])
    n = len(at)
    detail = pa.compute.binary_join_element_wise(
        pa.scalar("item="), pa.compute.fill_null(items.take(at).cast(pa.string()), "null"), ""
    )
    columns = {
        KEY: candidates[USER].take(lists).cast(pa.string()), REASON: pa.repeat(reason, n), DETAIL: detail,
        ORIGIN: pa.repeat(source, n),
    }  # fmt: skip
    return pa.table(columns, schema=QUARANTINE)
