"""evaluate: held-out truth against published rankings and each candidate generator alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmrec import config, storage
from llmrec.engine import evaluate_items, labelled_pairs, rerank, tasks
from llmrec.engine.evaluate_bucket import measure_bucket
from llmrec.engine.evaluate_items import HISTORY, Catalogue
from llmrec.engine.measured import Measured, from_bytes, together
from llmrec.engine.ranking_lists import CANDIDATES, OURS, Asked
from llmrec.engine.run import as_run, candidates_table, placed
from llmrec.engine.units import each, reporting
from llmrec.errors import UserError
from llmrec.evaluation import beyond, bootstrap, fairness, metrics, segments, significance, sources
from llmrec.evaluation.calibration import Calibration, calibration
from llmrec.evaluation.fairness import Fairness
from llmrec.evaluation.labelled import Labelled, labelled
from llmrec.evaluation.segments import Grouping, Segments
from llmrec.evaluation.verdict import main_metric
from llmrec.fusion import ablations
from llmrec.layout import Layout
from llmrec.schema import BUCKET
from llmrec.tables import buckets, rankings


@dataclass(frozen=True)
class Row:
    """One ranking's metrics over some users, of whom it has lists for `ranked`; one without a list counts as 0.

    interval: 95% bootstrap interval of each mean; lead: the same of our ranking's mean minus this one's, user by user;
    p_value: of that difference, by `significance.paired_permutation`, none of our own; beyond: of `beyond.figures`.
    """

    name: str
    users: int
    ranked: int
    values: dict[str, float]
    interval: dict[str, tuple[float, float]]
    lead: dict[str, tuple[float, float]]
    p_value: dict[str, float]
    beyond: dict[str, float | None]


@dataclass(frozen=True)
class Source:
    """A source of candidates over all users with truth, all of them together, or what was scored of what they brought.

    users: for whom it has any; recall: share of a user's true items among its first k, its mean; alone: of those, what
    no other source finds in its own first k, and what would be lost without it; None of all together. interval: as of
    `Row`, of both.
    """

    name: str
    users: int
    recall: dict[str, float]
    alone: dict[str, float] | None
    interval: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Evaluated:
    """all_users: every ranking over all users with truth, of the share of users that is measured: users_share, that
    which the run scored, or less where these are more than `evaluate.users` (sampled); held_out_users: all who have
    truth; same_users: over those that each further table ranks, no rows where it ranks none of them; run_id: of our
    ranking.

    parts_unknown: whether a fused run kept no score parts, so that nothing tells what each adds. recall_of_candidates:
    share of a user's true items among the candidates that the run scored, the mean, which no ranking of these can go
    beyond in recall. segments: of the rankings of all_users. fairness: of ours, and so calibration, which is None where
    no probability is published. labelled: None if no labelled pairs are given.
    """

    run_id: str
    users_share: float
    sampled: bool
    held_out_users: int
    all_users: list[Row]
    same_users: dict[str, list[Row]]
    segments: list[Segments]
    fairness: Fairness
    calibration: Calibration | None
    labelled: Labelled | None
    parts_unknown: bool
    sources: list[Source]
    recall_of_candidates: float
    table: str


def evaluate(settings: config.Config, layout: Layout, say: Callable[[str], None]) -> Evaluated:
    """Full-catalogue metrics: nothing is sampled, items seen in the history were never candidates.

    Raises:
        UserError: no truth was held out, a table or a column is missing, or labelled pairs cannot be scored.
    """
    import ray

    wanted = settings.evaluate
    tables = {OURS: settings.score.output or layout.rankings, **wanted.rankings}
    tables = {name: storage.absolute(uri) for name, uri in tables.items()}
    opened = {name: rankings.published(uri) for name, uri in tables.items()}
    run_id = rankings.shown(opened[OURS])["run_id"]
    settings = as_run(settings, layout, run_id)
    if max(wanted.cutoffs) > settings.score.top_k:
        say(f"evaluate.cutoffs go beyond score.top_k = {settings.score.top_k}: the rankings end there")
    deepest = max(getattr(settings.recall, name).top for name in settings.recall.merge)
    if max(wanted.recall_cutoffs) > deepest:
        say(f"evaluate.recall_cutoffs go beyond the {deepest} candidates that a source brings (recall.*.top) at most")
    prepared = len(buckets.bucket_files(layout.histories))
    for name, table in opened.items():
        if (there := int(rankings.shown(table)["buckets"])) != prepared:
            raise UserError(
                f"{tables[name]}: has {there} buckets, {layout.histories} has {prepared}; score and publish it again"
            )
    scored = buckets.bucket_files(candidates_table(settings.score, layout))
    targets = buckets.bucket_files(layout.targets)
    units = [{BUCKET: b, "uri": uri, CANDIDATES: scored.get(b, "")} for b, uri in targets.items()]
    share, held_out = buckets.share_for(targets.values(), wanted.users)
    if share < settings.score.users_share:
        say(f"measuring about {wanted.users:,} of {held_out:,} users (evaluate.users)")
    attributes = evaluate_items.attributes(wanted, layout)
    rules = tasks.of_candidates(placed(settings.score), layout)
    known = evaluate_items.catalogue(wanted, settings.items.separator, rules, layout)
    pairs = {}
    if wanted.labelled:
        pairs = labelled_pairs.by_bucket(wanted.labelled, settings.privacy, layout, run_id)
    kept = layout.score_parts(run_id) if storage.exists(layout.score_parts(run_id)) else ""
    fused = _fitted(layout.fusion_of(run_id)) if kept else None
    if fused is not None:
        chosen = rerank.of_items(settings.reranking, layout, known.ids)
        bonus = tasks.together([tasks.weights(settings.fusion.item_weights, layout, known.ids), chosen.bonus])
        known = replace(known, rerank=chosen.rerank, bonus=bonus)
    arguments = {
        "asked": Asked(settings, layout, tables, fused, run_id, kept, attributes, share),
        "catalogue": ray.put(known),
        "labelled": {bucket: ray.put(table) for bucket, table in pairs.items()},
    }
    done = reporting(_unpacked(each(units, measure_bucket, arguments)), len(units), say, "evaluate")
    found = together([row["measured"] for row in sorted(done, key=lambda row: row[BUCKET])])
    if found.users == 0:
        share = settings.score.users_share
        raise UserError(
            f"{layout.targets}: no held-out events; set data.split to leave_one_out or time and prepare again"
            if share == 1 else f"{layout.targets}: no held-out events of score.users_share = {share:g} of users; score "
            "more of them"
        )  # fmt: skip
    say(f"resampling {found.users:,} users")
    compared = [i for i, name in enumerate(found.names) if name not in wanted.rankings]
    of_users = _groupings(found, wanted)
    return Evaluated(
        run_id=run_id,
        users_share=min(share, settings.score.users_share),
        sampled=share < settings.score.users_share,
        held_out_users=held_out,
        all_users=[row for i, row in enumerate(_rows(found, wanted, 0)) if i in compared],
        same_users=_same_users(found, wanted),
        segments=_segments(found, known, of_users, compared, wanted),
        fairness=_fairness(found, known, of_users, wanted),
        calibration=calibration(found.predicted, found.observed),
        labelled=replace(
            labelled(found.pairs.user, found.pairs.scores, found.pairs.label),
            pairs=sum(table.num_rows for table in pairs.values()),
        ) if wanted.labelled else None,
        parts_unknown=_parts_unknown(found, kept),
        sources=_sources(found, settings),
        recall_of_candidates=float(found.within_reach.mean()),
        table=layout.evaluation,
    )  # fmt: skip


def _unpacked(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield {BUCKET: row[BUCKET], "measured": from_bytes(row["arrays"], row["attributes"])}


def _fitted(uri: str) -> ablations.Fitted | None:
    """A run's fusion, and those without something; None if it had none."""
    return ablations.Fitted.from_json(storage.read_bytes(uri), uri) if storage.exists(uri) else None


