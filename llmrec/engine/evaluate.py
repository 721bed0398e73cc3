"""evaluate: held-out truth against published rankings and each candidate generator alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from llmrec import config, schema, storage
from llmrec.engine import score_parts
from llmrec.engine.units import each, reporting
from llmrec.errors import UserError
from llmrec.evaluation import metrics, sources
from llmrec.fusion import ablations
from llmrec.fusion.parts import first_of
from llmrec.layout import Layout
from llmrec.ranker.ragged import offsets_of
from llmrec.schema import BUCKET, ITEM, ITEMS, USER
from llmrec.tables import buckets, rankings
from llmrec.tables.histories import as_lists, flatten

OURS = "llm ranking"
RANKER_ALONE = "the ranker alone"
BY_POPULARITY = "its candidates by popularity"


@dataclass(frozen=True)
class Row:
    """One ranking's metrics over some users.

    interval: 95% bootstrap interval of each mean; lead: the same of our ranking's mean minus this one's, user by user.
    """

    name: str
    users: int
    values: dict[str, float]
    interval: dict[str, tuple[float, float]]
    lead: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Source:
    """A source of candidates over all users with truth, or all of them together.

    recall: share of a user's true items among its first k, its mean; alone: of those, what no other source finds in its
    own first k, and what would be lost without it; None of all together. interval: as of `Row`, of both.
    """

    name: str
    recall: dict[str, float]
    alone: dict[str, float] | None
    interval: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Evaluated:
    """all_users: every ranking over all users with truth; same_users: over those that each further table ranks."""

    all_users: list[Row]
    same_users: dict[str, list[Row]]
    sources: list[Source]
    recall_of_candidates: float
    table: str


def evaluate(settings: config.Config, layout: Layout, say: Callable[[str], None]) -> Evaluated:
    """Full-catalogue metrics: nothing is sampled, items seen in the history were never candidates.

    Raises:
        UserError: no truth was held out, or a table is missing.
    """
    tables = {OURS: settings.score.output or layout.rankings, **settings.evaluate.rankings}
    opened = {name: _opened(uri) for name, uri in tables.items()}
    if max(settings.evaluate.cutoffs) > settings.score.top_k:
        say(f"evaluate.cutoffs go beyond score.top_k = {settings.score.top_k}: the rankings end there")
    units = [{BUCKET: b, "uri": uri} for b, uri in buckets.bucket_files(layout.targets).items()]
    run_id = rankings.shown(opened[OURS])["run_id"]
    fused = _fitted(settings.fusion, layout, run_id)
    arguments = {"layout": layout, "tables": tables, "settings": settings, "fused": fused, "run_id": run_id}
    rows = reporting(each(units, _measure, arguments), len(units), say, "evaluate")
    users = sum(row["users"] for row in rows)
    if users == 0:
        raise UserError(
            f"{layout.targets}: no held-out events; set data.split to leave_one_out or time and prepare again"
        )
    labels = metrics.names(settings.evaluate.cutoffs)
    names = rows[0]["names"]
    # rankings x metrics x users, and rankings x users who are ranked
    values = np.concatenate([np.asarray(r["values"]).reshape(len(names), len(labels), -1) for r in rows], axis=2)
    ranked = np.concatenate([np.asarray(r["ranked"], bool).reshape(len(names), -1) for r in rows], axis=1)

    def spread(one: np.ndarray) -> tuple[float, float]:
        return metrics.interval(one, settings.evaluate.bootstrap, settings.evaluate.seed)

    def row(i: int, mask: np.ndarray) -> Row:
        part, ours = values[i][:, mask], values[names.index(OURS)][:, mask]
        return Row(
            name=names[i],
            users=int(mask.sum()),
            values=dict(zip(labels, part.mean(axis=1).tolist(), strict=True)),
            interval=dict(zip(labels, map(spread, part), strict=True)),
            lead=dict(zip(labels, map(spread, ours - part), strict=True)),
        )

    everyone = np.ones(users, bool)
    others = {n: i for i, n in enumerate(names) if n in settings.evaluate.rankings}
    return Evaluated(
        all_users=[row(i, everyone) for i in range(len(names)) if i not in others.values()],
        same_users={n: [row(j, ranked[i]) for j in range(len(names))] for n, i in others.items() if ranked[i].any()},
        sources=_sources(rows, settings, spread),
        recall_of_candidates=float(sum(r["found"] for r in rows) / users),
        table=layout.evaluation,
    )


def _sources(rows: list[dict[str, Any]], settings: config.Config, spread: Callable[..., Any]) -> list[Source]:
    names, cutoffs = [*settings.recall.merge, sources.UNION], settings.evaluate.recall_cutoffs
    shares = np.concatenate([np.asarray(r["shares"]).reshape(-1, len(names), len(cutoffs), 2) for r in rows])
    found = []
    for i, name in enumerate(names):
        recall = {f"recall@{k}": shares[:, i, j, 0] for j, k in enumerate(cutoffs)}
        alone = {f"alone@{k}": shares[:, i, j, 1] for j, k in enumerate(cutoffs)} if name != sources.UNION else {}
        means = [{label: float(values.mean()) for label, values in of.items()} for of in (recall, alone)]
        found.append(Source(name, means[0], means[1] or None, {k: spread(v) for k, v in (recall | alone).items()}))
    return found


def _opened(uri: str) -> Any:
    found = rankings.opened(uri)
    if found is None:
        raise UserError(f"{uri}: no rankings are published there; run jobs/score.py first")
    return found


def _fitted(wanted: config.Fusion, layout: Layout, run_id: str) -> ablations.Fitted | None:
    """The fusion of the run that is shown, if it kept what its scores are made of."""
    if wanted.method == "none" or not storage.exists(layout.score_parts(run_id)):
        return None
    uri = storage.absolute(wanted.model) if wanted.model else layout.fusion
    return ablations.Fitted.from_json(storage.read_bytes(uri), uri)


def _with_less(fused: ablations.Fitted, uri: str, depth: int) -> dict[str, dict[str, list[str]]]:
    """The lists that the ranker alone, and the fusions without something, make of a run's candidates."""
    table, parts = score_parts.read(uri)
    users, items = table[USER].to_pylist(), flatten(table[ITEMS])[0].cast(pa.string())
    ranker = parts.only([score_parts.RANKER]).values[:, 0]
    scores = {RANKER_ALONE: ranker} | {f"fused without {name}": f.score(parts) for name, f in fused.without.items()}
    made = {}
    for name, values in scores.items():
        best, lengths = first_of(values.astype(np.float32), parts.offsets, depth)
        lists = as_lists(items.take(pa.array(best)), offsets_of(lengths)).to_pylist()
        made[name] = {str(user): found for user, found in zip(users, lists, strict=True)}
    return made


