"""Every ranking that evaluate compares, as lists of a bucket's users: published, recalled, or made of kept parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec import config, schema
from llmrec.engine import rerank, score_parts
from llmrec.engine.evaluate_items import Catalogue
from llmrec.engine.tasks import HISTORIES
from llmrec.fusion import ablations
from llmrec.fusion.parts import first_of
from llmrec.layout import Layout
from llmrec.ranker.ragged import offsets_of, within
from llmrec.schema import BUCKET, ITEM, ITEMS, SCORES, TRAIN_LENGTH, USER
from llmrec.tables import buckets, rankings, requests
from llmrec.tables.histories import as_lists, flatten, item_rows

OURS = "llm ranking"
RANKER_ALONE = "the ranker alone"
BEFORE_RERANK = "before rerank"
BY_POPULARITY = "its candidates by popularity"
CANDIDATES = "candidates"
Lists = dict[str, list[str]]


@dataclass(frozen=True)
class Asked:
    """What is evaluated. settings: those of score as the run had them; tables: rankings tables by name, ours first;
    fused: the fusion whose parts the run kept; kept: where these are, empty if it kept none; attributes: columns of the
    users table; share: of users, those of the share that the run scored, who are measured."""

    settings: config.Config
    layout: Layout
    tables: dict[str, str]
    fused: ablations.Fitted | None
    run_id: str
    kept: str
    attributes: tuple[str, ...]
    share: float = 1.0


def of_bucket(
    bucket: int, asked: Asked, known: Catalogue, ours: pa.Table, recalled: dict[str, Lists], candidates: Lists,
    depth: int,
) -> dict[str, Lists]:  # fmt: skip
    """Every ranking's first items of each of its users."""
    layout = asked.layout
    found = {OURS: lists_of_rows(ours, depth)}
    for name, uri in asked.tables.items():
        if name != OURS:
            found[name] = lists_of_rows(rankings.read_bucket(uri, bucket), depth)
    reranked = asked.settings.rerank.chooses or bool(asked.settings.rerank.reserve)
    if asked.kept and (asked.fused is not None or reranked):
        found |= _with_less(bucket, asked, known, reranked, depth)
    for name, lists in recalled.items():
        found[name] = {user: items[:depth] for user, items in lists.items()}
    found[BY_POPULARITY] = _by_popularity(candidates, layout, depth)
    return found


def _with_less(bucket: int, asked: Asked, known: Catalogue, reranked: bool, depth: int) -> dict[str, Lists]:
    """The lists that the ranker alone, the scores without rerank, and the fusions without something make of a run's
    candidates. From the run's own lists the last differ in nothing else: what items weigh is added, users whom the
    weights of new users rank are left to these, and lists are chosen likewise (but for rerank.reserve)."""
    table, parts = score_parts.read(buckets.bucket_file(asked.kept, bucket))
    users, items = table[USER].to_pylist(), flatten(table[ITEMS])[0].cast(pa.string())
    ranked = flatten(table[SCORES])[0].to_numpy(zero_copy_only=False)

    def named(best: np.ndarray, lengths: np.ndarray) -> Lists:
        lists = as_lists(items.take(pa.array(best)), offsets_of(lengths)).to_pylist()
        return {str(user): found for user, found in zip(users, lists, strict=True)}

    made = {BEFORE_RERANK: named(*first_of(ranked, parts.offsets, depth))} if reranked else {}
    if asked.fused is None:
        return made
    alone = parts.only([score_parts.RANKER]).values[:, 0].astype(np.float32)
    made[RANKER_ALONE] = named(*first_of(alone, parts.offsets, depth))
    rows = item_rows(table[ITEMS], known.ids)
    how = rerank.ready(known.rerank, asked.settings.rerank, asked.layout, known.ids)
    more = 0.0 if known.bonus is None else known.bonus[rows.values]
    as_new = np.zeros(len(users), bool) if asked.fused.new_users is None else _without_history(bucket, asked, table)
    theirs = np.repeat(as_new, parts.lengths)
    for name, of in asked.fused.without.items():
        scores = np.where(theirs, ranked, of.score(parts) + more).astype(np.float32)
        best, lengths = requests.listed(scores, rows, max(depth, asked.settings.score.top_k), how)
        first = within(lengths) < depth
        made[f"fused without {name}"] = named(best[first], np.minimum(lengths, depth))
    return made


def _without_history(bucket: int, asked: Asked, users: pa.Table) -> np.ndarray:
    """bool[n]: who of these users was ranked without one."""
    past = buckets.read_parquet(buckets.bucket_file(asked.layout.histories, bucket), [USER, ITEMS, TRAIN_LENGTH])
    past = HISTORIES[asked.settings.score.history](past)
    lengths = pa.compute.list_value_length(past[ITEMS]).combine_chunks()
    place = pa.compute.index_in(users[USER].combine_chunks(), past[USER].combine_chunks())
    return np.asarray(lengths.take(place).fill_null(0).to_numpy(zero_copy_only=False) == 0)


def lists_of(table: pa.Table) -> Lists:
    """A bucketed table of lists; ids as text, as ir-measures wants them."""
    users = table[USER].to_pylist()
    return {str(u): [str(i) for i in items] for u, items in zip(users, table[ITEMS].to_pylist(), strict=True)}


def candidates_of(unit: dict[str, Any], asked: Asked, known: Catalogue) -> Lists:
    """What the run scored of each user, best recalled first: its candidates table, judged as it was then.

    unit: the bucket, and where its candidates are, empty for nowhere.

    Raises:
        UserError: the tables do not go together.
    """
    uri, history = unit[CANDIDATES], asked.settings.score.history
    if not uri:
        return {}
    columns = [USER, ITEMS] if history == "known" else [USER, ITEMS, TRAIN_LENGTH]
    past = buckets.read_parquet(buckets.bucket_file(asked.layout.histories, unit[BUCKET]), columns)
    work = requests.build(HISTORIES[history](past), requests.read_candidates(uri), known.rules, uri)
    lists = as_lists(known.texts.take(pa.array(work.candidates.values)), work.candidates.offsets).to_pylist()
    return {str(user): items for user, items in zip(work.users.to_pylist(), lists, strict=True)}


def _by_popularity(candidates: Lists, layout: Layout, depth: int) -> Lists:
    """The candidates that were scored, in the order of how many users had each: what a ranking has to beat."""
    table = buckets.read_parquet(layout.popularity)
    users = dict(zip((str(i) for i in table[ITEM].to_pylist()), table[schema.USERS].to_pylist(), strict=True))
    return {u: sorted(items, key=lambda i: -users.get(i, 0))[:depth] for u, items in candidates.items()}


def lists_of_rows(table: pa.Table, depth: int) -> Lists:
    """The first items of each user of a rankings table, whose rows are in order; ids as text."""
    lists: Lists = {}
    for user, item in zip(table[USER].to_pylist(), table[ITEM].to_pylist(), strict=True):
        lists.setdefault(str(user), []).append(str(item))
    return {user: items[:depth] for user, items in lists.items()}