def _parts_unknown(found: Measured, kept: str) -> bool:
    """Whether a run was fused, for that alone gives probabilities, and has no score parts. kept: where these are."""
    return not kept and len(found.predicted) > 0


def _rows(found: Measured, wanted: config.Evaluate, subset: int) -> list[Row]:
    """Every ranking over a subset of the users: 0 all of them, else those of a further table, by their order."""
    labels = metrics.names(wanted.cutoffs, wanted.metrics)
    at = found.names.index(OURS)
    mask = np.ones(found.users, bool)
    if subset:
        mask = found.ranked[found.names.index(list(wanted.rankings)[subset - 1])]
    values = found.values[:, :, mask]
    flat = values.reshape(-1, values.shape[2])
    samples = bootstrap.means(flat, wanted.bootstrap, wanted.seed).reshape(*values.shape[:2], -1)
    subsets, cutoffs = found.sums.shape[1:3]
    differences = (values[at] - values).reshape(flat.shape)
    p_values = significance.paired_permutation(differences, wanted.permutations, wanted.seed).reshape(len(values), -1)
    rows = []
    for i, name in enumerate(found.names):
        first = (i * subsets + subset) * cutoffs
        rows.append(
            Row(
                name=name,
                users=values.shape[2],
                ranked=int(found.ranked[i, mask].sum()),
                values=dict(zip(labels, values[i].mean(axis=1).tolist(), strict=True)),
                interval=dict(zip(labels, map(bootstrap.bounds, samples[i]), strict=True)),
                lead=dict(zip(labels, map(bootstrap.bounds, samples[at] - samples[i]), strict=True)),
                p_value=dict(zip(labels, p_values[i].tolist(), strict=True)) if i != at else {},
                beyond=beyond.figures(found.exposed[first : first + cutoffs], found.sums[i, subset], wanted.cutoffs),
            )
        )
    return rows


