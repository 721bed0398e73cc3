from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec import schema
from llmrec.errors import UserError
from llmrec.fusion.diversity import Categories
from llmrec.fusion.rerank import Quota, Rerank
from llmrec.ranker.ragged import Ragged
from llmrec.tables.buckets import parquet_bytes, write_parquet
from llmrec.tables.requests import Rules, Scores, Work, build, candidates_in_list_form, rank, read_candidates

CATALOGUE = [2, 3, 5, 7, 8]
USERS = st.sampled_from([0, 0, 1, 1, 2, 3, None])
ITEMS = st.sampled_from([*CATALOGUE, *CATALOGUE, 4, None])
HISTORIES = st.dictionaries(st.integers(0, 4), st.lists(ITEMS, min_size=1, max_size=4), min_size=1, max_size=4)
SCORES = st.none() | st.integers(-3, 3).map(float)


def as_id(value: int | None, text: bool) -> Any:
    return value if value is None or not text else f"id-{value}"


def id_type(text: bool) -> pa.DataType:
    return pa.string() if text else pa.int64()


def histories_table(histories: dict[int, list[int | None]], text: bool = False) -> pa.Table:
    kind = id_type(text)
    return pa.table({
        "user_id": pa.array([as_id(u, text) for u in histories], kind),
        "item_ids": pa.array([[as_id(i, text) for i in items] for items in histories.values()], pa.list_(kind)),
    })  # fmt: skip


def long_table(rows: list[tuple[int | None, int | None, float | None, str]], text: bool = False) -> pa.Table:
    users, items, scores, sources = ([row[i] for row in rows] for i in range(4))
    return pa.table({
        "user_id": pa.array([as_id(u, text) for u in users], id_type(text)),
        "item_id": pa.array([as_id(i, text) for i in items], id_type(text)),
        "recall_score": pa.array(scores, pa.float32()),
        "source": pa.array(sources, pa.string()),
    })  # fmt: skip


def rules(text: bool = False, blocked: set[int] = frozenset(), exclude_seen: bool = True, limit: int = 100,
    requires: dict[int, set[int]] | None = None,
) -> Rules:  # fmt: skip
    ids = pa.array([as_id(i, text) for i in CATALOGUE], id_type(text))
    wanted = None if requires is None else Ragged.of(
        [[CATALOGUE.index(other) for other in sorted(requires.get(i, ()))] for i in CATALOGUE]
    )  # fmt: skip
    return Rules(ids, np.asarray([i in blocked for i in CATALOGUE]), exclude_seen, limit, requires=wanted)


def naive(
    histories: dict, rows: list, blocked: set[int], exclude_seen: bool, limit: int, requires: dict[int, set[int]]
) -> tuple[dict, Counter, list]:
    """user -> [(item, score, source)], counts, and (user, reason, item) of what is set aside, row by row."""
    kept: dict[int, list] = {}
    counts: Counter[str] = Counter()
    aside, met = [], set()
    for user, item, score, source in rows:
        if user is None or item is None:
            aside.append((user, "null_id", item))
        elif item not in CATALOGUE:
            aside.append((user, "unknown_item", item))
        elif (user, item) in met:
            aside.append((user, "duplicate_candidate", item))
        else:
            met.add((user, item))
            if exclude_seen and item in histories.get(user, []):
                counts["seen"] += 1
            elif item in blocked:
                counts["blocked"] += 1
            elif not requires.get(item, set()) <= set(histories.get(user, [])):
                counts["locked"] += 1
            elif len(kept.get(user, [])) == limit:
                counts["over_limit"] += 1
            else:
                kept.setdefault(user, []).append((item, score, source))
    return kept, counts, aside


def as_dict(work: Work, ids: pa.Array) -> dict:
    found, start = {}, 0
    for i, user in enumerate(work.users.to_pylist()):
        rows = work.candidates[i]
        scores = [None if np.isnan(s) else float(s) for s in work.recall_scores[start : start + len(rows)]]
        sources = work.sources[start : start + len(rows)].to_pylist()
        found[user] = list(zip(ids.take(pa.array(rows)).to_pylist(), scores, sources, strict=True))
        start += len(rows)
    return found


