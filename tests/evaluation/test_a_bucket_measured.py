"""One bucket's figures from its tables, against plain Python; no Ray."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from llmrec import config, schema, storage
from llmrec.config import Privacy
from llmrec.engine import evaluate, evaluate_items, gate, labelled_pairs, measured, score_parts
from llmrec.engine.evaluate_bucket import measured as measured_bucket
from llmrec.engine.evaluate_items import Catalogue
from llmrec.engine.measured import from_bytes, to_bytes, together
from llmrec.engine.ranking_lists import BY_POPULARITY, OURS, Asked, _with_less
from llmrec.engine.run import as_run
from llmrec.errors import UserError
from llmrec.evaluation import beyond, conditions, segments
from llmrec.fusion import ablations
from llmrec.fusion.model import Fusion
from llmrec.fusion.parts import Parts
from llmrec.fusion.rerank import Quota, Rerank
from llmrec.fusion.rules import coded
from llmrec.layout import Layout
from llmrec.tables import buckets, rankings, requests
from llmrec.tables.histories import as_lists, item_rows

ITEMS, USERS, RUN = 20, 30, "run"
GENRES = [["a"], ["a", "b"], ["b"], ["c"]]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Two buckets; every user has one to four held-out items, some a ranking and an age."""
    made, rng = Layout(str(tmp_path_factory.mktemp("root"))), np.random.default_rng(0)
    buckets.write_parquet(pa.table({"item_id": range(ITEMS), "genres": [GENRES[i % 4] for i in range(ITEMS)]}),
                          made.items)  # fmt: skip
    popularity = pa.table({"item_id": range(ITEMS), "users": [i % 7 for i in range(ITEMS)]})
    buckets.write_parquet(popularity, made.popularity)
    users = pa.array(range(USERS))
    files = []
    for b in range(2):
        here = [u for u, of in zip(range(USERS), buckets.bucket_of(users, 2), strict=True) if of == b]
        lists = {u: rng.permutation(ITEMS).tolist() for u in here}
        truth = [lists[u][:3][: rng.integers(1, 3)] + lists[u][10 : rng.integers(10, 12)] for u in here]
        past = [lists[u][12 : rng.integers(12, 20)] for u in here]
        pairs: dict[str, Any] = {"user_id": pa.array(here), "item_ids": truth}
        buckets.write_parquet(pa.table(pairs), buckets.bucket_file(made.targets, b))
        buckets.write_parquet(pa.table(pairs | {"item_ids": pa.array(past, pa.list_(pa.int64()))}),
                              buckets.bucket_file(made.histories, b))  # fmt: skip
        buckets.write_parquet(pa.table({"user_id": here, "age": [None if u % 5 == 0 else u for u in here]}),
                              buckets.bucket_file(made.users, b))  # fmt: skip
        for source in ("merged", "item_item", "popularity"):
            buckets.write_parquet(pa.table(pairs | {"item_ids": [lists[u][:12] for u in here]}),
                                  buckets.bucket_file(made.candidates(source), b))  # fmt: skip
        rows = [(u, r + 1, lists[u][r], 0.5 - r / 20) for u in here if u % 6 for r in range(5)]
        nothing = {n: pa.nulls(len(rows)) for n in ("ranker_score", "recall_score", "source", "model_version")}
        columns = dict(zip(("user_id", "rank", "item_id", "score"), zip(*rows, strict=True), strict=True))
        columns |= {"probability": columns["score"], "run_id": [RUN] * len(rows), **nothing}
        kind = schema.rankings(pa.int64(), pa.int64())
        path = rankings.staged_path(RUN, b)
        size = buckets.write_parquet(pa.table(columns).select(kind.names).cast(kind), f"{made.rankings}/{path}")
        files.append(rankings.StagedFile(b, path, size, len(rows)))
        scores = [[i / 10 for i in range(12, 0, -1)] for _ in here]
        parts = {"item_ids": [lists[u][:12] for u in here], "scores": scores, "score_ranker": scores}
        buckets.write_parquet(pa.table({"user_id": here, **parts}), buckets.bucket_file(made.score_parts(RUN), b))
    rankings.publish(made.rankings, files, 2, schema.rankings(pa.int64(), pa.int64()), RUN)
    return made


