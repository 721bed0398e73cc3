"""A record that cannot be made costs no more than one that is not taken. Asks no server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmrec import config
from llmrec.engine import tracking
from llmrec.errors import UserError
from llmrec.layout import Layout

SUMMARY = {"run_id": "r1"}


def evaluated(root: Path, said: list[str], strict: bool, work: Any = lambda: SUMMARY) -> dict[str, Any]:
    """A stage whose record has files that are not there."""
    wanted = config.build({"root": str(root), "tracking": {"mlflow": {"uri": "http://127.0.0.1:9"}, "strict": strict}})
    return tracking.tracked("evaluate", wanted, Layout.of(wanted), said.append, work)


def test_a_store_that_does_not_give_the_files_of_a_record_costs_a_warning(tmp_path: Path) -> None:
    said: list[str] = []
    assert evaluated(tmp_path, said, strict=False) == SUMMARY
    (line,) = said
    assert line.startswith("warning: tracking.mlflow: no record of this run: ") and "no such file" in line
    with pytest.raises(UserError, match=r"tracking\.mlflow: evaluate is done, but its record was not taken: .*no such"):
        evaluated(tmp_path, said, strict=True)


@pytest.mark.parametrize("strict", [False, True])
def test_the_error_of_the_work_is_the_one_that_is_raised(
    strict: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost() -> str:
        raise OSError("gone")

    def fails() -> dict[str, Any]:
        raise UserError("no such table")

    monkeypatch.setattr(tracking, "_code", lost)
    said: list[str] = []
    with pytest.raises(UserError, match=r"^no such table$"):
        evaluated(tmp_path, said, strict, fails)
    assert said == ["warning: tracking.mlflow: no record of this run: gone"]


def test_a_record_that_is_not_taken_whole_is_not_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it would go on for as long as the process does, and seem to be at work."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    begun, begin = list[Any](), wandb.init

    def init(**given: Any) -> Any:
        begun.append(begin(**given))
        return begun[-1]

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb.Artifact, "add_file", full)
    wanted = {"wandb": {"project": "shop", "mode": "offline"}}
    settings = config.build({"root": str(tmp_path), "tracking": wanted})
    said: list[str] = []
    try:
        assert tracking.tracked("score", settings, Layout.of(settings), said.append, lambda: SUMMARY) == SUMMARY
        assert said == ["warning: tracking.wandb: no record of this run: no space left"]
        with pytest.raises(wandb.errors.UsageError, match="finished"):
            begun[0].log({"more": 1})
    finally:
        wandb.teardown()