def _measure(
    batch: pa.Table, layout: Layout, tables: dict[str, str], settings: config.Config,
    fused: ablations.Fitted | None, run_id: str,
) -> pa.Table:  # fmt: skip
    """Per-user metrics of every ranking over one bucket's users."""
    (unit,) = batch.to_pylist()
    depth = max(settings.evaluate.cutoffs)
    truth = _lists(buckets.read_parquet(unit["uri"]), None)
    found: dict[str, dict[str, list[str]]] = {}
    for name, uri in tables.items():
        found[name] = _published(uri, unit[BUCKET], depth)
    if fused is not None:
        found |= _with_less(fused, buckets.bucket_file(layout.score_parts(run_id), unit[BUCKET]), depth)
    merged = buckets.read_parquet(buckets.bucket_file(layout.candidates(), unit[BUCKET]))
    recalled: dict[str, dict[str, list[str]]] = {
        name: _lists(buckets.read_parquet(buckets.bucket_file(layout.candidates(name), unit[BUCKET])), None)
        for name in settings.recall.merge
    }
    for name, lists in recalled.items():
        found[name] = {user: items[:depth] for user, items in lists.items()}
    candidates = _lists(merged, None)
    found[BY_POPULARITY] = _by_popularity(candidates, layout, settings.score.max_candidates, depth)
    hits = sum(bool(set(items) & set(candidates.get(user, ()))) for user, items in truth.items())
    values, ranked = [], []
    for lists in found.values():
        measured = metrics.per_user(truth, lists, settings.evaluate.cutoffs)
        values.append(np.stack(list(measured.values())).ravel())
        ranked.append([user in lists for user in truth])
    return pa.table({
        "names": [list(found)], "users": [len(truth)], "found": [hits],
        "shares": [sources.found(truth, recalled, settings.evaluate.recall_cutoffs).ravel().tolist()],
        "values": [np.concatenate(values).tolist()], "ranked": [np.concatenate(ranked).astype(int).tolist()],
    })  # fmt: skip


def _lists(table: pa.Table, depth: int | None) -> dict[str, list[str]]:
    users = table[USER].to_pylist()
    return {str(u): [str(i) for i in items[:depth]] for u, items in zip(users, table[ITEMS].to_pylist(), strict=True)}


def _by_popularity(candidates: dict[str, list[str]], layout: Layout, limit: int, depth: int) -> dict[str, list[str]]:
    """The candidates that were ranked, in the order of how many users had each: what a ranking has to beat."""
    table = buckets.read_parquet(layout.popularity)
    users = dict(zip((str(i) for i in table[ITEM].to_pylist()), table[schema.USERS].to_pylist(), strict=True))
    return {u: sorted(items[:limit], key=lambda i: -users.get(i, 0))[:depth] for u, items in candidates.items()}


def _published(uri: str, bucket: int, depth: int) -> dict[str, list[str]]:
    table = rankings.read_bucket(uri, bucket)
    lists: dict[str, list[str]] = {}
    for user, item in zip(table[USER].to_pylist(), table[ITEM].to_pylist(), strict=True):
        lists.setdefault(str(user), []).append(str(item))
    return {user: items[:depth] for user, items in lists.items()}