def settings(**evaluate: Any) -> config.Config:
    return config.build({"evaluate": {"cutoffs": [2, 5], **evaluate}})


def known(layout: Layout) -> Catalogue:
    ids = pa.array(range(ITEMS))
    genres = pa.array([GENRES[i % 4] for i in range(ITEMS)])
    grouping = segments.by_texts("items.genres", genres.flatten(), 5, np.diff(genres.offsets.to_numpy()))
    had = np.arange(ITEMS) % 7
    return Catalogue(
        ids, ids.cast(pa.string()), beyond.item_facts(had, USERS), (grouping,),
        (segments.by_popularity("popularity", had), grouping), beyond.unit_categories([genres]),
        requests.Rules(ids, np.zeros(ITEMS, bool), True, 100),
    )  # fmt: skip


def units(layout: Layout, candidates: str = "merged") -> list[dict[str, Any]]:
    where = buckets.bucket_files(layout.candidates(candidates))
    return [{"bucket": b, "uri": uri, "candidates": where[b]}
            for b, uri in buckets.bucket_files(layout.targets).items()]  # fmt: skip


@pytest.fixture(scope="module")
def parts(layout: Layout) -> list[measured.Measured]:
    asked = Asked(settings(), layout, {OURS: layout.rankings}, None, RUN, "", ("age",))
    labelled = pa.table({"user_id": range(USERS), "item_id": [u % ITEMS for u in range(USERS)],
                         "label": [u % 3 == 0 for u in range(USERS)]})  # fmt: skip
    which = buckets.bucket_of(labelled["user_id"], 2)
    return [
        measured_bucket(unit, asked, known(layout), labelled.filter(pa.array(which == unit["bucket"])))
        for unit in units(layout)
    ]


def tables(layout: Layout) -> tuple[list[int], dict[int, list[int]], dict[int, list[int]]]:
    """Users in the order of buckets, their held-out items, and our lists."""
    targets = buckets.read_parquet(layout.targets)
    truth = dict(zip(targets["user_id"].to_pylist(), targets["item_ids"].to_pylist(), strict=True))
    lists: dict[int, list[int]] = {}
    for row in rankings.read(layout.rankings).to_pylist():
        lists.setdefault(row["user_id"], []).append(row["item_id"])
    return list(truth), truth, lists


def ndcg(items: list[int], true: set[int]) -> float:
    gain = sum(1 / math.log2(r + 2) for r, item in enumerate(items) if item in true)
    return gain / sum(1 / math.log2(r + 2) for r in range(min(5, len(true))))


def test_true_items_of_a_group_alone_count_in_it(layout: Layout, parts: list[measured.Measured]) -> None:
    found = together([from_bytes(*to_bytes(part)) for part in parts])
    users, truth, lists = tables(layout)
    (of,) = found.of_items
    names, values = known(layout).true[0].names, found.values_of(0)
    at = found.names.index(OURS), 5  # NDCG at the second of two cut-offs
    wanted = {}
    for u, user in enumerate(users):
        for name in "abc":
            if true := {i for i in truth[user] if name in GENRES[i % 4]}:
                wanted[u, name] = ndcg(lists.get(user, []), true)
    got = {(int(u), names[g]): float(v) for u, g, v in zip(of.user, of.group, values[at], strict=True)}
    assert got == pytest.approx(wanted) and any(len(truth[users[u]]) > 1 for u, _ in wanted)
    everyone = [ndcg(lists.get(user, []), set(truth[user])) for user in users]
    np.testing.assert_allclose(found.values[at], everyone)


