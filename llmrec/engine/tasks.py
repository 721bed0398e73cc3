"""What is done to a bucket before and after it is scored, in tasks that load no model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec import config, schema, storage
from llmrec.engine import ledger, rerank, score_parts, work_rows
from llmrec.engine.ledger import Entry
from llmrec.engine.pool import Scorer
from llmrec.engine.prerequisites import required_by
from llmrec.engine.run import Job
from llmrec.engine.watch import Beating
from llmrec.errors import UserError
from llmrec.fusion.listwise import log_softmax
from llmrec.layout import Layout
from llmrec.ranker.health import Probe
from llmrec.ranker.templates import placeholders
from llmrec.schema import BUCKET, ITEM, ITEMS, RANK, RUN_ID, TRAIN_LENGTH, USER
from llmrec.tables import buckets, contexts, fingerprints, forgotten, rankings, requests
from llmrec.tables.histories import training_part, without_events
from llmrec.tables.users import openings

HISTORIES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "known": lambda table: table, "training": training_part, "none": without_events,
}  # fmt: skip


def rules(job: Job) -> requests.Rules:
    """What every candidate is judged by.

    Raises:
        UserError: score.blocked_items is of another type than the catalogue, or items lack what rules ask of them.
    """
    of = of_candidates(job.score, job.layout)
    chosen = rerank.of_items(job.rerank, job.layout, of.ids)
    bonus = together([weights(job.item_weights, job.layout, of.ids), chosen.bonus])
    marks = fingerprints.of_rules(len(of.ids), bonus, chosen.columns, chosen.vectors)
    return replace(of, bonus=bonus, rerank=chosen.rerank, marks=marks)


def of_candidates(score: config.Score, layout: Layout) -> requests.Rules:
    """Which candidates are scored, and nothing of how they are ranked.

    Raises:
        UserError: score.blocked_items is missing or of another type than the catalogue, or score.requires names no
            relation of the graph.
    """
    ids = buckets.catalogue_ids(layout.items)
    requires = required_by(score.requires, layout, ids)
    return requests.Rules(ids, _blocked(score, ids), score.exclude_seen, score.max_candidates, requires=requires)


def make_shared(job: Job, scorer: type[Scorer], pulse: Any) -> tuple[requests.Rules, Any, None]:
    """What a run's processes share, and nothing."""
    with Beating(pulse).meanwhile():
        return rules(job), scorer.shared(job), None


def judged(unit: dict[str, Any], job: Job, by: requests.Rules) -> requests.Work:
    """One bucket's candidates joined to its histories and judged.

    Raises:
        UserError: a file cannot be read, or the tables do not go together.
    """
    candidates = requests.read_candidates(unit["candidates"], job.fusion is not None or job.score.keep_parts)
    if (gone := forgotten.read(job.layout)) is not None:  # candidates of one's own may name them still
        candidates = gone.without(candidates, USER)
    if job.score.users_share < 1:
        candidates = candidates.filter(pa.array(buckets.share_of(candidates[USER], job.score.users_share)))
    return joined(unit, candidates, job, by)


def joined(unit: dict[str, Any], candidates: pa.Table, job: Job, by: requests.Rules) -> requests.Work:
    """As `judged`, of candidates in list form that have been read."""
    histories, asked = histories_of(unit["histories"], job)
    work = requests.build(histories, candidates, by, unit["candidates"])
    if asked is not None:
        place = pa.compute.index_in(work.users, histories[USER].combine_chunks())
        work = replace(work, contexts=asked.take(place))
    strays = np.flatnonzero(buckets.bucket_of(work.users, job.buckets) != unit[BUCKET])
    if len(strays):
        raise UserError(
            f"{unit['candidates']}: user {work.users[int(strays[0])].as_py()!r} does not belong into bucket "
            f"{unit[BUCKET]} of {job.buckets}; bucket the candidates by jobs/bucket.py"
        )
    if unit["users"] or unit["interests"]:
        work = replace(work, openings=openings(work.users, unit["users"], job.prompt, unit["interests"]))
    return work