def _same_users(found: Measured, wanted: config.Evaluate) -> dict[str, list[Row]]:
    """By each further table every ranking over the users that it ranks; no rows if it ranks none."""
    return {
        name: _rows(found, wanted, 1 + i) if found.ranked[found.names.index(name)].any() else []
        for i, name in enumerate(wanted.rankings)
    }


def _groupings(found: Measured, wanted: config.Evaluate) -> list[Grouping]:
    """Of users."""
    of_columns = [
        evaluate_items.of_attribute(name, found.attributes[name], wanted) for name in found.attributes.column_names
    ]
    return [segments.by_counts(HISTORY, found.history)] * (HISTORY in wanted.segments) + of_columns


def _segments(
    found: Measured, known: Catalogue, of_users: list[Grouping], compared: list[int], wanted: config.Evaluate
) -> list[Segments]:
    labels = metrics.names(wanted.cutoffs, wanted.metrics)
    names = [found.names[i] for i in compared]
    made = {
        by.by: segments.measure(by, "user", names, labels, found.values[compared], wanted.bootstrap, wanted.seed)
        for by in of_users
    }
    for i, grouping in enumerate(known.true):
        by = grouping.of_pairs(found.of_items[i].group)
        values = found.values_of(i)[compared]
        made[by.by] = segments.measure(by, "item", names, labels, values, wanted.bootstrap, wanted.seed)
    return [made[name] for name in wanted.segments]


def _fairness(found: Measured, known: Catalogue, of_users: list[Grouping], wanted: config.Evaluate) -> Fairness:
    labels = metrics.names(wanted.cutoffs, wanted.metrics)
    metric = main_metric(labels)
    ours = found.names.index(OURS), labels.index(metric)
    gaps = [fairness.gap(by, metric, found.values[ours], wanted.bootstrap, wanted.seed) for by in of_users]
    of_items = [
        fairness.gap(
            by.of_pairs(of.group), metric, found.values_of(i)[ours], wanted.bootstrap, wanted.seed, users=of.user
        )
        for i, (by, of) in enumerate(zip(known.true, found.of_items, strict=True))
    ]
    items, start = [], 0
    for grouping in known.shown:
        own = slice(start, start + len(grouping.names))
        items.append(
            fairness.shares(
                grouping.by, grouping.names, np.asarray(grouping.shares().sum(axis=0)).ravel(), found.truth[own],
                found.shown[:, own], wanted.bootstrap, wanted.seed,
            )
        )  # fmt: skip
        start = own.stop
    return Fairness([gap for gap in gaps if gap is not None], [gap for gap in of_items if gap is not None], items)


def _sources(found: Measured, settings: config.Config) -> list[Source]:
    names, cutoffs = [*settings.recall.merge, sources.UNION, sources.SCORED], settings.evaluate.recall_cutoffs
    flat = found.shares.reshape(found.users, -1).T
    shape = found.shares.shape[1:]
    means = flat.mean(axis=1).reshape(shape)
    samples = bootstrap.means(flat, settings.evaluate.bootstrap, settings.evaluate.seed).reshape(*shape, -1)
    made = []
    for i, name in enumerate(names):
        kinds = {"recall": 0} | ({"alone": 1} if name in settings.recall.merge else {})
        of = {kind: {f"{kind}@{k}": float(means[i, j, n]) for j, k in enumerate(cutoffs)} for kind, n in kinds.items()}
        interval = {
            f"{kind}@{k}": bootstrap.bounds(samples[i, j, n])
            for kind, n in kinds.items()
            for j, k in enumerate(cutoffs)
        }
        made.append(Source(name, int(found.brought[i]), of["recall"], of.get("alone"), interval))
    return made