def test_the_gap_between_groups_of_held_out_items_is_that_of_their_segments(
    layout: Layout, parts: list[measured.Measured]
) -> None:
    found, wanted = together(parts), settings(segments=["items.genres"])
    told = evaluate._fairness(found, known(layout), [], wanted.evaluate)
    (segment,) = evaluate._segments(found, known(layout), [], [found.names.index(OURS)], wanted.evaluate)
    means = {group.name: group.rows[0].values["ndcg@2"] for group in segment.groups}
    best, worst = max(means, key=lambda name: means[name]), min(means, key=lambda name: means[name])
    (gap,) = told.item_gaps
    assert (gap.by, gap.metric, gap.best, gap.worst) == ("items.genres", "ndcg@2", best, worst)
    assert gap.gap == pytest.approx(means[best] - means[worst]) and gap.low < gap.gap < gap.high
    assert told.users == [] and [of.by for of in told.items] == ["popularity", "items.genres"]


def test_what_groups_of_items_are_shown_of(layout: Layout, parts: list[measured.Measured]) -> None:
    found = together(parts)
    users, truth, lists = tables(layout)
    seen, true = np.zeros((USERS, 3)), np.zeros(3)
    for u, user in enumerate(users):
        for r, item in enumerate(lists.get(user, [])[:2]):  # the first cut-off, as 10 is none
            for name in GENRES[item % 4]:
                seen[u, "abc".index(name)] += 1 / math.log2(r + 2) / len(GENRES[item % 4])
        for item in truth[user]:
            for name in GENRES[item % 4]:
                true["abc".index(name)] += 1 / len(GENRES[item % 4])
    order = ["abc".index(name) for name in known(layout).shown[1].names]
    np.testing.assert_allclose(found.shown[:, 3:], seen[:, order], rtol=1e-6)
    np.testing.assert_allclose(found.truth[3:], true[order], rtol=1e-6)
    assert found.truth[:3].sum() == pytest.approx(true.sum())


def test_probabilities_and_what_happened(layout: Layout, parts: list[measured.Measured]) -> None:
    found = together(parts)
    _, truth, lists = tables(layout)
    wanted = sorted((0.5 - r / 20, item in truth[u]) for u, items in lists.items() for r, item in enumerate(items))
    got = sorted(zip(found.predicted.tolist(), found.observed.tolist(), strict=True))
    assert [y for _, y in got] == [y for _, y in wanted]
    assert [p for p, _ in got] == pytest.approx([p for p, _ in wanted])


def test_of_probabilities_without_parts_it_is_not_known_what_each_adds(
    layout: Layout, parts: list[measured.Measured]
) -> None:
    found = together(parts)
    unfused = replace(found, predicted=found.predicted[:0], observed=found.observed[:0])
    assert evaluate._parts_unknown(found, "") and not evaluate._parts_unknown(found, layout.score_parts(RUN))
    assert not evaluate._parts_unknown(unfused, "")


def test_labelled_pairs_have_the_scores_of_kept_parts(layout: Layout, parts: list[measured.Measured]) -> None:
    pairs = together(parts).pairs
    assert len(np.unique(pairs.user)) == USERS == len(pairs.scores)
    kept = {}
    for b in range(2):
        table, _ = score_parts.read(buckets.bucket_file(layout.score_parts(RUN), b))
        for row in table.to_pylist():
            kept.update({(row["user_id"], i): s for i, s in zip(row["item_ids"], row["scores"], strict=True)})
    order = [u for b in range(2) for u in range(USERS) if buckets.bucket_of(pa.array([u]), 2)[0] == b]
    np.testing.assert_allclose(pairs.scores, [kept.get((u, u % ITEMS), np.nan) for u in order], rtol=1e-6)
    assert 0 < np.isnan(pairs.scores).sum() < USERS
    assert pairs.label.tolist() == [u % 3 == 0 for u in order]


def test_histories_and_attributes_are_those_of_the_users(layout: Layout, parts: list[measured.Measured]) -> None:
    found = together([from_bytes(*to_bytes(part)) for part in parts])
    users, _, _ = tables(layout)
    assert found.attributes["age"].to_pylist() == [None if u % 5 == 0 else u for u in users]
    past = buckets.read_parquet(layout.histories)
    lengths = dict(zip(past["user_id"].to_pylist(), map(len, past["item_ids"].to_pylist()), strict=True))
    assert found.history.tolist() == [lengths[u] for u in users]
    grouping = evaluate_items.of_attribute("age", found.attributes["age"], settings(segments=["users.age"]).evaluate)
    assert sum(len(rows) for rows in segments.inside(grouping)) == USERS and grouping.names[-1] == segments.MISSING


