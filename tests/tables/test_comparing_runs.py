"""Two published runs side by side, from the tables to the terminal."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from scipy.stats import permutation_test
from staging import publish
from typer.testing import CliRunner

from llmrec import cli
from llmrec.engine import diff as stage
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.tables import buckets, rankings

ITEMS = 12


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))
    return Layout(str(tmp_path / "root"))


def lists(seed: int, users: range) -> dict[int, list[int]]:
    rng = np.random.default_rng(seed)
    return {u: rng.permutation(ITEMS)[:5].tolist() for u in users}


A, B = lists(1, range(0, 60)), lists(2, range(20, 70))
B.update({u: A[u] for u in range(20, 30)})
BOTH = sorted(set(A) & set(B))


def with_items(layout: Layout) -> None:
    """Items with titles and kinds; item 3 has no kind, and one more than is ever ranked is in the catalogue."""
    ids = range(ITEMS + 1)
    kinds = [None if i == 3 else "even" if i % 2 == 0 else "odd" for i in ids]
    table = pa.table({"item_id": pa.array(ids, pa.int64()), "title": [f"Item {i}" for i in ids], "kind": kinds})
    buckets.write_parquet(table, layout.items)


def called(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["diff", *arguments])


def compared(one: str, other: str, layout: Layout, tmp_path: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """The figures and what stands on the terminal."""
    file = tmp_path / "diff.json"
    ended = called(one, other, "--root", layout.root, "--json", str(file), *arguments)
    assert ended.exit_code == 0, ended.exception
    return json.loads(file.read_text()), ended.stdout


def shares(rankings_of: dict[int, list[int]], key: Any) -> dict[Any, float]:
    places = Counter(key(i) for items in rankings_of.values() for i in items)
    return {k: n / sum(places.values()) for k, n in places.items()}


def test_two_runs_of_a_table(layout: Layout, tmp_path: Path) -> None:
    publish(layout.rankings, "a1", A)
    publish(layout.rankings, "b1", B)
    publish(layout.rankings, "c1", {1: [1]})
    with_items(layout)
    found, text = compared("a1", "b1", layout, tmp_path, "--by", "kind", "--at", "2", "--at", "5", "--users", "2")
    assert (found["a"]["run_id"], found["a"]["version"], found["b"]["run_id"], found["b"]["version"]) == (
        "a1", 0, "b1", 1,
    )  # fmt: skip
    assert found["users"]["in_both"] == 40 and found["users"]["only_in_a"] == 20 and found["users"]["only_in_b"] == 10
    assert found["users"]["unchanged"] == sum(A[u] == B[u] for u in BOTH) >= 10
    assert found["users"]["first_item_changed"] == sum(A[u][0] != B[u][0] for u in BOTH)
    assert set(found["measures"]) == {"overlap@2", "overlap@5", "rbo", "rbo_min"}
    for k in (2, 5):
        mean = np.mean([len(set(A[u][:k]) & set(B[u][:k])) / k for u in BOTH])
        assert found["measures"][f"overlap@{k}"]["mean"] == pytest.approx(mean)
    # Items and kinds by their shares of all places.
    in_a, in_b = shares(A, lambda i: i), shares(B, lambda i: i)
    changes = {i: in_b[i] - in_a[i] for i in range(ITEMS)}
    gained = sorted((i for i in changes if changes[i] > 0), key=lambda i: (-changes[i], i))
    lost = sorted((i for i in changes if changes[i] < 0), key=lambda i: changes[i])
    assert [r["item_id"] for r in found["items"]["gained"]] == gained
    assert [r["change"] for r in found["items"]["lost"]] == pytest.approx([changes[i] for i in lost])
    assert all(r["title"] == f"Item {r['item_id']}" for rows in found["items"].values() for r in rows)

    def kind(i: int) -> str | None:
        return None if i == 3 else "even" if i % 2 == 0 else "odd"

    assert {r["category"]: r["b"] for r in found["categories"]["rows"]} == pytest.approx(shares(B, kind))
    assert found["coverage"] == {
        "items_in_a": 12, "items_in_b": 12, "only_in_a": 0, "only_in_b": 0, "catalogue": 13,
        "share_of_catalogue_a": 12 / 13, "share_of_catalogue_b": 12 / 13,
    }  # fmt: skip
    # The two users that moved most, with both lists and where an item was before.
    assert len(found["moved"]) == 2
    for user in found["moved"]:
        u = user["user_id"]
        assert [i["item_id"] for i in user["a"]] == A[u] and [i["item_id"] for i in user["b"]] == B[u]
        assert [i["rank_in_a"] for i in user["b"]] == [A[u].index(i) + 1 if i in A[u] else None for i in B[u]]
    for part in (
        "run a1", "version 0", "run b1", "in both", "40", "overlap at 2", "rank-biased overlap, p = 0.9", "Item 4",
        "places by kind", "odd", "in the catalogue", "92.3%", f"user {found['moved'][0]['user_id']}", "new",
    ):  # fmt: skip
        assert part in text, part


@pytest.mark.parametrize("counts", [(4, 4), (4, 6), (3, 4), (1, 5)])
def test_tables_with_other_numbers_of_buckets(counts: tuple[int, int], layout: Layout, tmp_path: Path) -> None:
    """Two tables by their paths, without items; the figures do not depend on how users were divided."""
    tables = [str(tmp_path / name) for name in ("one", "other")]
    for table, run_id, made, count in zip(tables, ("a1", "b1"), (A, B), counts, strict=True):
        publish(table, run_id, made, count=count)
    found, text = compared(*tables, layout, tmp_path)
    publish(layout.rankings, "a1", A)
    publish(layout.rankings, "b1", B)
    same, _ = compared("a1", "b1", layout, tmp_path)
    for name, value in found.items():
        if name not in ("a", "b", "measures"):
            assert value == same[name], name
    for name, values in found["measures"].items():
        assert values == {**same["measures"][name], "mean": pytest.approx(same["measures"][name]["mean"])}
    assert found["items"]["gained"][0]["title"] is None and "catalogue" not in found["coverage"]
    assert "of the catalogue" not in text


def test_only_a_few_buckets_are_read_at_a_time(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(layout.rankings, "a1", A, count=12)
    publish(layout.rankings, "b1", B, count=8)
    read, asked = rankings.rows, []

    def rows(run: rankings.Snapshot, which: Any, columns: Any) -> pa.Table:
        asked.append((run.run_id, list(which)))
        return read(run, which, columns)

    monkeypatch.setattr(rankings, "rows", rows)
    a, b = (rankings.snapshot(layout.rankings, run_id) for run_id in ("a1", "b1"))
    found = stage.diff(a, b, None, print)
    assert asked[:4] == [("a1", [0, 4, 8]), ("b1", [0, 4]), ("a1", [1, 5, 9]), ("b1", [1, 5])] and len(asked) == 8
    assert found["users"]["in_both"] == 40


def test_a_run_beside_itself(layout: Layout, tmp_path: Path) -> None:
    publish(layout.rankings, "a1", A)
    found, _ = compared("a1", layout.rankings, layout, tmp_path, "--discounted")
    assert found["users"]["share_unchanged"] == 1 and found["users"]["first_item_changed"] == 0
    assert found["measures"]["rbo"]["mean"] == pytest.approx(1) and found["measures"]["rbo"]["users"] == {"1.00": 60}
    assert found["items"] == {"gained": [], "lost": []} and found["discounted"]


def test_users_without_a_counterpart(layout: Layout, tmp_path: Path) -> None:
    publish(layout.rankings, "a1", {1: [1, 2]})
    publish(layout.rankings, "b1", {2: [1, 2]})
    publish(layout.rankings, "c1", {})
    found, text = compared("a1", "b1", layout, tmp_path)
    assert found["users"]["in_both"] == 0 and found["moved"] == [] and "rank-biased" in text
    found, _ = compared("a1", "c1", layout, tmp_path)
    assert (found["users"]["only_in_a"], found["users"]["only_in_b"]) == (1, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a1", "nope"), "run 'nope' was never published"),
        (("a1", "./nothing"), "no rankings are published there"),
        (("a1", "b1", "--p", "1"), "p = 1: how likely a reader goes on"),
        (("a1", "b1", "--at", "0"), "cut-offs 0: give ranks from 1 on"),
        (("a1", "b1", "--by", "colour"), r"column 'colour' is missing \(it has: item_id, title, kind\)"),
    ],
)
def test_what_cannot_be_compared_is_named(arguments: tuple[str, ...], message: str, layout: Layout) -> None:
    publish(layout.rankings, "a1", A)
    publish(layout.rankings, "b1", B)
    with_items(layout)
    ended = called(*arguments, "--root", layout.root)
    with pytest.raises(UserError, match=message):
        raise ended.exception
    assert ended.stdout == ""


def test_a_column_needs_items_and_a_run_id_needs_a_root(layout: Layout) -> None:
    publish(layout.rankings, "a1", A)
    ended = called(layout.rankings, layout.rankings, "--by", "kind")
    assert isinstance(ended.exception, UserError) and "--by kind: there is no items table" in str(ended.exception)
    ended = called("a1", "b1")
    assert isinstance(ended.exception, UserError) and "root is not set" in str(ended.exception)
    assert called(layout.rankings, layout.rankings).exit_code == 0


def test_ids_of_other_types_have_nothing_in_common(layout: Layout, tmp_path: Path) -> None:
    publish(layout.rankings, "a1", A)
    publish(str(tmp_path / "text"), "b1", {str(u): v for u, v in B.items()}, pa.string())
    ended = called("a1", str(tmp_path / "text"), "--root", layout.root)
    assert isinstance(ended.exception, UserError) and "column 'user_id' is int64 in" in str(ended.exception)


def held_out(layout: Layout, items: dict[int, list[int]], count: int) -> None:
    users = pa.array(sorted(items), pa.int64())
    table = pa.table({"user_id": users, "item_ids": pa.array([items[u] for u in sorted(items)], pa.list_(pa.int64()))})
    which = buckets.bucket_of(users, count)
    for bucket in range(count):
        buckets.write_parquet(table.filter(pa.array(which == bucket)), buckets.bucket_file(layout.targets, bucket))


@pytest.mark.parametrize("count", [4, 6, 1])
def test_which_run_finds_held_out_items_better(count: int, layout: Layout, tmp_path: Path) -> None:
    """b has each user's item at rank 1, a at rank 3, of those it has; one user is in neither run, one has nothing."""
    publish(layout.rankings, "a1", A)
    publish(layout.rankings, "b1", B)
    truth = {u: [B[u][0]] for u in B} | {u: [A[u][2]] for u in range(5)} | {900: [1], 6: []}
    held_out(layout, truth, count)
    found, text = compared("a1", "b1", layout, tmp_path, "--at", "1", "--at", "5")
    asked = [u for u in truth if u != 900 and truth[u]]
    assert found["accuracy"]["users"] == len(asked) == 55
    told = found["accuracy"]["metrics"]
    assert set(told) == {"ndcg@1", "recall@1", "ndcg@5", "recall@5"}
    right = {
        name: np.asarray([float(u in of and of[u][0] in truth[u]) for u in asked]) for name, of in (("a", A), ("b", B))
    }
    assert told["recall@1"]["b"] == pytest.approx(right["b"].mean()) == pytest.approx(50 / 55)
    assert told["recall@1"]["a"] == pytest.approx(right["a"].mean())
    gains = [sum(1 / np.log2(A[u].index(i) + 2) for i in truth[u] if i in A.get(u, [])[:5]) for u in asked]
    assert told["ndcg@5"]["a"] == pytest.approx(np.mean(gains))
    for of in told.values():
        assert of["change"] == pytest.approx(of["b"] - of["a"]) and of["interval"][0] < of["change"] < of["interval"][1]
    wanted = permutation_test(
        (right["b"], right["a"]), lambda b, a: np.mean(b - a), permutation_type="samples", n_resamples=9999,
        rng=np.random.default_rng(1),
    )  # fmt: skip
    assert told["recall@1"]["p_value"] == pytest.approx(wanted.pvalue, abs=5e-4)
    assert "by the held-out items of 55 users" in text and "recall@5" in text


def test_runs_are_not_judged_where_nothing_is_held_out(layout: Layout, tmp_path: Path) -> None:
    publish(layout.rankings, "a1", A)
    publish(layout.rankings, "b1", B)
    assert compared("a1", "b1", layout, tmp_path)[0]["accuracy"] is None
    held_out(layout, {u: [] for u in A}, 2)
    assert compared("a1", "b1", layout, tmp_path)[0]["accuracy"] is None


def test_of_many_users_some_are_judged(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(layout.rankings, "a1", A)
    publish(layout.rankings, "b1", B)
    held_out(layout, {u: [B[u][0]] for u in B}, 4)
    monkeypatch.setattr(stage, "MOST_JUDGED", len(B) // 2)
    some = [u for u in B if xxhash.xxh64_intdigest(str(u).encode()) / 2.0**64 < (len(B) // 2) / len(B)]
    found, _ = compared("a1", "b1", layout, tmp_path)
    assert found["accuracy"]["users"] == len(some) < len(B) and found["users"]["in_both"] == len(A.keys() & B.keys())
    assert found["accuracy"]["metrics"]["recall@1"]["b"] == 1
