"""What an evaluate task does: measures every ranking over one bucket's users."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from scipy import sparse

from llmrec import assets, config, storage
from llmrec.engine import labelled_pairs
from llmrec.engine.evaluate_items import Catalogue
from llmrec.engine.measured import Measured, OfItems, Pairs, to_bytes
from llmrec.engine.ranking_lists import OURS, Asked, Lists, candidates_of, lists_of, of_bucket
from llmrec.evaluation import beyond, fairness, metrics, sources
from llmrec.evaluation.segments import Grouping
from llmrec.layout import Layout
from llmrec.ranker.ragged import Ragged, offsets_of
from llmrec.recall.candidates import pair_keys
from llmrec.schema import BUCKET, ITEM, ITEMS, PROBABILITY, USER
from llmrec.tables import buckets, embeddings, rankings
from llmrec.tables.catalogue import rows_of
from llmrec.tables.embeddings import TEXT
from llmrec.tables.histories import flatten, item_rows, keep


def measure_bucket(batch: pa.Table, asked: Asked, catalogue: Any, labelled: Mapping[int, Any]) -> pa.Table:
    """catalogue: a reference to a `Catalogue`; labelled: references to the labelled pairs of buckets that have some."""
    import ray

    (unit,) = batch.to_pylist()
    bucket = unit[BUCKET]
    pairs = ray.get(labelled[bucket]) if bucket in labelled else None
    arrays, attributes = to_bytes(measured(unit, asked, ray.get(catalogue), pairs))
    return pa.table({BUCKET: [bucket], "arrays": [arrays], "attributes": [attributes]})


def measured(unit: dict[str, Any], asked: Asked, known: Catalogue, labelled: pa.Table | None) -> Measured:
    """Of the users with held-out items whom the run was to score, or of a share of users, if that is less.

    unit: the bucket, where its held-out items are, and its candidates as of `candidates_of`; labelled: the
    bucket's pairs of `labelled_pairs.by_bucket`.

    Raises:
        UserError: a table is missing.
    """
    settings, layout, bucket = asked.settings.evaluate, asked.layout, unit[BUCKET]
    targets, share = buckets.read_parquet(unit["uri"]), min(asked.share, asked.settings.score.users_share)
    if share < 1:
        targets = targets.filter(pa.array(buckets.share_of(targets[USER], share)))
    truth = lists_of(targets)
    ours = rankings.read_bucket(asked.tables[OURS], bucket)
    recalled: dict[str, Lists] = {
        name: lists_of(buckets.read_parquet(buckets.bucket_file(layout.candidates(name), bucket)))
        for name in asked.settings.recall.merge
    }
    candidates = candidates_of(unit, asked, known)
    found = of_bucket(bucket, asked, known, ours, recalled, candidates, max(settings.cutoffs))
    values = np.stack([
        np.stack(list(metrics.per_user(truth, lists, settings.cutoffs, settings.metrics).values()))
        for lists in found.values()
    ])  # fmt: skip
    ranked = np.asarray([[bool(lists.get(user)) for user in truth] for lists in found.values()], bool)
    rows = {name: _rows(lists, truth, known) for name, lists in found.items()}
    true = item_rows(targets[ITEMS], known.ids)
    histories = buckets.read_parquet(buckets.bucket_file(layout.histories, bucket), [USER, ITEMS])
    history = _aligned(histories, targets[USER])[ITEMS]
    # Everyone, and who is in each further table.
    subsets = np.stack([np.ones(len(truth), bool), *(ranked[list(found).index(n)] for n in settings.rankings)])
    exposed, sums = _beyond(rows, item_rows(history, known.ids), subsets, known, asked)
    shown, truths = _shown(rows[OURS], true, known, metrics.main_cutoff(settings.cutoffs))
    predicted, observed = _probabilities(ours, targets, true, known)
    parts = buckets.bucket_file(layout.score_parts(asked.run_id), bucket)
    return Measured(
        names=tuple(found),
        values=values,
        ranked=ranked,
        shares=sources.found(truth, recalled, candidates, settings.recall_cutoffs),
        brought=_brought(truth, recalled, candidates),
        within_reach=_within_reach(truth, candidates),
        history=np.diff(flatten(history)[1]),
        attributes=_attributes(bucket, asked, targets[USER]),
        of_items=tuple(_of_items(grouping, true, truth, found, values, settings) for grouping in known.true),
        exposed=exposed,
        sums=sums,
        shown=shown,
        truth=truths,
        predicted=predicted,
        observed=observed,
        pairs=Pairs(*labelled_pairs.scored(labelled, parts)) if labelled is not None else Pairs(
            np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, bool)
        ),
    )  # fmt: skip


def _brought(truth: Lists, recalled: dict[str, Lists], scored: Lists) -> np.ndarray:
    """int64[sources + 2]: for how many users each source has candidates, all of them together, and what was scored."""
    there = np.asarray([[bool(lists.get(user)) for user in truth] for lists in recalled.values()], bool)
    some = sum(bool(scored.get(user)) for user in truth)
    return np.concatenate([there.sum(axis=1), [there.any(axis=0).sum(), some]]).astype(np.int64)


def _within_reach(truth: Lists, candidates: Lists) -> np.ndarray:
    """float64[users]: share of each one's true items that are candidates."""
    there = [set(candidates.get(user, ())) for user in truth]
    return np.asarray([np.mean([i in of for i in items]) for items, of in zip(truth.values(), there, strict=True)])


def _rows(lists: Lists, truth: Lists, known: Catalogue) -> Ragged:
    """Lists of the users of `truth` as catalogue rows, -1 for an item that it lacks."""
    chosen = [lists.get(user, []) for user in truth]
    flat = pa.array([item for items in chosen for item in items], pa.string())
    lengths = np.fromiter(map(len, chosen), np.int64, len(chosen))
    return Ragged(rows_of(flat, known.texts), offsets_of(lengths))