@pytest.mark.parametrize("rules", [{}, {"item_weights": {"price": 1.0}}, {"rerank": True}, {"new_users": True}])
def test_a_fusion_without_what_weighs_nothing_ranks_as_the_run(layout: Layout, rules: dict[str, Any]) -> None:
    """Whatever else ranked: what items weigh, how lists are chosen, other weights for users without a history."""
    whole = Fusion(("ranker", "nothing"), ("min_max",), (1.0, 0.0), "", 1.0, 1.0, 9)
    new = Fusion(("ranker", "nothing"), ("min_max",), (-1.0, 0.0), "", 1.0, 1.0, 9) if rules.get("new_users") else None
    fitted = ablations.Fitted(whole, {"nothing": whole}, new)
    ids, rng = known(layout).ids, np.random.default_rng(0)
    made = replace(layout, root=f"{layout.root}/{'-'.join(rules)}")
    how = Rerank(12, None, 0.0, None, (Quota(coded([pa.array([GENRES[i % 4] for i in range(ITEMS)])]), 2),))
    how = how if rules.get("rerank") else None
    values = {"fusion": {"method": "linear"}, "score": {"top_k": 5}, "evaluate": {"cutoffs": [5]}}
    values["fusion"] |= {"item_weights": rules["item_weights"]} if "item_weights" in rules else {}
    if how:
        values["rerank"] = {"quotas": {"genres": 2}, "window": 12}
    added = rng.normal(size=ITEMS).astype(np.float32) if "item_weights" in rules else None
    bonus, ours = np.zeros(ITEMS) if added is None else added, {}
    table = buckets.read_parquet(buckets.bucket_file(layout.candidates(), 0))
    past = [[] if u % 2 else [1] for u in range(table.num_rows)]
    columns = {"item_ids": pa.array(past, pa.list_(pa.int64())), "train_length": [len(p) for p in past]}
    buckets.write_parquet(pa.table({"user_id": table["user_id"]} | columns), buckets.bucket_file(made.histories, 0))
    lists = item_rows(table["item_ids"], ids)
    ranker = rng.random(len(lists.values)).astype(np.float32)
    parts = Parts(("ranker", "nothing"), np.stack([ranker, rng.random(len(ranker))], axis=1), lists.offsets)
    fresh = np.repeat([not p for p in past], lists.lengths) if new else np.zeros(len(ranker), bool)
    scores = whole.score(parts) * np.where(fresh, -1, 1) + bonus[lists.values]
    best, lengths = requests.listed(scores.astype(np.float32), lists, 5, how)
    for row, items in enumerate(np.split(ids.take(pa.array(lists.values[best])).to_pylist(), np.cumsum(lengths)[:-1])):
        ours[str(table["user_id"][row].as_py())] = [str(i) for i in items]
    kept = {"item_ids": table["item_ids"], "scores": as_lists(pa.array(scores.astype(np.float32)), lists.offsets)}
    kept |= {f"score_{n}": as_lists(pa.array(parts.values[:, i]), lists.offsets) for i, n in enumerate(parts.names)}
    buckets.write_parquet(pa.table({"user_id": table["user_id"]} | kept), buckets.bucket_file(made.score_parts(RUN), 0))
    asked = Asked(config.build(values), made, {OURS: ""}, fitted, RUN, made.score_parts(RUN), ())
    found = _with_less(0, asked, replace(known(layout), rerank=how, bonus=added), bool(how), 5)
    assert found["fused without nothing"] == ours and len({tuple(of) for of in ours.values()}) > 5


def test_every_ranking_tells_how_many_users_it_has_lists_for(parts: list[measured.Measured]) -> None:
    found = together(parts)
    rows = {row.name: row for row in evaluate._rows(found, settings().evaluate, 0)}
    assert rows[OURS].users == USERS and rows[OURS].ranked == sum(u % 6 > 0 for u in range(USERS)) < USERS
    assert rows["item_item"].ranked == USERS