def histories_of(uri: str, job: Job) -> tuple[pa.Table, pa.Table | None]:
    """One bucket's user_id and item_ids, as far as score.history goes, and a column string[n] of each context that its
    users are asked about in and the ranker reads; None if it reads none."""
    whole, names = job.score.history == "known", placeholders(job.prompt.context)
    columns = [USER, ITEMS] if whole else [USER, ITEMS, TRAIN_LENGTH]
    columns = list(dict.fromkeys([*columns, *contexts.columns_of(names, not whole)]))
    table = buckets.read_parquet(uri, columns)
    histories = HISTORIES[job.score.history](table)
    return histories, contexts.now(table, names, not whole) if names else None


def read(batch: pa.Table, job: Job, by: Any) -> pa.Table:
    """Join and judge one bucket; what is set aside is written here, the rest travels on. by: reference to the rules."""
    import ray

    (unit,) = batch.to_pylist()
    work = judged(unit, job, ray.get(by))
    if work.quarantine.num_rows:
        buckets.write_parquet(work.quarantine, job.quarantine_file(unit[BUCKET], "reading"))
    return work_rows.to_row(work_rows.Bucket(unit[BUCKET], unit["candidates"], work))


def stage(batch: pa.Table, job: Job, by: Any) -> pa.Table:
    """Rank one bucket, write its file, then its ledger entry: an entry means that the file is whole."""
    import ray

    bucket = work_rows.from_row(batch)
    rules: requests.Rules = ray.get(by)
    told = fused(bucket.work, bucket.scores, job, rules)
    table = ranked(bucket.work, told, job, rules)
    if job.score.keep_parts:
        _keep_parts(job, bucket, told, rules.ids)
    users = len(bucket.work.users)
    if bucket.copied is not None and len(bucket.copied):
        table = pa.concat_tables([table, _copied(job, bucket.number, bucket.copied)])
        table = table.sort_by([(USER, "ascending"), (RANK, "ascending")]).combine_chunks()
        users += len(bucket.copied)
    path = rankings.staged_path(job.run_id, bucket.number)
    size = buckets.write_parquet(table, storage.join(job.output, path))
    if bucket.marks is not None:
        buckets.write_parquet(bucket.marks, job.marks_file(job.run_id, bucket.number))
    counts = dict(bucket.work.counts)
    counts |= {"ranked": table.num_rows, "below_top_k": counts.pop("to_score") - table.num_rows}
    first, last = (int(pa.compute.sum(pa.compute.equal(table[RANK], k)).as_py() or 0) for k in (1, job.score.top_k))
    counts["users_short"] = first - last
    entry = Entry(
        bucket.number, path, size, table.num_rows, users, counts, bucket.facts["seconds"], bucket.facts["mfu"],
        bucket.facts["attempt"],
        bucket.facts["probe"] and Probe(**bucket.facts["probe"]),
    )  # fmt: skip
    ledger.write(job.layout, job.run_id, entry)
    return pa.table({"entry": [json.dumps(asdict(entry))]})


def ranked(work: requests.Work, told: requests.Scores, job: Job, by: requests.Rules) -> pa.Table:
    """The rankings of a bucket.

    Raises:
        UserError: a score is not a finite number, or the vectors by which items are compared are gone.
    """
    how = rerank.ready(by.rerank, job.rerank, job.layout, by.ids)
    reserve = job.rerank.reserve
    return requests.rank(work, told, job.score.top_k, by.ids, job.model_version, job.run_id, how, reserve)


