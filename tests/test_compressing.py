"""What compress asks of the stages that it runs, and what it leaves behind. No cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import staging

from llmrec import config, storage
from llmrec.engine.compress import _clear, _compared, _no_promise, _scoring, _student
from llmrec.engine.train import _mechanism, _model_card
from llmrec.engine.training_histories import Counted
from llmrec.engine.training_worker import METRIC, STEPS, VALIDATIONS
from llmrec.layout import Layout
from llmrec.tables import buckets

PRIVATE: dict[str, Any] = {
    "items": {"id_start": 0}, "train": {"private": {"epsilon": 4.0, "delta": 1e-6}, "new_events": False},
}  # fmt: skip


def test_a_student_of_a_private_ranker_promises_nothing_and_learns_as_any_other() -> None:
    settings = config.build(PRIVATE)
    student = _student(settings, "models/ranker", 1, "scratch/teacher")
    assert student.train.teacher == "scratch/teacher" and student.model.layers == 1
    assert student.train.private == config.PrivateTraining() and _mechanism(student, 60, 10) is None
    metrics = {STEPS: 9, "decisions": 5, METRIC: 0.5, VALIDATIONS: [(9, 0.5)]}
    card = _model_card(student, Counted(users=9, held_out=3, newest=7), metrics, _mechanism(student, 60, 10))
    assert "epsilon" not in card
    # What this turned off is all that differs from a student of one that was not private.
    plain = config.build({"items": {"id_start": 0}})
    assert student == _student(plain, "models/ranker", 1, "scratch/teacher")


def test_every_precision_is_measured_by_settings_that_a_configuration_may_have() -> None:
    """As of one process an actor: int8 is refused with more."""
    score = {"tensor_parallel": 2, "gpus_per_actor": 2, "ensemble": (), "keep_parts": True, "reuse": "shown"}
    settings = config.build({"score": score, "rerank": {"method": "mmr"}, "fusion": {"method": "linear"}})
    for precision in ("float32", "int8"):
        asked = _scoring(settings, model="m", precision=precision, output="o", top_k=50)
        assert (asked.score.tensor_parallel, asked.score.gpus_per_actor) == (1, 1)
        assert (asked.score.precision, asked.score.keep_parts, asked.score.reuse) == (precision, False, "")
        assert asked.fusion == config.Fusion() and asked.rerank == config.Rerank()
        assert config.varied(asked, {}, "again") == asked


def test_all_runs_of_a_compression_go_and_no_others(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    storing = layout.scratch("compress")
    outputs = {"published": f"{storing}/teacher", "cut-off": f"{storing}/run-1", "mine": layout.rankings}
    for run_id, output in outputs.items():
        storage.write_json(f"{layout.run(run_id)}/plan.json", {"output": output})
        storage.write_json(f"{layout.ledger(run_id)}/bucket-00000.json", {})
        storage.write_bytes(f"{output}/staged", b"")
    _clear(layout, storing)
    left = [uri.removeprefix(f"{layout.root}/") for uri, _ in storage.list_files(layout.root)]
    assert left == ["rankings/staged", "runs/mine/ledger/bucket-00000.json", "runs/mine/plan.json"]


def test_nobody_is_told_of_a_promise_that_is_not_kept() -> None:
    assert _no_promise(config.build({})) == "" and "without privacy" in _no_promise(config.build(PRIVATE))


def test_a_user_who_is_set_aside_in_one_precision_counts_nothing_there(tmp_path: Path) -> None:
    for name, users in (("first", (1, 2)), ("mine", (2,))):
        buckets.write_parquet(staging.rows(name, users), f"{tmp_path}/{name}.parquet")
    truth = pa.table({"user_id": [1, 2, 3], "item_ids": [[0], [0], [0]]})
    buckets.write_parquet(truth, f"{tmp_path}/truth.parquet")
    found = {}
    for name, others in (("first", None), ("mine", {0: f"{tmp_path}/first.parquet"})):
        unit = {"bucket": 0, "mine": f"{tmp_path}/{name}.parquet", "truth": f"{tmp_path}/truth.parquet"}
        (found[name],) = _compared(pa.Table.from_pylist([unit]), others).to_pylist()
    assert found["first"] == {"bucket": 0, "ndcg": [1, 1], "overlap": [1, 1]}
    assert found["mine"] == {"bucket": 0, "ndcg": [0, 1], "overlap": [0, 1]}