@pytest.mark.parametrize(("scored", "asked_for"), [(0.3, 1.0), (1e-9, 1.0), (1.0, 0.3), (0.3, 0.8), (0.8, 0.3)])
def test_of_a_run_that_scored_a_share_of_users_these_alone_are_measured(
    layout: Layout, scored: float, asked_for: float
) -> None:
    """And of more users than are to be measured a share of these."""
    share = min(scored, asked_for)
    storage.write_json(
        storage.join(layout.run(RUN), "plan.json"), {"score": {"users_share": scored, "exclude_seen": False}}
    )
    asked = as_run(config.build({"evaluate": {"cutoffs": [2, 5]}, "score": {"requires": "x"}}), layout, RUN)
    storage.delete(storage.join(layout.run(RUN), "plan.json"))
    assert asked.score == config.Score(users_share=scored, exclude_seen=False), (
        "as the run had it, not as it is set now"
    )
    assert as_run(asked, layout, RUN) is asked
    given = Asked(asked, layout, {OURS: layout.rankings}, None, RUN, "", (), asked_for)
    done = [measured_bucket(unit, given, known(layout), None) for unit in units(layout)]
    found = together([from_bytes(*to_bytes(part)) for part in done])
    users, truth, lists = tables(layout)
    kept = [u for u in users if xxhash.xxh64_intdigest(str(u).encode()) / 2.0**64 < share]
    wanted = [ndcg(lists.get(u, []), set(truth[u])) for u in kept]
    np.testing.assert_allclose(found.values[found.names.index(OURS), 5], wanted)
    assert found.users == len(kept) == len(found.history) and (0 < len(kept) < USERS) == (share > 0.1)


def test_no_ranking_reaches_beyond_the_candidates_that_were_scored(
    layout: Layout, parts: list[measured.Measured]
) -> None:
    """Those of the table that score was given, in long form, without what it filters, cut at score.max_candidates."""
    users, truth, _ = tables(layout)
    past = buckets.read_parquet(layout.histories)
    past = dict(zip(past["user_id"].to_pylist(), past["item_ids"].to_pylist(), strict=True))
    merged = buckets.read_parquet(layout.candidates())
    lists = dict(zip(merged["user_id"].to_pylist(), merged["item_ids"].to_pylist(), strict=True))
    own = {u: [*past[u], *reversed(lists[u])] for u in users if u != users[0]}
    for b in range(2):
        rows = [(u, i) for u, items in own.items() if buckets.bucket_of(pa.array([u]), 2)[0] == b for i in items]
        table = pa.table(dict(zip(("user_id", "item_id"), map(pa.array, zip(*rows, strict=True)), strict=True)))
        buckets.write_parquet(table, buckets.bucket_file(layout.candidates("own"), b))
    blocked = np.arange(ITEMS) % 5 == 0
    of = replace(known(layout), rules=requests.Rules(known(layout).ids, blocked, True, 4))
    asked = Asked(settings(), layout, {OURS: layout.rankings}, None, RUN, "", ())
    found = together([measured_bucket(unit, asked, of, None) for unit in units(layout, "own")])
    scored = {u: [i for i in items if i not in past[u] and i % 5][:4] for u, items in own.items()} | {users[0]: []}
    wanted = [np.mean([i in scored[u] for i in truth[u]]) for u in users]
    np.testing.assert_allclose(found.within_reach, wanted)
    assert 0 < found.within_reach.mean() < together(parts).within_reach.mean() == 1
    assert len(set(wanted) - {0.0, 1.0}) > 0, "a user may have some"
    by_popularity = {u: sorted(items, key=lambda i: -(i % 7)) for u, items in scored.items()}
    at = found.names.index(BY_POPULARITY)
    np.testing.assert_allclose(found.values[at, 5], [ndcg(by_popularity[u], set(truth[u])) for u in users])