@settings(max_examples=150, deadline=None)
@given(
    HISTORIES,
    st.lists(st.tuples(USERS, ITEMS, SCORES, st.sampled_from(["a", "b"])), max_size=25),
    st.sets(st.sampled_from(CATALOGUE)),
    st.booleans(),
    st.integers(1, 4),
    st.booleans(),
    st.none() | st.dictionaries(st.sampled_from(CATALOGUE), st.sets(st.sampled_from(CATALOGUE), max_size=2)),
)
def test_every_pair_is_accounted_for_as_a_plain_loop_does(
    histories: dict, rows: list, blocked: set[int], exclude_seen: bool, limit: int, text: bool,
    requires: dict[int, set[int]] | None,
) -> None:  # fmt: skip
    chosen = rules(text, blocked, exclude_seen, limit, requires)
    table = candidates_in_list_form(long_table(rows, text), "candidates.parquet")
    work = build(histories_table(histories, text), table, chosen, "candidates.parquet")
    kept, counts, aside = naive(histories, rows, blocked, exclude_seen, limit, requires or {})

    found = as_dict(work, chosen.ids)
    assert list(found) == sorted(found)
    assert found == {as_id(u, text): [(as_id(i, text), s, o) for i, s, o in of] for u, of in kept.items()}
    assert work.counts == {
        "pairs_in": len(rows),
        "to_score": sum(map(len, kept.values())),
        "seen": counts["seen"],
        "blocked": counts["blocked"],
        "locked": counts["locked"],
        "over_limit": counts["over_limit"],
        "quarantined": len(aside),
        "users_in": len({u for u, *_ in rows if u is not None}),
    }
    for user, items in zip(work.users.to_pylist(), work.histories.take(np.arange(len(work.users))), strict=False):
        known = [as_id(i, text) for i in histories.get(_number(user), []) if i in CATALOGUE]
        assert chosen.ids.take(pa.array(items)).to_pylist() == known
    assert work.quarantine.schema == schema.QUARANTINE
    set_aside = zip(
        *(work.quarantine[c].to_pylist() for c in ("key", "reason_code", "detail", "source_file")), strict=True
    )
    assert Counter(set_aside) == Counter(
        (
            None if u is None else str(as_id(u, text)),
            why,
            f"item={'null' if i is None else as_id(i, text)}",
            "candidates.parquet",
        )
        for u, why, i in aside
    )


def _number(user: int | str) -> int:
    return int(str(user).removeprefix("id-"))


@settings(max_examples=100, deadline=None)
@given(
    HISTORIES,
    st.lists(
        st.tuples(USERS, st.none() | st.lists(st.tuples(ITEMS, SCORES, st.sampled_from(["a", "b"])), max_size=6)),
        max_size=6,
    ),
)
def test_list_form_and_long_form_give_the_same_work(histories: dict, users: list) -> None:
    lists = pa.table({
        "user_id": pa.array([u for u, _ in users], pa.int64()),
        "item_ids": pa.array([None if c is None else [i for i, _, _ in c] for _, c in users], pa.list_(pa.int64())),
        "recall_scores": pa.array(
            [None if c is None else [s for _, s, _ in c] for _, c in users], pa.list_(pa.float32())
        ),
        "sources": pa.array([None if c is None else [o for _, _, o in c] for _, c in users], pa.list_(pa.string())),
    })  # fmt: skip
    rows = [(u, *one) for u, c in users for one in c or []]
    made = [
        build(histories_table(histories), candidates_in_list_form(table, "c"), rules(blocked={3}, limit=2), "c")
        for table in (lists, long_table(rows))
    ]
    assert as_dict(made[0], rules().ids) == as_dict(made[1], rules().ids)
    assert made[0].counts == made[1].counts
    assert made[0].quarantine.equals(made[1].quarantine)


def test_a_user_without_a_history_is_scored_on_the_prompt_alone() -> None:
    table = candidates_in_list_form(long_table([(9, 5, 1.0, "a"), (1, 3, None, "b")]), "c")
    work = build(histories_table({1: [2, 8]}), table, rules(), "c")
    assert work.users.to_pylist() == [1, 9]
    assert [work.histories[i].tolist() for i in range(2)] == [[0, 4], []]