def fused(work: requests.Work, ranker: np.ndarray, job: Job, by: requests.Rules) -> requests.Scores:
    """By what the candidates are ranked: the ranker's scores (float32[total]), or with all else that is known of them.

    Raises:
        UserError: the candidates lack a part that the fusion was fitted with.
    """
    bonus = 0.0 if by.bonus is None else by.bonus[work.candidates.values]
    if job.fusion is None:
        return requests.Scores((ranker + bonus).astype(np.float32), ranker)
    parts = score_parts.of_work(work, ranker)
    scores, found = job.fusion.score(parts), np.full(len(work.users), job.fusion.found)
    if job.fusion_of_new is not None:
        new = work.histories.lengths == 0
        theirs = np.repeat(new, parts.lengths)
        scores[theirs], found[new] = job.fusion_of_new.score(parts.take(new)), job.fusion_of_new.found
    scores = scores + bonus
    likely = np.exp(log_softmax(scores, parts.offsets)) * np.repeat(found, parts.lengths)
    return requests.Scores(scores.astype(np.float32), ranker, likely.astype(np.float32))


def _keep_parts(job: Job, bucket: work_rows.Bucket, told: requests.Scores, ids: pa.Array) -> None:
    table = score_parts.table(bucket.work, score_parts.of_work(bucket.work, told.ranker), told.of, ids)
    if bucket.copied is not None and len(bucket.copied):
        assert job.earlier is not None
        before = buckets.read_parquet(job.parts_file(job.earlier.run_id, bucket.number))
        before = before.filter(pa.compute.is_in(before[USER], bucket.copied))
        table = pa.concat_tables([table, before], promote_options="permissive").sort_by(USER).combine_chunks()
    buckets.write_parquet(table, job.parts_file(job.run_id, bucket.number))


def together(bonuses: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Their sum; None if there is none."""
    given = [of for of in bonuses if of is not None]
    return sum(given[1:], given[0]) if given else None


def weights(item_weights: Mapping[str, float], layout: Layout, ids: pa.Array) -> np.ndarray | None:
    """float32[n_items]: the logarithm of what an item's probability is multiplied by; a missing number changes nothing.

    Raises:
        UserError: a column is missing, or a value is not above 0.
    """
    if not item_weights:
        return None
    uri, total = layout.items, np.zeros(len(ids), np.float32)
    schema.require(buckets.schema_of(uri), dict.fromkeys(item_weights, "number"), uri)
    items = buckets.read_parquet(uri, [ITEM, *item_weights])
    items = items.take(pa.compute.index_in(ids, items[ITEM].combine_chunks()))
    for name, exponent in item_weights.items():
        values = items[name].cast(pa.float64()).fill_null(1.0).to_numpy()
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise UserError(
                f"{uri}: column '{name}' of item {ids[int(bad[0])].as_py()!r} is {values[bad[0]]:g}; "
                "fusion.item_weights needs numbers above 0"
            )
        total += (exponent * np.log(values)).astype(np.float32)
    return total


def _copied(job: Job, bucket: int, users: pa.Array) -> pa.Table:
    """The earlier run's rows of these users, as rows of this run."""
    assert job.earlier is not None
    entry = ledger.find(job.layout, job.earlier.run_id, bucket)
    assert entry is not None
    rows = buckets.read_parquet(storage.join(job.earlier.output, entry.path))
    rows = rows.filter(pa.compute.is_in(rows[USER], users))
    place = rows.schema.get_field_index(RUN_ID)
    return rows.set_column(place, rows.schema.field(RUN_ID), pa.array([job.run_id] * rows.num_rows, pa.string()))


def _blocked(score: config.Score, ids: pa.Array) -> np.ndarray:
    if not score.blocked_items:
        return np.zeros(len(ids), bool)
    blocked = buckets.read_parquet(score.blocked_items)
    if schema.id_type(blocked.schema, ITEM, score.blocked_items) != ids.type:
        raise UserError(f"{score.blocked_items}: column '{ITEM}' must hold {ids.type} ids, as the items table does")
    given = schema.as_ids(blocked, ITEM, score.blocked_items).combine_chunks()
    return pa.compute.is_in(ids, given).to_numpy(zero_copy_only=False)