def test_a_further_ranking_of_nobody_has_no_rows(layout: Layout, tmp_path: Path) -> None:
    kind = schema.rankings(pa.int64(), pa.int64())
    shown = rankings.read(layout.rankings).select(kind.names).cast(kind)
    for name, moved in (("same", 0), ("strangers", 1000)):
        users = pa.compute.add(shown["user_id"], moved)
        table = shown.set_column(kind.get_field_index("user_id"), kind.field("user_id"), users)
        which = buckets.bucket_of(users, 2)
        files = []
        for b in range(2):
            part, path = table.filter(pa.array(which == b)), rankings.staged_path(name, b)
            size = buckets.write_parquet(part, f"{tmp_path}/{name}/{path}")
            files.append(rankings.StagedFile(b, path, size, part.num_rows))
        rankings.publish(f"{tmp_path}/{name}", files, 2, kind, name)
    further = {name: f"{tmp_path}/{name}" for name in ("strangers", "same")}
    asked = settings(rankings=further)
    given = Asked(asked, layout, {OURS: layout.rankings, **further}, None, RUN, "", ())
    found = together([measured_bucket(unit, given, known(layout), None) for unit in units(layout)])
    rows = evaluate._same_users(found, asked.evaluate)
    assert list(rows) == ["strangers", "same"] and rows["strangers"] == []
    of = {row.name: row for row in rows["same"]}
    assert of["same"].values == of[OURS].values
    assert of["same"].users == of["same"].ranked == sum(u % 6 > 0 for u in range(USERS))


def test_for_how_many_users_a_source_has_candidates(layout: Layout) -> None:
    some = {"even": lambda u: u % 2 == 0, "third": lambda u: u % 3 == 0, "none": lambda u: False}
    for name, has in some.items():
        for b in range(2):
            table = buckets.read_parquet(buckets.bucket_file(layout.candidates(), b))
            lists = [
                i if has(u) else [] for u, i in zip(*(table[c].to_pylist() for c in table.column_names), strict=True)
            ]
            table = pa.table({"user_id": table["user_id"], "item_ids": pa.array(lists, pa.list_(pa.int64()))})
            buckets.write_parquet(table, buckets.bucket_file(layout.candidates(name), b))
    asked = settings()
    asked = asked.model_copy(update={"recall": asked.recall.model_copy(update={"merge": tuple(some)})})
    given = Asked(asked, layout, {OURS: layout.rankings}, None, RUN, "", ())
    done = [measured_bucket(unit, given, known(layout), None) for unit in units(layout)]
    found = together([from_bytes(*to_bytes(part)) for part in done])
    wanted = [sum(map(has, range(USERS))) for has in some.values()]
    assert found.brought.tolist() == [*wanted, sum(u % 2 == 0 or u % 3 == 0 for u in range(USERS)), USERS]
    assert [source.users for source in evaluate._sources(found, asked)] == found.brought.tolist()
    assert found.ranked[found.names.index("even")].sum() == USERS / 2, "an empty list ranks nobody"


def test_the_gate_counts_who_has_a_list_in_the_staged_run(layout: Layout) -> None:
    staged = {b: f"{layout.rankings}/{rankings.staged_path(RUN, b)}" for b in range(2)}
    truth = buckets.bucket_files(layout.targets)
    (row,) = gate._measure(pa.table({"part": [0]}), "", None, [2], 1, truth, staged, 0, 1.0).to_pylist()
    assert row["users"] == USERS and row["ranked"] == sum(u % 6 > 0 for u in range(USERS))
    (row,) = gate._measure(pa.table({"part": [0]}), "", None, [2], 1, truth, staged, 0, 0.3).to_pylist()
    kept = [u for u in tables(layout)[0] if xxhash.xxh64_intdigest(str(u).encode()) / 2.0**64 < 0.3]
    assert row["users"] == len(kept) == len(row["staged ndcg@2"]) and row["ranked"] == sum(u % 6 > 0 for u in kept)


