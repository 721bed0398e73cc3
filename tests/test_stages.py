"""What a stage's output depends on: a stage is run anew for that, and for nothing else. No cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmrec import config
from llmrec.engine.stages import _fingerprint
from llmrec.layout import Layout


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