def _aligned(table: pa.Table, users: pa.ChunkedArray) -> pa.Table:
    """A table's rows of these users, nulls for one that it lacks."""
    return table.take(pa.compute.index_in(users.combine_chunks(), table[USER].combine_chunks()))


def _attributes(bucket: int, asked: Asked, users: pa.ChunkedArray) -> pa.Table:
    uri = buckets.bucket_file(asked.layout.users, bucket)
    wanted = list(asked.attributes)
    if not wanted:
        return pa.table({})
    if not storage.exists(uri):  # nobody of this bucket has attributes
        return pa.table({name: pa.nulls(len(users)) for name in wanted})
    return _aligned(buckets.read_parquet(uri, [USER, *wanted]), users).select(wanted)


def _beyond(
    rows: dict[str, Ragged], history: Ragged, subsets: np.ndarray, known: Catalogue, asked: Asked
) -> tuple[sparse.csr_matrix, np.ndarray]:
    cutoffs = asked.settings.evaluate.cutoffs
    past = beyond.as_matrix(history, len(known.ids))
    events = np.asarray(past.sum(axis=1)).ravel()
    popularity = np.divide(past @ known.facts[:, 2], events, out=np.full(len(history), np.nan), where=events > 0)
    vectors = _vectors(known, asked.layout)
    exposed, sums = [], []
    for lists in rows.values():
        apart = np.full((len(cutoffs), len(lists)), np.nan)
        if vectors is not None:
            of, present, place = vectors
            placed = Ragged(np.where(lists.values >= 0, place[lists.values], -1), lists.offsets)
            apart = np.stack([beyond.diversity(beyond.first(placed, k), of, present) for k in cutoffs])
        exposed.append(beyond.exposure(lists, cutoffs, len(known.ids), subsets))
        sums.append(beyond.sums(lists, cutoffs, known.facts, popularity, apart, subsets))
    return sparse.vstack(exposed, format="csr"), np.stack(sums)


def _vectors(known: Catalogue, layout: Layout) -> tuple[beyond.Vectors, np.ndarray, np.ndarray] | None:
    """Vectors by which items are alike; bool: which there are; int[n_items]: the vector of each item, -1 for none."""
    if known.categories is not None:
        return known.categories, np.diff(known.categories.indptr) > 0, np.arange(len(known.ids))
    made = embeddings.open_embeddings(layout.embeddings, assets.cache_directory() / "embeddings")
    if made is None or TEXT not in made.parts:
        return None
    return made.parts[TEXT], made.present[TEXT], rows_of(known.ids, made.ids)


def _shown(lists: Ragged, true: Ragged, known: Catalogue, cutoff: int) -> tuple[np.ndarray, np.ndarray]:
    """float64[users, groups]: what each user sees of each group of items; float64[groups]: true items of each."""
    groups = sparse.hstack([grouping.shares() for grouping in known.shown], format="csr")
    top, n_items = beyond.first(lists, cutoff), len(known.ids)
    seen = beyond.as_matrix(top, n_items, fairness.discounts(top)) @ groups
    held_out = np.asarray(beyond.as_matrix(true, n_items).sum(axis=0)).ravel()
    return seen.toarray().astype(np.float64), np.asarray(held_out @ groups, np.float64)


def _probabilities(ours: pa.Table, targets: pa.Table, true: Ragged, known: Catalogue) -> tuple[np.ndarray, np.ndarray]:
    """float32[pairs], bool[pairs]: published probabilities for users with true items, and whether the item is one."""
    if PROBABILITY not in ours.column_names:
        return np.empty(0, np.float32), np.empty(0, bool)
    some = ours.filter(pa.compute.and_(
        ours[PROBABILITY].is_valid(), pa.compute.is_in(ours[USER], targets[USER].combine_chunks())
    ))  # fmt: skip
    user = pa.compute.index_in(some[USER].combine_chunks(), targets[USER].combine_chunks()).to_numpy()
    item = rows_of(some[ITEM].combine_chunks(), known.ids)
    wanted = pair_keys(keep(true, true.values >= 0), len(known.ids))
    return some[PROBABILITY].to_numpy(), np.isin(user.astype(np.int64) * len(known.ids) + item, wanted) & (item >= 0)


def _of_items(
    grouping: Grouping, true: Ragged, truth: Lists, found: dict[str, Lists], values: np.ndarray,
    settings: config.Evaluate,
) -> OfItems:  # fmt: skip
    """Each user in each group that a true item of his is in, measured by these alone."""
    events = np.flatnonzero(true.values >= 0)
    owner = np.repeat(np.arange(len(true)), true.lengths)
    event, group = grouping.members[true.values[events]].nonzero()
    event = events[event]
    pairs, at, count = np.unique(
        owner[event] * len(grouping.names) + group, return_inverse=True, return_counts=True
    )  # fmt: skip
    user, group = np.divmod(pairs, len(grouping.names))
    if (count == true.lengths[user]).all():
        return OfItems(user, group, values[:, :, :0])
    names, items = list(truth), [item for of in truth.values() for item in of]
    asked: Lists = {f"{u} {g}": [] for u, g in zip(user, group, strict=True)}
    keys = list(asked)
    for e, pair in zip(event, at, strict=True):
        asked[keys[pair]].append(items[e])
    parts = []
    for lists in found.values():
        ranked = {key: lists.get(names[u], []) for key, u in zip(keys, user, strict=True)}
        parts.append(np.stack(list(metrics.per_user(asked, ranked, settings.cutoffs, settings.metrics).values())))
    return OfItems(user, group, np.stack(parts))
