"""Some of the texts that augment wrote, for people to read."""

from __future__ import annotations

from typing import Any

from llmrec import storage
from llmrec.layout import Layout
from llmrec.report.terminal import print_rows
from llmrec.schema import DETAIL, ITEM, KEY, REASON, TEXT, TITLE, USER
from llmrec.tables import buckets


def sample(layout: Layout, count: int) -> dict[str, list[list[Any]]]:
    """Of items and of users the first texts, and of what is set aside the first answers: rows of three by the name of
    what they are."""
    found: dict[str, list[list[Any]]] = {"items": [], "users": [], "set aside": []}
    if not count:
        return found
    if storage.exists(layout.item_augmentations):
        written = buckets.read_parquet(layout.item_augmentations).slice(0, count)
        items = buckets.read_parquet(layout.items, [ITEM, TITLE])
        titles = dict(zip(items[ITEM].to_pylist(), items[TITLE].to_pylist(), strict=True))
        found["items"] = [[i, titles.get(i, ""), t] for i, t in _pairs(written, ITEM, TEXT)]
    if storage.exists(layout.user_augmentations):
        for uri in buckets.bucket_files(layout.user_augmentations).values():
            more = buckets.read_parquet(uri).slice(0, count - len(found["users"]))
            found["users"] += [[u, "", t] for u, t in _pairs(more, USER, TEXT)]
    for uri, _ in storage.list_files(layout.quarantine("augment"), ".parquet"):
        aside = buckets.read_parquet(uri).slice(0, count)
        reasons = aside[REASON].to_pylist()
        found["set aside"] += [[k, r, d] for (k, d), r in zip(_pairs(aside, KEY, DETAIL), reasons, strict=True)]
    found["set aside"] = found["set aside"][:count]
    return found


def _pairs(table: Any, key: str, value: str) -> list[tuple[Any, str]]:
    return list(zip(table[key].to_pylist(), table[value].to_pylist(), strict=True))


def print_augmentations(shown: dict[str, list[list[Any]]]) -> None:
    """What `sample` found."""
    for name, rows in shown.items():
        if rows:
            print_rows(f"some {name}", ["id", "reason" if name == "set aside" else "title", "text"], rows)
