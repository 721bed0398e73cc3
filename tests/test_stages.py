"""What a stage's output depends on: a stage is run anew for that, and for nothing else. No cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llmrec import config, storage
from llmrec.engine.drift import reference
from llmrec.engine.fuse import fuse
from llmrec.engine.stages import _fingerprint, check, order
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.tables import buckets


@pytest.mark.parametrize(
    ("name", "changed", "again"),
    [
        # Who stages a run and publishes it later need not have its weights fitted anew.
        ("fuse", {"score": {"publish": False, "keep_parts": True}}, False),
        ("fuse", {"score": {"max_candidates": 50}}, True),
        ("fuse", {"fusion": {"method": "trees"}}, True),
        ("fuse", {"evaluate": {"seed": 5}}, False),
        ("train", {"score": {"max_candidates": 50}}, False),
        ("train", {"train": {"epochs": 7}}, True),
    ],
)
def test_a_stage_runs_anew_for_what_its_output_depends_on(
    name: str, changed: dict[str, Any], again: bool, tmp_path: Path
) -> None:
    def mark(more: dict[str, Any]) -> str | None:
        settings = config.build({"root": str(tmp_path), **({"fusion": {"method": "linear"}} | more)})
        return _fingerprint(name, settings, Layout.of(settings))

    assert mark({}) == mark({})
    assert (mark(changed) != mark({})) is again


def test_a_fusion_that_is_given_is_not_fitted() -> None:
    fitted = config.build({"fusion": {"method": "linear"}})
    given = config.build({"fusion": {"method": "linear", "model": "s3://bucket/fusion.json"}})
    assert "fuse" in order(fitted) and "fuse" not in order(given) and "fuse" not in order(config.build({}))


def test_weights_are_fitted_where_something_was_held_out(tmp_path: Path) -> None:
    """Told before anything is recalled or scored."""
    settings = config.build({"root": str(tmp_path), "fusion": {"method": "linear"}})
    layout = Layout.of(settings)
    past = {"user_id": [1], "item_ids": [[1, 2]], "timestamps": [[5, 6]], "train_length": pa.array([2], pa.int32())}
    buckets.write_parquet(pa.table(past), buckets.bucket_file(layout.histories, 0))
    with pytest.raises(UserError, match=r"no validation events that weights could be fitted on.*or give fusion.model"):
        fuse(settings, layout, lambda message: None)


def test_a_library_that_is_missing_is_told_before_there_is_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    check("fuse", config.build({"fusion": {"method": "linear"}}))
    with pytest.raises(UserError, match=r"pip install 'llmrec\[trees\]'"):
        check("fuse", config.build({"fusion": {"method": "trees"}}))


def test_what_an_older_version_kept_for_comparison_can_be_replaced(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    storage.write_json(layout.profile, {"something": "else"})
    with pytest.raises(UserError, match="not a profile of this version"):
        reference(layout)
    assert reference(layout, readable=False) is None
