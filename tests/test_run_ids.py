"""What a run is named by: whatever its rows depend on, and nothing else. No cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from served import settings_of

from llmrec import config, schema, storage
from llmrec.engine import run
from llmrec.errors import UserError
from llmrec.fusion.ablations import Fitted
from llmrec.fusion.model import Fusion
from llmrec.layout import Layout
from llmrec.tables import buckets


def run_id(wanted: config.Config) -> str:
    return run.resolve(wanted, Layout.of(wanted))[0].run_id


def blocked(tmp_path: Path, items: list[int]) -> str:
    buckets.write_parquet(pa.table({"item_id": items}), f"{tmp_path}/blocked.parquet")
    return f"{tmp_path}/blocked.parquet"


def test_another_block_list_is_another_run(tmp_path: Path, tiny_model: Path) -> None:
    uri = blocked(tmp_path, [3])
    wanted = settings_of(str(tmp_path), tmp_path, tiny_model, "text", {"score": {"blocked_items": uri}})
    first = run_id(wanted)
    assert run_id(wanted) == first
    blocked(tmp_path, [3, 4])
    assert run_id(wanted) != first


def test_other_edges_are_another_run_where_they_lock_items(tmp_path: Path, tiny_model: Path) -> None:
    def edges(tail: str) -> None:
        rows: list[list[Any]] = [[1], ["needs"], [tail], [1.0]]
        buckets.write_parquet(pa.table(rows, schema=schema.edges(pa.int64())), Layout(str(tmp_path)).edges)

    edges("2")
    plain = settings_of(str(tmp_path), tmp_path, tiny_model, "text", {})
    locking = settings_of(str(tmp_path), tmp_path, tiny_model, "text", {"score": {"requires": "needs"}})
    before = run_id(plain), run_id(locking)
    edges("3")
    assert run_id(plain) == before[0] and run_id(locking) != before[1]


def test_workers_elsewhere_find_the_block_list(tmp_path: Path, tiny_model: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    blocked(tmp_path, [3])
    wanted = settings_of(str(tmp_path), tmp_path, tiny_model, "text", {"score": {"blocked_items": "blocked.parquet"}})
    job, _ = run.resolve(wanted, Layout.of(wanted))
    assert job.score.blocked_items == f"{tmp_path}/blocked.parquet"


def test_weights_of_another_ranker_are_refused_unless_they_are_named(tmp_path: Path, tiny_model: Path) -> None:
    weights = Fusion(("ranker", "item_item"), ("z_score",), (1.0, 0.5), "", 1.0, 1.0, 9)
    wanted = settings_of(str(tmp_path), tmp_path, tiny_model, "text", {"fusion": {"method": "linear"}})
    layout, version = Layout.of(wanted), run.to_serve(wanted, Layout.of(wanted)).model_version
    storage.write_bytes(layout.fusion, Fitted(weights, {}, None, version).to_json())
    fused = run_id(wanted)
    storage.write_bytes(layout.fusion, Fitted(weights, {}, None, "yesterdays").to_json())
    with pytest.raises(UserError, match=rf"fitted with another ranker \(version yesterdays\) than .* \({version}\)"):
        run_id(wanted)
    named = wanted.model_copy(update={"fusion": wanted.fusion.model_copy(update={"model": layout.fusion})})
    assert run_id(named) == fused
