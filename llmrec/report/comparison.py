"""Two runs side by side on the terminal. Computes no number itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from llmrec.reasons.quoting import one_line
from llmrec.report.terminal import console, text

PLACES = 10  # of a user's lists; the JSON holds all
CATEGORIES = 20


def print_diff(found: Mapping[str, Any]) -> None:
    """What `engine.diff.diff` gives."""
    a, b = found["a"], found["b"]
    out = console()
    for name, run in (("A", a), ("B", b)):
        out.print(
            f"{name}: run {run['run_id']} of {run['table']}, version {run['version']}, {run['time']}", soft_wrap=True
        )
    _print_users(found["users"], out)
    _print_measures(found["measures"], found["p"], out)
    if found["accuracy"]:
        _print_accuracy(found["accuracy"], out)
    weight = "places, the first ones weigh more" if found["discounted"] else "places"
    for name, rows in found["items"].items():
        _print_shifts(f"items that {name} most {weight}", "item", [(_name(r), r) for r in rows], out)
    if found["categories"]:
        rows = found["categories"]["rows"]
        shown = rows if len(rows) <= CATEGORIES else [*rows[: CATEGORIES // 2], *rows[-CATEGORIES // 2 :]]
        column = found["categories"]["column"]
        _print_shifts(f"{weight} by {column}", column, [(text(r["category"]), r) for r in shown], out)
        if len(shown) < len(rows):
            out.print(f"the {CATEGORIES // 2} largest gains and losses of {len(rows):,} values")
    _print_coverage(found["coverage"], out)
    if found["moved"]:
        out.print("users that moved most, by rank-biased overlap")
    for user in found["moved"]:
        _print_lists(user, out)


def _print_users(users: Mapping[str, Any], out: Any) -> None:
    table = Table(title="users", title_justify="left", show_header=False)
    labels = {
        "in_both": "in both", "only_in_a": "only in A", "only_in_b": "only in B",
        "unchanged": "in both, list unchanged", "first_item_changed": "in both, another first item",
    }  # fmt: skip
    for key, label in labels.items():
        share = users.get(f"share_{key}")
        table.add_row(label, text(users[key]), "" if share is None else f"{share:.1%}")
    out.print(table)


def _print_measures(measures: Mapping[str, Any], p: float, out: Any) -> None:
    table = Table(title="how alike a user's two lists are: 0 nothing in common, 1 the same", title_justify="left")
    for column in ("measure", "mean", "10% of users up to", "median", "90% up to"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    labels = {"rbo": f"rank-biased overlap, p = {p:g}", "rbo_min": "the same at least, whatever follows the lists"}
    for name, values in measures.items():
        shown = (values[key] for key in ("mean", "p10", "p50", "p90"))
        table.add_row(labels.get(name, name.replace("@", " at ")), *("-" if v is None else f"{v:.2f}" for v in shown))
    out.print(table)


def _print_accuracy(accuracy: Mapping[str, Any], out: Any) -> None:
    title = f"by the held-out items of {accuracy['users']:,} users, who count 0 where they have no list"
    table = Table(title=title, title_justify="left")
    for column in ("metric", "A", "B", "B less A, 95%", "p"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, of in accuracy["metrics"].items():
        low, high = of["interval"]
        change = f"{of['change']:+.4f} [{low:+.4f}, {high:+.4f}]"
        table.add_row(name, f"{of['a']:.4f}", f"{of['b']:.4f}", change, f"{of['p_value']:.4f}")
    out.print(table)


def _print_shifts(title: str, first: str, rows: list[tuple[str, Mapping[str, Any]]], out: Any) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column(first, max_width=60)
    for column in ("share in A", "share in B", "change"):
        table.add_column(column, justify="right")
    for name, row in rows:
        table.add_row(name, f"{row['a']:.2%}", f"{row['b']:.2%}", f"{row['change']:+.2%}")
    out.print(table)


def _print_coverage(coverage: Mapping[str, Any], out: Any) -> None:
    table = Table(title="items shown to anyone", title_justify="left", show_header=False)
    labels = {
        "items_in_a": "in A", "items_in_b": "in B", "only_in_a": "only in A", "only_in_b": "only in B",
        "catalogue": "in the catalogue",
    }  # fmt: skip
    for key, label in labels.items():
        if key in coverage:
            share = coverage.get(f"share_of_catalogue_{key[-1]}") if key.startswith("items") else None
            table.add_row(label, text(coverage[key]), "" if share is None else f"{share:.1%} of the catalogue")
    out.print(table)


def _print_lists(user: Mapping[str, Any], out: Any) -> None:
    table = Table(title=f"user {user['user_id']}, overlap {user['rbo']:.2f}", title_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("A", max_width=48)
    table.add_column("B", max_width=48)
    table.add_column("rank in A", justify="right")
    for i in range(min(PLACES, max(len(user["a"]), len(user["b"])))):
        left = user["a"][i] if i < len(user["a"]) else None
        right = user["b"][i] if i < len(user["b"]) else None
        was = "" if right is None else "new" if right["rank_in_a"] is None else str(right["rank_in_a"])
        table.add_row(str(i + 1), _name(left), _name(right), was)
    out.print(table)


def _name(item: Mapping[str, Any] | None) -> str:
    return "" if item is None else one_line(str(item["item_id"] if item["title"] is None else item["title"]))
