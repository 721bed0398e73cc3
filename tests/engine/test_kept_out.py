"""Columns that must never leave: refused in settings, and found wherever their values have got to. No cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llmrec import config, storage
from llmrec.engine import kept_out
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.tables import buckets

SECRET = 'Zoë\'s "mail": zoe@example.org'
PHONE = 5_550_142


@pytest.fixture
def settings(tmp_path: Path) -> config.Config:
    """A root as prepare leaves it, beside an input with two columns that it has not."""
    layout = Layout(str(tmp_path / "root"))
    items = pa.table({"item_id": [PHONE, 2], "title": ["w1", "Student 1984"], "supplier": ["Acme No. 7", "student"]})
    users = pa.table({"user_id": [1, 2], "kind": ["a", "b"], "mail": [SECRET, None], "phone": [PHONE, 1984]})
    log = pa.table({"user_id": [1, 2], "item_id": [PHONE, 2], "timestamp": [5, PHONE], "day": ["2026-11-27"] * 2})
    for name, table in (("items", items), ("users", users), ("interactions", log)):
        buckets.write_parquet(table, str(tmp_path / "raw" / f"{name}.parquet"))
    buckets.write_parquet(items.drop_columns(["supplier"]), layout.items)
    buckets.write_parquet(users.select(["user_id", "kind"]), buckets.bucket_file(layout.users, 0))
    histories = {"user_id": [1, 2], "item_ids": [[PHONE], [2]], "timestamps": [[5], [PHONE]], "train_length": [1, 1]}
    buckets.write_parquet(pa.table(histories), buckets.bucket_file(layout.histories, 0))
    raw = {name: str(tmp_path / "raw" / f"{name}.parquet") for name in ("items", "users", "interactions")}
    return config.build({
        "root": layout.root, "data": raw, "prompt": {"user": "A {kind}. "},
        "privacy": {"never": ["mail", "phone", "supplier", "day"]},
    })  # fmt: skip


def test_nothing_is_found_where_nothing_is(settings: config.Config) -> None:
    done = kept_out.check(settings, Layout.of(settings), print)
    # Equal numbers of ids and times, a word, a date and a short number say nothing.
    assert done.found == [] and done.files == 3 and done.prompts == 4
    assert [(c.name, c.values, c.looked_for) for c in done.columns] == [
        ("mail", 1, 1), ("phone", 2, 1), ("supplier", 2, 1), ("day", 1, 0)
    ]  # fmt: skip


def parquet(name: str, column: pa.Array) -> Callable[[str], None]:
    return lambda root: buckets.write_parquet(pa.table({"c": column}), storage.join(root, name)) and None


@pytest.mark.parametrize(
    ("write", "place", "column"),
    [
        (parquet("quarantine/prepare/bucket-00000.parquet", pa.array([f"detail={SECRET}"])), "column 'c'", "mail"),
        (parquet("runs/r/parts/b.parquet", pa.array([[["x", SECRET]]])), "column 'c'", "mail"),
        (parquet("runs/r/b.parquet", pa.array([{"a": SECRET}])), "column 'c'", "mail"),
        (parquet("runs/r/b.parquet", pa.array([SECRET] * 2).dictionary_encode()), "column 'c'", "mail"),
        (parquet("runs/r/b.parquet", pa.array([SECRET.encode()])), "column 'c'", "mail"),
        (parquet("tables/items/more.parquet", pa.array([float(PHONE), 0.5])), "column 'c'", "phone"),
        (lambda root: storage.write_json(storage.join(root, "summaries/x.json"), {SECRET: 1}), "x.json", "mail"),
        (
            lambda root: storage.write_bytes(
                storage.join(root, "rankings/_delta_log/0.json"), b'{"a": 1}\n{"add": {"tags": ["(Acme No. 7)"]}}\n'
            ),
            "0.json", "supplier",
        ),
        (
            lambda root: storage.write_bytes(
                storage.join(root, "evaluation/report.html"),
                b"<p>Zo&euml;&#39;s &quot;mail&quot;: zoe@example.org</p>",
            ),
            "report.html", "mail",
        ),
        (
            lambda root: storage.write_bytes(storage.join(root, "log"), f"{'x' * ((4 << 20) - 9)} {SECRET}".encode()),
            "log", "mail",
        ),
    ],
)  # fmt: skip
def test_a_value_is_found_whatever_file_it_is_in(
    write: Callable[[str], Any], place: str, column: str, settings: config.Config
) -> None:
    write(settings.root)
    (found,) = kept_out.check(settings, Layout.of(settings), print).found
    assert (found.column, found.values) == (column, 1) and place in found.place
    with pytest.raises(UserError) as caught:
        kept_out.refuse([found])
    assert "zoe" not in str(caught.value) and str(PHONE) not in str(caught.value) and "Acme" not in str(caught.value)


def test_a_value_in_a_prompt_is_found(settings: config.Config) -> None:
    layout = Layout.of(settings)
    buckets.write_parquet(
        pa.table({"user_id": [2], "kind": [f"friend of {SECRET}"]}), buckets.bucket_file(layout.users, 0)
    )
    found = kept_out.check(settings, layout, print).found
    assert sorted(f.place for f in found) == ["prompts", "tables/users/bucket-00000.parquet, column 'kind',"]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("prompt", "item", "{title} {x}"), ("prompt", "user", "A {x}"), ("items", "categories", ["x"]),
        ("items", "vectors", ["x"]), ("items", "numbers", ["x"]), ("evaluate", "segments", ["users.x"]),
        ("explain", "attributes", ["x"]), ("rerank", "quotas", {"x": 2}), ("evaluate", "diversity_by", ["x"]),
        ("data", "context", ["x"]), ("data", "columns", {"user": "x"}), ("data", "columns", {"title": "x"}),
    ],
)  # fmt: skip
def test_a_setting_that_names_such_a_column_is_refused(section: str, key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"privacy\.never names 'x', which {section}\.{key}\S* uses"):
        config.build({section: {key: value}, "privacy": {"never": ["x"]}})
    for more in (
        {"fusion": {"method": "linear", "item_weights": {"x": 1.0}}},
        {"recall": {"segment": {"top": 5, "columns": ["x"]}}},
        {"rerank": {"freshness": {"column": "x"}}},
    ):
        with pytest.raises(UserError, match=r"privacy\.never names 'x'"):
            config.build({**more, "privacy": {"never": ["x"]}})