def test_scores_and_sources_may_be_missing() -> None:
    for table in (
        pa.table({"user_id": [1, 1], "item_id": [5, 3]}),
        pa.table({"user_id": [1], "item_ids": [[5, 3]]}),
    ):
        found = candidates_in_list_form(table, "c")
        assert found.to_pydict() == {"user_id": [1], "item_ids": [[5, 3]]}
        work = build(histories_table({}), found, rules(), "c")
        ranked = rank(work, Scores.unfused(np.asarray([2.0, 1.0], np.float32)), 5, rules().ids, "m", "r").to_pydict()
        assert ranked["item_id"] == [5, 3]
        assert ranked["recall_score"] == [None, None] and ranked["source"] == ["", ""]


def test_narrow_integer_and_dictionary_ids_are_taken() -> None:
    table = pa.table({
        "user_id": pa.array([1, 2], pa.int32()), "item_id": pa.array(["a", "b"]).dictionary_encode(),
    })  # fmt: skip
    found = candidates_in_list_form(table, "c")
    work = build(
        pa.table({"user_id": [1], "item_ids": [["b"]]}),
        found,
        Rules(pa.array(["a", "b"]), np.zeros(2, bool), True, 9),
        "c",
    )
    assert work.users.equals(pa.array([1, 2])) and work.candidates.values.tolist() == [0, 1]
    assert work.histories.values.tolist() == [1]


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"item_id": [1]}, "c.parquet: column 'user_id' is missing"),
        ({"user_id": [1]}, "c.parquet: column 'item_id' is missing"),
        ({"user_id": [1.5], "item_id": [1]}, "c.parquet: column 'user_id' has type double; ids must be"),
        ({"user_id": [1], "item_ids": [1]}, "c.parquet: column 'item_ids' has type int64, which is no list"),
        ({"user_id": [1], "item_ids": [[1.5]]}, "c.parquet: column 'item_ids' has type double; ids must be"),
        (
            {"user_id": [1], "item_ids": [[1, 2]], "recall_scores": [[1.0]]},
            "c.parquet: lists in 'recall_scores' differ in length from those in 'item_ids'",
        ),
    ],
)
def test_candidates_of_another_shape_are_refused(table: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        candidates_in_list_form(pa.table(table), "c.parquet")


@pytest.mark.parametrize(("column", "wrong"), [("recall_score", "high"), ("source", b"\xff")])
def test_a_recall_score_or_source_of_another_type_is_refused(column: str, wrong: Any) -> None:
    with pytest.raises(UserError, match=f"c: column '{column}' has type"):
        candidates_in_list_form(pa.table({"user_id": [1], "item_id": [1], column: [wrong]}), "c")
    with pytest.raises(UserError, match=f"c: column '{column}s' has type"):
        candidates_in_list_form(pa.table({"user_id": [1], "item_ids": [[1]], f"{column}s": [[wrong]]}), "c")


def test_large_whole_numbers_are_fine_as_recall_scores() -> None:
    table = pa.table({"user_id": [1], "item_id": [1], "recall_score": [2**24 + 1]})
    assert candidates_in_list_form(table, "c")["recall_scores"].to_pylist() == [[2.0**24]]


@pytest.mark.parametrize(("column", "other"), [("user_id", ["1"]), ("item_id", ["5"])])
def test_ids_of_another_type_than_the_prepared_tables_are_refused(column: str, other: list[str]) -> None:
    table = pa.table({"user_id": [1], "item_id": [5]} | {column: other})
    with pytest.raises(UserError, match=f"c: column '{column}' holds string ids, the prepared tables hold int64"):
        build(histories_table({1: [2]}), candidates_in_list_form(table, "c"), rules(), "c")


def work_of(lists: dict[int, list[int]]) -> Work:
    rows = [(u, i, 0.5, "a") for u, items in lists.items() for i in items]
    return build(histories_table({}), candidates_in_list_form(long_table(rows), "c"), rules(), "c")


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.integers(0, 5), st.lists(st.sampled_from(CATALOGUE), unique=True, max_size=5), max_size=5),
    st.lists(st.sampled_from([-1.0, 0.0, 0.25, 1e-3, 7.0]), min_size=25, max_size=25),
    st.integers(1, 4),
)
def test_rank_is_a_plain_top_k(lists: dict[int, list[int]], drawn: list[float], top_k: int) -> None:
    work = work_of(lists)
    scores = np.asarray(drawn[: len(work.recall_scores)], np.float32)
    found = rank(work, Scores.unfused(scores), top_k, rules().ids, "m1", "r1")
    assert found.schema == schema.rankings(pa.int64(), pa.int64())
    left = iter(scores.tolist())
    wanted = []
    for user in sorted(u for u in lists if lists[u]):
        pairs = sorted(((next(left), i) for i in lists[user]), key=lambda p: (-p[0], p[1]))
        wanted += [(user, place + 1, item, score) for place, (score, item) in enumerate(pairs[:top_k])]
    columns = (found[c].to_pylist() for c in ("user_id", "rank", "item_id", "score"))
    assert list(zip(*columns, strict=True)) == wanted
    assert set(found["model_version"].to_pylist()) <= {"m1"} and set(found["run_id"].to_pylist()) <= {"r1"}


