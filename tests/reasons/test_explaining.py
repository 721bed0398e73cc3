"""A bucket's reasons and their faithfulness, where a script whose truth is known scores in the ranker's place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llmrec import config
from llmrec.engine import explain_bucket
from llmrec.engine.explain_bucket import Explaining
from llmrec.engine.run import Job
from llmrec.layout import Layout
from llmrec.reasons import check, templates
from llmrec.reasons.traits import Trait
from llmrec.tables import buckets

ITEMS = [f"i{row:02}" for row in range(12)]
KINDS = ["crime", "crime", "heist", *["comedy"] * 9]  # one of them of a single item


@pytest.fixture
def tables(tmp_path: Path) -> Layout:
    layout = Layout(str(tmp_path))
    titles = [f"Title {chr(65 + row)}" for row in range(len(ITEMS))]
    texts = [f"w{row}" for row in range(len(ITEMS))]
    items = pa.table({"item_id": ITEMS, "title": titles, "text": texts, "kind": KINDS})
    buckets.write_parquet(items, layout.items)
    return layout


def explaining(layout: Layout, base: Path, sections: Mapping[str, Any] | None = None, **settings: Any) -> Explaining:
    sections = sections or {}
    prompt = config.Prompt(item="{text}", before_history="w0", before_item="", after_item="", max_history=30)
    job = Job(
        config.Score(), config.Model(base=str(base)), prompt, layout, "", "r", str(base), "v", 1, "", None
    )  # fmt: skip
    wanted = config.build({"root": layout.root, "explain": settings} | sections).explaining
    return Explaining(job, wanted, templates.load(wanted.template), "r-x", layout.reasons)


def test_a_value_that_one_item_has_is_known_to_the_check(tables: Layout, tiny_model: Path) -> None:
    _, known = explain_bucket.know(explaining(tables, tiny_model, attributes=("kind",), model="any"))
    assert known.vocabulary is not None
    allowed = check.Allowed("Title A", {"Title B": ("crime",)}, (), "“Title A” because of “Title B” (crime).", "en")
    for kind, why in (("crime", None), ("comedy", "other_trait"), ("heist", "other_trait")):
        assert check.violation(f"Since “Title B” is a {kind}, try “Title A”.", allowed, known.vocabulary) == why


def test_columns_are_parted_as_the_catalogue_says(tables: Layout, tiny_model: Path) -> None:
    items = buckets.read_parquet(tables.items)
    genres = pa.array(["Crime, Drama", "Drama, War", *[None] * (len(ITEMS) - 2)])
    buckets.write_parquet(items.append_column("genres", genres), tables.items)
    for separator, shared in ((", ", (Trait("genres", "Drama"),)), ("|", ())):
        wanted = explaining(tables, tiny_model, {"items": {"separator": separator}}, attributes=("genres",))
        assert explain_bucket.know(wanted)[1].attributes.shared(0, 1, 9) == shared