def test_the_gate_gathers_what_the_parts_cover_once() -> None:
    parts = [
        {"part": 0, "users": 1, "staged ndcg@2": [0.5], "staged coverage@2": ["a", "b"], "published coverage@2": ["a"]},
        {"part": 1, "users": 2, "staged ndcg@2": [1, 0], "staged coverage@2": ["b", "c"], "published coverage@2": []},
    ]
    covered: dict[str, set[str]] = defaultdict(set)
    rows = list(gate._covering(iter(parts), covered))
    assert rows == [
        {"part": 0, "users": 1, "staged ndcg@2": [0.5]}, {"part": 1, "users": 2, "staged ndcg@2": [1, 0]}
    ]  # fmt: skip
    asked = [conditions.parse("coverage@2 > 0.1")]
    (figure,) = gate._figures(rows, covered, asked, config.Evaluate(), 4, None).values()
    assert (figure.candidate, figure.published) == (0.75, None)


@pytest.mark.parametrize(("most", "share"), [(USERS, 1.0), (10 * USERS, 1.0), (6, 0.2)])
def test_of_many_users_with_held_out_events_a_share_is_measured(layout: Layout, most: int, share: float) -> None:
    assert buckets.share_for(buckets.bucket_files(layout.targets).values(), most) == (share, USERS)


def write(table: dict[str, Any]) -> Callable[[Path], str]:
    def made(folder: Path) -> str:
        uri = str(folder / "labelled.parquet")
        buckets.write_parquet(pa.table(table), uri)
        return uri

    return made


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"user_id": [1], "item_id": [1]}, "labelled.parquet: column 'label' is missing"),
        ({"user_id": [1], "item_id": [1], "label": ["yes"]}, "column 'label' has type string; labels are 0 or 1"),
        ({"user_id": [1], "item_id": [1], "label": [2]}, "column 'label' holds 2; labels are 0 or 1"),
        ({"user_id": [1], "item_id": [1], "label": pa.array([None], pa.int8())}, "'label' holds null; labels are"),
        (
            {"user_id": ["u"], "item_id": [1], "label": [1]},
            "'user_id' holds string ids, the prepared tables hold int64",
        ),
        ({"user_id": [None, 1], "item_id": [1, 2], "label": [1, 1]}, "column 'user_id' has 1 nulls"),
    ],
)
def test_what_is_no_labelled_pair_is_named(layout: Layout, table: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        labelled_pairs.by_bucket(write(table)(tmp_path), Privacy(), layout, RUN)


def test_labelled_pairs_by_bucket(layout: Layout, tmp_path: Path) -> None:
    pairs = {"user_id": pa.array([3, 1, 2, 1], pa.int32()), "item_id": [1, 2, 3, 4], "label": [1.0, 0.0, 1.0, 0.0]}
    found = labelled_pairs.by_bucket(write(pairs)(tmp_path), Privacy(), layout, RUN)
    for bucket, table in found.items():
        assert set(buckets.bucket_of(table["user_id"], 2)) == {bucket}
    rows = sorted(tuple(row.values()) for table in found.values() for row in table.to_pylist())
    assert rows == [(1, 2, False), (1, 4, False), (2, 3, True), (3, 1, True)]
    with pytest.raises(UserError, match=r"run other kept no scores of its candidates; set score.keep_parts = true"):
        labelled_pairs.by_bucket(write(pairs)(tmp_path), Privacy(), layout, "other")


def test_columns_that_users_cannot_be_grouped_by_are_named(layout: Layout, tmp_path: Path) -> None:
    asked = settings(segments=["users.job"]).evaluate
    with pytest.raises(UserError, match=r"column 'job' is missing \(it has: user_id, age\)"):
        evaluate_items.attributes(asked, layout)
    with pytest.raises(UserError, match=r"'users.job', but there are no users' attributes in .*; set data.users"):
        evaluate_items.attributes(asked, replace(layout, root=str(tmp_path)))
    lists = pa.table({"user_id": [1], "job": [["x"]]})
    buckets.write_parquet(lists, buckets.bucket_file(Layout(str(tmp_path)).users, 0))
    with pytest.raises(UserError, match=r"column 'job' has type list<.*; evaluate.segments takes numbers, texts"):
        evaluate_items.attributes(asked, Layout(str(tmp_path)))
    assert evaluate_items.attributes(settings(segments=["users.age"]).evaluate, layout) == ("age",)