def test_rank_equals_polars_on_a_larger_table() -> None:
    rng = np.random.default_rng(0)
    n_users, n_items = 200, 50
    ids = pa.array(np.sort(rng.choice(1000, n_items, replace=False)))
    pairs = rng.permutation(n_users * n_items)[:4000]
    table = candidates_in_list_form(
        pa.table({"user_id": pairs // n_items, "item_id": ids.take(pa.array(pairs % n_items))}), "c"
    )
    work = build(histories_table({}), table, Rules(ids, np.zeros(n_items, bool), True, 1000), "c")
    scores = rng.integers(0, 20, 4000).astype(np.float32)
    found = pl.from_arrow(
        rank(work, Scores.unfused(scores), 10, ids, "m", "r").select(["user_id", "rank", "item_id", "score"])
    )
    flat = pl.DataFrame({
        "user_id": np.repeat(work.users.to_numpy(), work.candidates.lengths),
        "item_id": ids.to_numpy()[work.candidates.values],
        "score": scores,
    })  # fmt: skip
    wanted = flat.sort("user_id", "score", "item_id", descending=[False, True, False]).group_by(
        "user_id", maintain_order=True
    ).head(10).with_columns((pl.int_range(pl.len()).over("user_id") + 1).cast(pl.Int32).alias("rank"))  # fmt: skip
    assert found.equals(wanted.select("user_id", "rank", "item_id", "score"))


def test_a_reranked_list_has_its_own_order_without_gaps_and_every_items_own_score() -> None:
    work = work_of({1: [2, 3, 5, 7], 2: [8]})
    kinds = Quota(Ragged.of([[0], [0], [0], [1], [1]]), 1)
    how = Rerank(4, "mmr", 0.5, Categories(kinds.of))
    told = Scores(*np.asarray([[4, 3, 2, 1, 9], [40, 30, 20, 10, 90]], np.float32))

    def rows(how: Rerank) -> list[tuple[int, int, int, float, float]]:
        found = rank(work, told, 3, rules().ids, "m", "r", how)
        columns = ("user_id", "rank", "item_id", "score", "ranker_score")
        return list(zip(*(found[c].to_pylist() for c in columns), strict=True))

    # 7 is of another kind than 2, 3 and 5, and worth as little; of these 3 is worth 2/3.
    assert rows(how) == [(1, 1, 2, 4, 40), (1, 2, 7, 1, 10), (1, 3, 3, 3, 30), (2, 1, 8, 9, 90)]
    assert rows(Rerank(4, quotas=(kinds,))) == [(1, 1, 2, 4, 40), (1, 2, 7, 1, 10), (2, 1, 8, 9, 90)]
    assert rows(Rerank(3, quotas=(kinds,))) == [(1, 1, 2, 4, 40), (2, 1, 8, 9, 90)]


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(2, 5))
def test_sources_have_their_places_in_every_list_that_they_brought_enough_for(data: st.DataObject, top_k: int) -> None:
    lists = data.draw(
        st.dictionaries(st.integers(0, 3), st.lists(st.sampled_from(CATALOGUE), unique=True, min_size=1), min_size=1)
    )
    reserve = {"a": data.draw(st.integers(1, 2)), "b": data.draw(st.integers(1, top_k - 1))}
    reserve["a"] = min(reserve["a"], top_k - reserve["b"])
    rows = [(u, i, 0.5, data.draw(st.sampled_from(["a", "b", "c", None]))) for u in sorted(lists) for i in lists[u]]
    work = build(histories_table({}), candidates_in_list_form(long_table(rows), "c"), rules(), "c")
    scores = np.asarray([data.draw(st.sampled_from([0.0, 1.0, 2.0])) for _ in rows], np.float32)
    found = rank(work, Scores.unfused(scores), top_k, rules().ids, "m", "r", None, reserve).to_pylist()
    for user in lists:
        pairs = [(-float(s), i, of) for s, (u, i, _, of) in zip(scores, rows, strict=True) if u == user]
        before = sorted(pairs)[:top_k]
        mine = [(-row["score"], row["item_id"], row["source"]) for row in found if row["user_id"] == user]
        assert [row["rank"] for row in found if row["user_id"] == user] == list(range(1, len(mine) + 1))
        assert len(mine) == len(before) and len(set(mine)) == len(mine)
        stayed = [pair for pair in before if pair in mine]
        assert mine[: len(stayed)] == stayed, "those that stay are first, in their order"
        for source, places in reserve.items():
            theirs = sorted(pair for pair in pairs if pair[2] == source)
            assert {pair for pair in mine if pair[2] == source} >= set(theirs[: min(places, len(theirs))])
        came = [pair for pair in mine if pair not in before]
        assert len(came) <= sum(reserve.values()) and all(pair[2] in reserve for pair in came)


def test_shuffled_input_gives_the_same_bytes() -> None:
    rng = np.random.default_rng(1)
    rows = [(u, i, (u * 7 + i) % 5 / 4, "ab"[i % 2]) for u in range(6) for i in CATALOGUE]
    seen = set()
    for _ in range(5):
        shuffled = [rows[j] for j in rng.permutation(len(rows))]
        past = {u: [CATALOGUE[u % 5]] for u in rng.permutation(6).tolist()}
        table = candidates_in_list_form(long_table(shuffled), "c")
        work = build(histories_table(past), table, rules(blocked={3}), "c")
        user = np.repeat(work.users.to_numpy(), work.candidates.lengths)
        scores = ((user * 3 + work.candidates.values) % 4).astype(np.float32)
        seen.add(parquet_bytes(rank(work, Scores.unfused(scores), 3, rules().ids, "m", "r")))
    assert len(seen) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_stops_the_run(bad: float) -> None:
    work = work_of({1: [2, 3], 2: [5]})
    with pytest.raises(UserError, match="the model gave 1 scores that are no numbers"):
        rank(work, Scores.unfused(np.asarray([1.0, bad, 0.0], np.float32)), 2, rules().ids, "m", "r")


def test_a_missing_recall_score_stays_null_in_the_rankings() -> None:
    table = candidates_in_list_form(long_table([(1, 2, None, "a"), (1, 3, 0.5, "b")]), "c")
    work = build(histories_table({}), table, rules(), "c")
    found = rank(work, Scores.unfused(np.asarray([2.0, 1.0], np.float32)), 5, rules().ids, "m", "r")
    assert found["recall_score"].to_pylist() == [None, 0.5] and found["source"].to_pylist() == ["a", "b"]


def test_nobody_to_rank() -> None:
    work = work_of({})
    assert isinstance(work.candidates, Ragged) and len(work.candidates) == 0
    assert rank(work, Scores.unfused(np.empty(0, np.float32)), 5, rules().ids, "m", "r").num_rows == 0


def random_tables(seed: int, users: int, longest: int, text: bool) -> tuple[pa.Table, pa.Table, pa.Array]:
    """Histories, candidates in list form and the catalogue: users out of order, with several lists, one or no history;
    nulls, unknown and repeated items, lists of all lengths."""
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(4 * longest, 3 * longest, replace=False))

    def name(values: np.ndarray) -> pa.Array:
        known = pa.array(values, mask=rng.random(len(values)) < 0.01)
        return pc.binary_join_element_wise("i", known.cast(pa.string()), "") if text else known

    def lists(n: int) -> tuple[pa.Array, pa.Array]:
        lengths = np.where(rng.random(n) < 0.1, 0, rng.integers(0, longest, n))
        offsets = pa.array(np.append(0, np.cumsum(lengths)).astype(np.int32))
        flat = np.where(rng.random(lengths.sum()) < 0.9, rng.choice(ids, lengths.sum()), rng.integers(0, 4 * longest))
        return offsets, pa.ListArray.from_arrays(offsets, name(flat))

    offsets, items = lists(users)
    n = offsets[-1].as_py()
    sources = pa.array(rng.choice(["a", "b", "c"], n), mask=rng.random(n) < 0.1)
    scores = pa.array(rng.random(n, np.float32), mask=rng.random(n) < 0.1)
    candidates = pa.table({
        "user_id": pa.array(rng.integers(0, users, users), mask=rng.random(users) < 0.02),
        "item_ids": items,
        "recall_scores": pa.ListArray.from_arrays(offsets, scores),
        "sources": pa.ListArray.from_arrays(offsets, sources),
    })  # fmt: skip
    past = pa.table({"user_id": pa.array(rng.permutation(2 * users)[:users]), "item_ids": lists(users)[1]})
    catalogue = pc.binary_join_element_wise("i", pa.array(ids).cast(pa.string()), "") if text else pa.array(ids)
    return past, candidates, catalogue.take(pc.sort_indices(catalogue))


