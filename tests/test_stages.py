"""What a stage's output depends on: a stage is run anew for that, and for nothing else. No cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import staging
import yaml

from llmrec import config, storage
from llmrec.engine.compress import _scoring
from llmrec.engine.drift import reference
from llmrec.engine.evaluate import evaluate
from llmrec.engine.fuse import fuse
from llmrec.engine.kept_lists import kept_run
from llmrec.engine.stages import _fingerprint, _needs, check, order
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
        ("fuse", {"model": {"layers": 2}}, False),
        ("explain", {"explain": {"template": "zh"}}, True),
        ("explain", {"items": {"separator": ";"}}, True),
        # What parts the texts of a column of items by which users, items and diversity are measured.
        ("evaluate", {"items": {"separator": ";"}}, True),
        ("evaluate", {"items": {"batch_size": 9}}, False),
        ("prepare", {"prompt": {"item": "{title}, {maker}"}}, False),
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


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("train", {"model": {"base": "DIR"}}),
        ("embed", {"items": {"encoder": "DIR"}}),
        ("fuse", {"score": {"ensemble": ["DIR"]}}),
        ("fuse", {"score": {"blocked_items": "DIR"}}),
        ("fuse", {"score": {"model": "base"}, "model": {"base": "DIR", "items": "text", "head": "linear"}}),
        ("augment", {"augment": {"model": "DIR", "items": {"min_characters": 9}}}),
        ("explain", {"explain": {"model": "DIR"}}),
    ],
)
def test_a_stage_runs_anew_when_a_model_or_a_file_that_it_reads_changes(
    name: str, sections: dict[str, Any], tmp_path: Path
) -> None:
    place = tmp_path / "there"
    place.mkdir()
    (place / "config.json").write_text("1")
    named = yaml.safe_load(yaml.safe_dump(sections).replace("DIR", str(place)))
    settings = config.build({"root": f"{tmp_path}/root", "fusion": {"method": "linear"}, **named})
    before = _fingerprint(name, settings, Layout.of(settings))
    assert before == _fingerprint(name, settings, Layout.of(settings))
    (place / "config.json").write_text("2")
    assert _fingerprint(name, settings, Layout.of(settings)) != before


def test_other_prompts_are_searched_for_what_may_not_leave() -> None:
    """prepare does that, beside what it writes."""

    def mark(item: str) -> str | None:
        settings = config.build({"root": "there", "privacy": {"never": ["mail"]}, "prompt": {"item": item}})
        return _fingerprint("prepare", settings, Layout.of(settings))

    assert mark("{title}") == mark("{title}") != mark("{title}, {maker}")


def test_a_teachers_new_run_is_learned_from(tmp_path: Path) -> None:
    teacher = f"{tmp_path}/teacher"
    settings = config.build({"root": f"{tmp_path}/root", "train": {"teacher": teacher}})
    marks = [_fingerprint("train", settings, Layout.of(settings))]
    for run_id in ("a", "b"):
        staging.publish(teacher, run_id, range(5))
        marks.append(_fingerprint("train", settings, Layout.of(settings)))
    assert len(set(marks)) == 3


def test_a_recall_that_was_cut_off_is_not_scored() -> None:
    assert "recall" in _needs("score", config.build({}))
    assert "recall" not in _needs("score", config.build({"score": {"candidates": "s3://bucket/candidates"}}))


def test_a_run_of_another_number_of_buckets_is_not_measured(tmp_path: Path) -> None:
    """Its users would be looked for where they are not."""
    settings = config.build({"root": str(tmp_path)})
    layout = Layout.of(settings)
    rows = pa.table({"user_id": range(40), "item_ids": [[1]] * 40})
    for b in range(2 * staging.BUCKETS):
        for table in (layout.histories, layout.targets):
            buckets.write_parquet(rows, buckets.bucket_file(table, b))
    staging.publish(layout.rankings, "run", range(40))
    for measure in (lambda: evaluate(settings, layout, lambda message: None), lambda: kept_run(settings, layout)):
        with pytest.raises(UserError, match=r"has 4 buckets, .*histories has 8; score and publish"):
            measure()


def test_a_smaller_ranker_is_measured_by_itself() -> None:
    settings = config.build({"score": {"ensemble": ["/models/other"]}})
    assert _scoring(settings, model="/models/small").score.ensemble == ()


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
