"""A bucket's reasons and their faithfulness, where a script whose truth is known scores in the ranker's place."""

from __future__ import annotations

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


def explaining(layout: Layout, base: Path, **settings: Any) -> Explaining:
    prompt = config.Prompt(item="{text}", before_history="w0", before_item="", after_item="", max_history=30)
    job = Job(
        config.Score(), config.Model(base=str(base)), prompt, layout, "", "r", str(base), "v", 1, "", None
    )  # fmt: skip
    wanted = config.Explain(**settings)
    return Explaining(job, wanted, templates.load(wanted.template), "r-x", layout.reasons)


def test_a_value_that_one_item_has_is_known_to_the_check(tables: Layout, tiny_model: Path) -> None:
    _, known = explain_bucket.know(explaining(tables, tiny_model, attributes=("kind",), model="any"))
    assert known.vocabulary is not None
    allowed = check.Allowed("Title A", {"Title B": ("crime",)}, (), "“Title A” because of “Title B” (crime).", "en")
    for kind, why in (("crime", None), ("comedy", "other_trait"), ("heist", "other_trait")):
        assert check.violation(f"Since “Title B” is a {kind}, try “Title A”.", allowed, known.vocabulary) == why
