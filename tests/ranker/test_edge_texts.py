from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from llmrec import config, schema
from llmrec.engine.embed import _catalogue, _rows
from llmrec.engine.prompts import told as told_of
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.ranker.edge_texts import wanted, with_edges
from llmrec.ranker.templates import fill
from llmrec.tables import buckets

ITEMS = pa.table({"item_id": [3, 1, 2], "title": ["Heat", "Big", "Up"]})
ROWS = [
    (1, "level", "beginner", 1.0), (1, "concept", "biology", 1.0), (1, "concept", "statistics", 1.0),
    (1, "concept", "statistics", 1.0), (3, "level", "expert", 1.0), (9, "level", "none", 1.0),
]  # fmt: skip


def edges(rows: list[tuple[int, str, str, float]] = ROWS) -> pa.Table:
    return pa.table([list(column) for column in zip(*rows, strict=True)], schema=schema.edges(pa.int64()))


def told(template: str, most: int = 20, rows: list[tuple[int, str, str, float]] = ROWS) -> list[str]:
    return fill(template, with_edges(ITEMS, template, edges(rows), most), "item")


def test_relations_by_name_and_their_heaviest_tails_first() -> None:
    assert told("{title}: {edges}") == [
        "Heat: level: expert", "Big: concept: statistics, biology; level: beginner", "Up: ",
    ]  # fmt: skip
    assert told("{edges:concept}|{edges:level}") == ["|expert", "statistics, biology|beginner", "|"]


def test_the_heaviest_are_told_and_the_order_of_rows_does_not_matter() -> None:
    assert told("{edges}", 1) == ["level: expert", "concept: statistics", ""]
    assert told("{edges}", 2) == ["level: expert", "concept: statistics, biology", ""]
    assert told("{edges:concept}", 1) == ["", "statistics", ""]
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(ROWS))
        assert told("{edges}", 2, [ROWS[i] for i in order]) == told("{edges}", 2)


def test_relations_are_in_order_whatever_they_weigh() -> None:
    rows = [(1, "z", "a", 5.0), (1, "b", "d", 1.0), (1, "b", "c", 1.0)]
    assert told("{edges}", rows=rows)[1] == "b: c, d; z: a"


def test_an_unknown_relation_is_named() -> None:
    with pytest.raises(UserError, match=r"no edge has that relation \(there are: concept, level"):
        told("{edges:levle}")


def test_placeholders_of_edges() -> None:
    assert wanted("{title} {edges} {edges:has level} {{edges:x}}") == ["edges", "edges:has level"]
    with pytest.raises(UserError, match=r"'\{title:x\}' must be a column name"):
        wanted("{title:x}")


def test_without_a_graph_one_line_says_so(tmp_path: object) -> None:
    layout = Layout(str(tmp_path))
    for template in ("{title} {edges}", "{edges:level}"):
        with pytest.raises(UserError, match=r"set data\.edges") as caught:
            told_of(ITEMS, config.Prompt(item=template), layout)
        assert "\n" not in str(caught.value)
    own = ITEMS.append_column("edges", pa.array(["x", "y", "z"]))
    assert told_of(own, config.Prompt(item="{edges}"), layout) is own
    buckets.write_parquet(edges(), layout.edges)
    with pytest.raises(UserError, match="rename the column"):
        told_of(own, config.Prompt(item="{edges}"), layout)


def test_changed_edges_mark_the_items_that_they_are_of(tmp_path: object) -> None:
    layout = Layout(str(tmp_path))
    buckets.write_parquet(ITEMS.append_column("other", pa.array([1, 2, 3])), layout.items)
    settings = config.build({"root": str(tmp_path), "prompt": {"item": "{title} {edges}"}})
    marks = []
    for rows in (ROWS, [*ROWS, (2, "level", "expert", 1.0)]):
        buckets.write_parquet(edges(rows), layout.edges)
        found = _rows(_catalogue(layout, settings.prompt), settings, "revision")
        assert found["item_id"].to_pylist() == [1, 2, 3]
        marks.append(found["mark"].to_pylist())
    assert [a == b for a, b in zip(*marks, strict=True)] == [True, False, True]