def by_polars(
    past: pa.Table, candidates: pa.Table, ids: pa.Array, blocked: np.ndarray, limit: int
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, int]]:
    """Pairs to score in order, quarantine rows in order, and counts, told by polars."""
    nonempty = candidates.filter(pc.greater(pc.list_value_length(candidates["item_ids"]), 0))
    pairs = pl.from_arrow(nonempty).explode("item_ids", "recall_scores", "sources").with_row_index()
    catalogue = pl.DataFrame({"item_ids": pl.Series(values=ids), "blocked": blocked})
    had = pl.from_arrow(past).explode("item_ids").drop_nulls().unique().with_columns(seen=True)
    bad = (
        pl.when(pl.col("user_id").is_null() | pl.col("item_ids").is_null())
        .then(pl.lit("null_id"))
        .when(pl.col("blocked").is_null())
        .then(pl.lit("unknown_item"))
    )
    judged = pairs.join(catalogue, on="item_ids", how="left").join(had, on=["user_id", "item_ids"], how="left")
    judged = judged.sort("index").with_columns(bad.alias("reason"))
    repeated = pl.col("reason").is_null() & (pl.col("index").cum_count().over("user_id", "item_ids") > 1)
    judged = judged.with_columns(
        pl.when(repeated).then(pl.lit("duplicate_candidate")).otherwise("reason").alias("reason")
    )
    good = judged.filter(pl.col("reason").is_null())
    left = good.filter(pl.col("seen").is_null() & ~pl.col("blocked"))
    kept = left.sort("user_id", "index").filter(pl.int_range(pl.len()).over("user_id") < limit)
    order = pl.Enum(["null_id", "unknown_item", "duplicate_candidate"])
    aside = judged.filter(pl.col("reason").is_not_null()).sort(pl.col("reason").cast(order), "index")
    counts = {
        "pairs_in": len(pairs), "to_score": len(kept), "seen": int(good["seen"].sum()),
        "blocked": len(good.filter(pl.col("seen").is_null() & pl.col("blocked"))), "over_limit": len(left) - len(kept),
        "locked": 0, "quarantined": len(aside), "users_in": pairs["user_id"].drop_nulls().n_unique(),
    }  # fmt: skip
    return kept, aside, counts


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32), st.sampled_from([(5, 4), (40, 20), (1500, 120), (3, 40_000)]), st.booleans(), st.booleans()
)
def test_work_and_rankings_equal_polars(seed: int, size: tuple[int, int], text: bool, long: bool) -> None:
    past, candidates, ids = random_tables(seed, *size, text)
    rng = np.random.default_rng(seed)
    blocked = rng.random(len(ids)) < 0.05
    kept, aside, counts = by_polars(past, candidates, ids, blocked, limit=60)
    given = pl.from_arrow(candidates)
    if long:
        names = {"item_ids": "item_id", "recall_scores": "recall_score", "sources": "source"}
        given = given.filter(pl.col("item_ids").list.len() > 0).explode(*names).rename(names)
    work = build(past, candidates_in_list_form(given.to_arrow(), "c"), Rules(ids, blocked, True, 60), "c")
    assert work.counts == counts
    user = work.users.take(pa.array(np.repeat(np.arange(len(work.users)), work.candidates.lengths)))
    assert user.to_pylist() == kept["user_id"].to_list()
    assert ids.take(pa.array(work.candidates.values)).to_pylist() == kept["item_ids"].to_list()
    assert np.array_equal(work.recall_scores, kept["recall_scores"].fill_null(np.nan), equal_nan=True)
    assert work.sources.to_pylist() == kept["sources"].to_list()
    assert work.quarantine["reason_code"].to_pylist() == aside["reason"].to_list()
    assert work.quarantine["key"].to_pylist() == aside["user_id"].cast(pl.String).to_list()
    assert work.quarantine["detail"].to_pylist() == [
        f"item={i}" for i in aside["item_ids"].cast(pl.String).fill_null("null")
    ]

    scores = rng.choice(np.asarray([-3e38, -1, -0.0, 0, 1e-30, 0.5, 3e38], np.float32), len(kept))
    found = pl.from_arrow(rank(work, Scores.unfused(scores), 7, ids, "m", "r"))
    ranked = kept.with_columns(score=scores).sort("user_id", "score", "item_ids", descending=[False, True, False])
    ranked = ranked.filter(pl.int_range(pl.len()).over("user_id") < 7)
    assert found["rank"].to_list() == (ranked.select(pl.int_range(pl.len()).over("user_id"))["literal"] + 1).to_list()
    names = {
        "user_id": "user_id",
        "item_ids": "item_id",
        "score": "score",
        "recall_scores": "recall_score",
        "sources": "source",
    }
    assert found.select(names.values()).equals(ranked.select(names.keys()).rename(names))


