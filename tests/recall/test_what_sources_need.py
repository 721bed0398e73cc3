"""What recall refuses before it starts, each in one line, and what its stage depends on; no cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llmrec import config, schema, storage
from llmrec.engine import recall_models, stages
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.tables import buckets


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(str(tmp_path))
    ids = pa.array(["a", "b"])
    buckets.write_parquet(pa.table({"item_id": ids, "title": ids}), found.items)
    histories = [["u"], [["a"]], [[5]], [1]]
    table = pa.table(histories, schema=schema.histories(pa.string(), pa.string()))
    buckets.write_parquet(table, buckets.bucket_file(found.histories, 0))
    return found


def settings(root: Layout, **recall: Any) -> config.Config:
    return config.build({"root": root.root, "recall": recall})


def write_edges(layout: Layout, head: str) -> None:
    table = pa.table([[head], ["of"], ["x"], [1.0]], schema=schema.edges(pa.string()))
    buckets.write_parquet(table, layout.edges)


SEGMENT = {"segment": {"top": 5, "columns": ["job"]}, "merge": ["segment"]}
GRAPH = {"graph": {"top": 5}, "merge": ["graph"]}


def test_segments_need_users_and_their_columns(layout: Layout) -> None:
    wanted = settings(layout, **SEGMENT).recall
    with pytest.raises(UserError, match=r"recall\.segment needs users' attributes, .* set data\.users"):
        recall_models.units(wanted, layout)
    buckets.write_parquet(pa.table({"user_id": ["u"], "age": [3]}), buckets.bucket_file(layout.users, 4))
    with pytest.raises(UserError, match=r"recall\.segment\.columns names 'job', but .*users has: user_id, age"):
        recall_models.units(wanted, layout)
    buckets.write_parquet(pa.table({"user_id": ["u"], "job": ["x"]}), buckets.bucket_file(layout.users, 4))
    (unit,) = recall_models.units(wanted, layout)
    assert (unit["bucket"], unit["users"]) == (0, "")
    assert recall_models.keys_of(pa.array(["u"]), "", ("job",)).null_count == 1


@pytest.mark.parametrize("recall", [GRAPH, {"closeness": {"weight": 1.0}}])
def test_graph_and_closeness_need_edges(layout: Layout, recall: dict[str, Any]) -> None:
    name = "graph" if recall is GRAPH else "closeness"
    with pytest.raises(UserError, match=rf"recall\.{name} needs a knowledge graph, .* set data\.edges") as caught:
        recall_models.fit(settings(layout, **recall).recall, layout)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("recall", "complaint"),
    [
        ({"merge": ["graph"]}, "merge names 'graph', which recall.graph.top = 0 turns off"),
        ({"merge": ["segment"], "segment": {"top": 3}}, "recall.segment.columns must name columns"),
        ({"recent": {"half_life_days": None}}, "half_life_days and window_days are both null"),
        ({"segment": {"prior": 0}}, "recall.segment.prior = 0"),
        ({"closeness": {"smoothing": 0}}, "recall.closeness.smoothing = 0"),
    ],
)
def test_settings_that_cannot_be(layout: Layout, recall: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint.replace(".", r"\.")):
        settings(layout, **recall)


def test_recall_depends_on_what_its_sources_read(layout: Layout) -> None:
    buckets.write_parquet(pa.table({"user_id": ["u"], "job": ["x"]}), buckets.bucket_file(layout.users, 0))
    write_edges(layout, "a")
    asked = {
        "plain": {}, "segment": SEGMENT, "graph": GRAPH, "closeness": {"closeness": {"weight": 1.0}},
    }  # fmt: skip

    def prints(stage: str) -> dict[str, str | None]:
        return {name: stages._fingerprint(stage, settings(layout, **recall), layout) for name, recall in asked.items()}

    before, fused = prints("recall"), prints("fuse")
    write_edges(layout, "b")
    assert {name for name, mark in prints("recall").items() if mark != before[name]} == {"graph", "closeness"}
    assert all(mark != fused[name] for name, mark in prints("fuse").items())
    before = prints("recall")
    buckets.write_parquet(pa.table({"user_id": ["u"], "job": ["y"]}), buckets.bucket_file(layout.users, 0))
    assert {name for name, mark in prints("recall").items() if mark != before[name]} == {"segment"}


def test_a_text_ranker_depends_on_the_edges_that_its_prompt_tells(layout: Layout) -> None:
    def mark(template: str) -> str | None:
        text = {"model": {"items": "text", "head": "linear"}, "prompt": {"item": template}}
        return stages._fingerprint("train", config.build({"root": layout.root, **text}), layout)

    templates = ("{title}", "{title} {edges:of}")
    write_edges(layout, "a")
    before = [mark(template) for template in templates]
    write_edges(layout, "b")
    assert [mark(template) == old for template, old in zip(templates, before, strict=True)] == [True, False]
    storage.delete(layout.edges)
