"""What training begins with and is fed, where processes or tables could differ. No cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import staging
import torch
from served import ITEMS, settings_of

from llmrec import config
from llmrec.engine import feedback, item_vectors, prepare, training_histories
from llmrec.engine.prompts import load_prompts
from llmrec.engine.training_worker import Task, _users, begin
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.ranker.model import Ranker
from llmrec.tables import buckets, forgotten


def task_of(settings: config.Config) -> Task:
    return Task(
        settings.model, settings.items, settings.prompt, settings.train, Layout.of(settings), 1, None, 0.9, None, None,
        None,
    )  # fmt: skip


def test_random_weights_are_the_same_in_every_process(tmp_path: Path, tiny_model: Path) -> None:
    """Those that do not learn are in no checkpoint: what is saved has them from a process of its own."""
    settings = settings_of(str(tmp_path), tmp_path, tiny_model, "token", {"model": {"pretrained": False}})
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        drawn = torch.rand(1)
        found.append(begin(task_of(settings), np.ones(ITEMS, bool))[0].state_dict())
        torch.manual_seed(seed)
        assert torch.equal(torch.rand(1), drawn), "the caller's own draws go on"
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    other = settings.model_copy(update={"train": settings.train.model_copy(update={"seed": 9})})
    again = begin(task_of(other), np.ones(ITEMS, bool))[0].state_dict()
    assert any(not torch.equal(found[0][name], again[name]) for name in again)


def test_a_teacher_goes_with_contexts(tmp_path: Path, tiny_model: Path) -> None:
    settings = settings_of(str(tmp_path), tmp_path, tiny_model, "token", {})
    layout = Layout.of(settings)
    times = {"timestamps": [[1, 2, 3]], "train_length": pa.array([3], pa.int32())}
    past = {"user_id": [1], "item_ids": [[3, 4, 5]], **times, "context_place": [["w40", None, "w41"]]}
    buckets.write_parquet(pa.table(past), buckets.bucket_file(layout.histories, 0))
    teacher = f"{tmp_path}/teacher"
    staging.publish(teacher, "run", [1], count=1)
    unit = pa.table({"bucket": [0], "uri": [buckets.bucket_file(layout.histories, 0)]})
    taught = training_histories._with_lessons(unit, teacher, list(past))
    ranker = Ranker.from_pretrained(settings.score.model)
    (user,) = _users(taught, task_of(settings), load_prompts(ranker, layout), ranker)
    assert user.history.tolist() == [3, 4, 5]


def test_impressions_of_forgotten_users_do_not_come_back(tmp_path: Path) -> None:
    rows = {
        "user_id": [7, 8, 7],
        "item_id": [1, 2, None],
        "timestamp": [5, 6, 7],
        "position": [1, 2, 3],
        "outcome": [1] * 3,
    }
    uri, layout = f"{tmp_path}/impressions.parquet", Layout(f"{tmp_path}/root")
    buckets.write_parquet(pa.table(rows), uri)
    forgotten.add(layout, ["7"])
    settings = config.build({"feedback": {"impressions": uri}})
    given: dict[str, Any] = {"data": settings.data, "settings": settings.feedback, "names": None}
    unit = pa.table({feedback.FILE: [uri], feedback.NUMBER: [0]})
    gone = forgotten.read(layout)
    counted = feedback._count(unit, **given, gone=gone).to_pylist()[0]
    assert dict(zip(counted["reasons"], counted["counts"], strict=True)) == {"good": 1, "forgotten_user": 2}
    feedback._write(unit, **given, gone=gone, layout=layout, examined=np.ones(50))
    assert buckets.read_parquet(layout.feedback)["user_id"].to_pylist() == [8]
    assert not list((tmp_path / "root").rglob("quarantine/**/*.parquet"))


def test_impressions_without_a_user_are_one_line_though_somebody_was_forgotten(tmp_path: Path) -> None:
    uri, layout = f"{tmp_path}/impressions.parquet", Layout(f"{tmp_path}/root")
    buckets.write_parquet(pa.table({"item_id": [1], "timestamp": [5]}), uri)
    forgotten.add(layout, ["7"])
    settings = config.build({"feedback": {"impressions": uri}})
    with pytest.raises(UserError, match=r"impressions.parquet: column 'user_id' is missing"):
        feedback._read(uri, settings.data, settings.feedback, None, forgotten.read(layout))


def test_users_may_have_one_column_of_that_name(tmp_path: Path) -> None:
    uri = f"{tmp_path}/users.parquet"
    buckets.write_parquet(pa.table({"customer": [1], "user_id": [2]}), uri)
    data = config.build({"data": {"users": uri, "columns": {"user": "customer"}}}).data
    with pytest.raises(UserError, match=r"users.parquet: column 'user_id' is there beside the one mapped to it"):
        prepare._read_users(data, pa.int64(), None, ())


def test_rows_of_a_long_log_are_numbered() -> None:
    many = 5_000_000_000
    judged = pl.DataFrame({"user_id": [1, 2], "reason_code": pl.Series([None, None], dtype=pl.String)})
    numbered = prepare._numbered(judged, many, "log.parquet")
    assert numbered["row"].to_list() == [many, many + 1] and numbered["row"].dtype == pl.Int64


def test_each_ranker_of_several_keeps_its_items_vectors(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))
    settings = settings_of(str(tmp_path), tmp_path, tiny_model, "token", {})
    layout, ranker = Layout.of(settings), Ranker.from_pretrained(settings.score.model)
    load_prompts(ranker, layout)
    for place, version in (("a", "1"), ("b", "2"), ("a", "1")):
        item_vectors.freeze(ranker, place, version, layout)
    assert len(list((tmp_path / "cache" / "vectors").glob("*/*/vectors.npy"))) == 2
    item_vectors.freeze(ranker, "a", "3", layout)  # trained anew: the old ones go
    assert len(list((tmp_path / "cache" / "vectors").glob("*/*/vectors.npy"))) == 2
