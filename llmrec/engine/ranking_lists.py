"""Every ranking that evaluate compares, as lists of a bucket's users: published, recalled, or made of kept parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from llmrec import config, schema
from llmrec.engine import score_parts
from llmrec.fusion import ablations
from llmrec.fusion.parts import first_of
from llmrec.layout import Layout
from llmrec.ranker.ragged import offsets_of
from llmrec.schema import ITEM, ITEMS, SCORES, USER
from llmrec.tables import buckets, rankings
from llmrec.tables.histories import as_lists, flatten

OURS = "llm ranking"
RANKER_ALONE = "the ranker alone"
BEFORE_RERANK = "before rerank"
BY_POPULARITY = "its candidates by popularity"
Lists = dict[str, list[str]]


@dataclass(frozen=True)
class Asked:
    """What is evaluated. tables: rankings tables by name, ours first; fused: the fusion whose parts the run kept; kept:
    where these are, empty if it kept none; attributes: columns of the users table."""

    settings: config.Config
    layout: Layout
    tables: dict[str, str]
    fused: ablations.Fitted | None
    run_id: str
    kept: str
    attributes: tuple[str, ...]


def of_bucket(
    bucket: int, asked: Asked, ours: pa.Table, recalled: dict[str, Lists], candidates: Lists, depth: int
) -> dict[str, Lists]:
    """Every ranking's first items of each of its users."""
    layout = asked.layout
    found = {OURS: lists_of_rows(ours, depth)}
    for name, uri in asked.tables.items():
        if name != OURS:
            found[name] = lists_of_rows(rankings.read_bucket(uri, bucket), depth)
    reranked = asked.settings.rerank.chooses or bool(asked.settings.rerank.reserve)
    if asked.kept and (asked.fused is not None or reranked):
        found |= _with_less(asked.fused, reranked, buckets.bucket_file(asked.kept, bucket), depth)
    for name, lists in recalled.items():
        found[name] = {user: items[:depth] for user, items in lists.items()}
    found[BY_POPULARITY] = _by_popularity(candidates, layout, asked.settings.score.max_candidates, depth)
    return found


def _with_less(fused: ablations.Fitted | None, reranked: bool, uri: str, depth: int) -> dict[str, Lists]:
    """The lists that the ranker alone, the fusions without something, and the scores without rerank make of a run's
    candidates."""
    table, parts = score_parts.read(uri)
    users, items = table[USER].to_pylist(), flatten(table[ITEMS])[0].cast(pa.string())
    scores = {BEFORE_RERANK: flatten(table[SCORES])[0].to_numpy(zero_copy_only=False)} if reranked else {}
    if fused is not None:
        scores[RANKER_ALONE] = parts.only([score_parts.RANKER]).values[:, 0]
        scores |= {f"fused without {name}": of.score(parts) for name, of in fused.without.items()}
    made = {}
    for name, values in scores.items():
        best, lengths = first_of(values.astype(np.float32), parts.offsets, depth)
        lists = as_lists(items.take(pa.array(best)), offsets_of(lengths)).to_pylist()
        made[name] = {str(user): found for user, found in zip(users, lists, strict=True)}
    return made


def lists_of(table: pa.Table) -> Lists:
    """A bucketed table of lists; ids as text, as ir-measures wants them."""
    users = table[USER].to_pylist()
    return {str(u): [str(i) for i in items] for u, items in zip(users, table[ITEMS].to_pylist(), strict=True)}


def _by_popularity(candidates: Lists, layout: Layout, limit: int, depth: int) -> Lists:
    """The candidates that were ranked, in the order of how many users had each: what a ranking has to beat."""
    table = buckets.read_parquet(layout.popularity)
    users = dict(zip((str(i) for i in table[ITEM].to_pylist()), table[schema.USERS].to_pylist(), strict=True))
    return {u: sorted(items[:limit], key=lambda i: -users.get(i, 0))[:depth] for u, items in candidates.items()}


def lists_of_rows(table: pa.Table, depth: int) -> Lists:
    """The first items of each user of a rankings table, whose rows are in order; ids as text."""
    lists: Lists = {}
    for user, item in zip(table[USER].to_pylist(), table[ITEM].to_pylist(), strict=True):
        lists.setdefault(str(user), []).append(str(item))
    return {user: items[:depth] for user, items in lists.items()}
