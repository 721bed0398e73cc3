"""Training that goes on from the ranker of the day before, by the real jobs on a mini cluster and an S3 server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_item_tokens import ITEMS, quietly, settings, tables

from llmrec import config, storage
from llmrec.engine import stages
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.ranker.model import Ranker
from llmrec.tables import buckets

RAW, ROOT = "s3://llmrec-test/raw-warm", "s3://llmrec-test/warm"
NEW_ITEM, LATER = "i99", ("u03", "u04", "u05", "u06", "u99")


def put(log: pa.Table, items: pa.Table) -> None:
    buckets.write_parquet(log, f"{RAW}/interactions.parquet")
    buckets.write_parquet(items, f"{RAW}/items.parquet")


def wanted(model: Path, encoder: Path, **train: Any) -> config.Config:
    return settings(
        ROOT, model, encoder,
        data={"items": f"{RAW}/items.parquet", "interactions": f"{RAW}/interactions.parquet", "split": "none"},
        model={"base": str(model), "items": "token", "head": "retrieve"},
        train={"max_steps": 6, "validate_every": 3, "workers": 1} | train,
    )  # fmt: skip


def saved(tmp_path: Path) -> Ranker:
    return Ranker.from_pretrained(storage.local_directory(Layout(ROOT).ranker, tmp_path))


@pytest.fixture(scope="module")
def first_day(cluster: Any, tiny_model: Path, tiny_encoder: Path) -> dict[str, Any]:
    made = tables()
    buckets.write_parquet(made["edges"], "s3://llmrec-test/raw-tokens/edges.parquet")
    put(made["interactions"], made["items"])
    day = wanted(tiny_model, tiny_encoder, start="previous")
    for stage in ("prepare", "embed"):
        stages.run(stage, day, quietly)
    return stages.run("train", day, quietly)


@pytest.fixture(scope="module")
def second_day(first_day: dict[str, Any], tiny_model: Path, tiny_encoder: Path) -> config.Config:
    """Some users have something later, among it an item that came up meanwhile; one of them is new."""
    made = tables()
    later = pa.table({
        "user_id": [user for user in LATER for _ in range(3)], "item_id": ["i01", NEW_ITEM, "i04"] * len(LATER),
        "timestamp": [200, 201, 202] * len(LATER),
    })  # fmt: skip
    new = made["items"].slice(3, 1).set_column(0, "item_id", pa.array([NEW_ITEM]))
    put(pa.concat_tables([made["interactions"], later]), pa.concat_tables([made["items"], new]))
    return wanted(tiny_model, tiny_encoder, start="previous")


def test_the_first_day_begins_with_the_base_and_says_up_to_when_it_saw(
    first_day: dict[str, Any], tmp_path: Path
) -> None:
    assert first_day["start"] == ""
    assert saved(tmp_path).card.trained_until == 107


def test_another_kind_of_ranker_is_refused_by_the_setting_that_differs(
    second_day: config.Config, tiny_model: Path, tiny_encoder: Path
) -> None:
    before = storage.manifest(Layout(ROOT).ranker)
    for stage in ("prepare", "embed"):
        stages.run(stage, second_day, quietly)
    other = wanted(tiny_model, tiny_encoder, start="previous").model_copy(
        update={"prompt": second_day.prompt.model_copy(update={"before_history": "w2"})}
    )
    with pytest.raises(UserError, match=r"trained with prompt.before_history = 'w1', and now it is 'w2'"):
        stages.run("train", other, quietly)
    assert storage.manifest(Layout(ROOT).ranker) == before


def test_without_learning_the_earlier_ranker_is_left_and_knows_the_new_item(
    second_day: config.Config, tiny_model: Path, tiny_encoder: Path, tmp_path: Path
) -> None:
    for stage in ("prepare", "embed"):
        stages.run(stage, second_day, quietly)
    before = saved(tmp_path / "before")
    still = wanted(
        tiny_model, tiny_encoder, start="previous", new_events=True, learning_rate=1e-12, head_learning_rate=1e-12
    )
    done = stages.run("train", still, quietly)
    after = saved(tmp_path / "after")
    assert (done["start"], done["users"]) == ("previous", len(LATER)), "only who has something new is trained"
    assert after.card.trained_until == 202
    ours, theirs = dict(after.named_parameters()), dict(before.named_parameters())
    for name, weights in theirs.items():
        grown = ours[name][: len(weights)] if name in ("items.own", "items.bias") else ours[name]
        assert torch.allclose(grown, weights, atol=1e-6), name
    assert before.items is not None and after.items is not None
    assert set(after.items.ids.to_pylist()) - set(before.items.ids.to_pylist()) == {NEW_ITEM}
    assert len(before.items.ids) == ITEMS
    assert not any("start" in uri for uri, _ in storage.list_files(Layout(ROOT).training))
    assert stages.run("train", still, quietly, reuse=True).get("reused"), "nothing changed since"


def test_what_was_held_out_before_is_not_new_by_its_time(
    second_day: config.Config, tiny_model: Path, tiny_encoder: Path
) -> None:
    day = wanted(tiny_model, tiny_encoder, start="previous", new_events=True)
    one_out = day.model_copy(update={"data": day.data.model_copy(update={"split": "leave_one_out"})})
    stages.run("prepare", one_out, quietly)
    with pytest.raises(UserError, match=r"train.new_events with data.split = leave_one_out"):
        stages.run("train", one_out, quietly)


def test_decisions_are_the_new_events_alone() -> None:
    from llmrec.config import Train
    from llmrec.ranker.examples import sample

    history = np.arange(10)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        found = sample(history, Train(decisions_per_user=60), 4, None, rng, first=7)
        places = found.first + found.decisions
        assert len(found.history) == 4 and places.min() >= 7
        assert places.tolist() == [place for place in range(7, 10) if place < found.first + 4]