@pytest.mark.parametrize("form", ["list", "long"])
def test_texts_stay_dictionaries_from_the_file_to_the_rankings(form: str, tmp_path: Path) -> None:
    rows = [(u, i, None, "some source") for u in range(300) for i in CATALOGUE]
    table = long_table(rows, text=True)
    if form == "list":
        lists = pl.from_arrow(table).group_by("user_id", maintain_order=True).agg("item_id", "recall_score", "source")
        table = lists.rename({"item_id": "item_ids", "recall_score": "recall_scores", "source": "sources"}).to_arrow()
    write_parquet(table, f"{tmp_path}/c.parquet")
    candidates = read_candidates(f"{tmp_path}/c.parquet")
    assert all(pa.types.is_dictionary(candidates[c].type.value_type) for c in ("item_ids", "sources"))
    work = build(histories_table({1: [2]}, text=True), candidates, rules(text=True), f"{tmp_path}/c.parquet")
    assert pa.types.is_dictionary(work.sources.type)
    found = rank(work, Scores.unfused(np.zeros(len(rows) - 1, np.float32)), 2, rules(text=True).ids, "m", "r")
    assert found.schema == schema.rankings(pa.string(), pa.string())
    assert found["item_id"].to_pylist()[:6] == ["id-2", "id-3", "id-3", "id-5", "id-2", "id-3"]
    assert set(found["source"].to_pylist()) == {"some source"}
